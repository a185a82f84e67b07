package life

import (
	"os"
	"testing"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	os.Exit(pgtest.Main(m.Run))
}
