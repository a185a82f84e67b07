package pgstore_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// A connection that is broken in the middle of a toxic leaves a goroutine of toxiproxy behind.
func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m.Run, goleak.IgnoreTopFunction("github.com/Shopify/toxiproxy/v2/toxics.(*NoopToxic).Pipe")))
}
