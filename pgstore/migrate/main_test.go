package migrate_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		importAndStop()
		return
	}
	os.Exit(pgtest.Main(m.Run,
		// The client's reading goroutine may hang if a frame comes in at the moment of Disconnect.
		goleak.IgnoreTopFunction("go.mau.fi/whatsmeow/socket.(*FrameSocket).frameComplete")))
}
