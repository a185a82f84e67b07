package pgstore_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := pgtest.Main(m.Run)
	if code == 0 {
		if err := goleak.Find(
			goleak.IgnoreTopFunction("os/exec.(*Cmd).Start.func2"),
		); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}
