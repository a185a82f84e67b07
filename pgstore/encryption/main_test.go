package encryption_test

import (
	"os"
	"testing"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }
