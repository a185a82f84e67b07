package life

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The wall clock of one process cannot be moved from outside: Go asks the kernel for it through a page that all processes share, so that
// libfaketime sees nothing of it, and a time namespace moves the other clocks only. So the child is built with another package time (go build -overlay), whose Now
// adds what it is told to the wall clock and leaves the monotonic one alone, as the kernel does when somebody sets the clock: for the whole program, the store, the client,
// the driver and the runtime's library alike.
//
// What it shows: hand-overs, leases and takes go by the database's clock and by differences on monotonic clocks, and no wall clock of a process is compared
// with that of another. What it does not: WhatsApp's certificates have dates, so a client whose clock is wrong by more than they allow does not connect, on any store.

// jumpBack and jumpAhead are how wrong a clock gets. The server's certificate is an hour old.
const (
	jumpBack  = 50 * time.Minute
	jumpAhead = 12 * time.Hour
)

// buildJumping builds the child whose wall clock can jump.
func buildJumping(t testing.TB) (binary string) {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	require.NoError(t, err)
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	require.NoError(t, err)
	code := string(source)
	for _, change := range []struct{ from, to string }{
		{"import (\n", "import (\n\t\"sync/atomic\"\n"},
		{"sec, nsec, mono := runtimeNow()\n\tif mono == 0 {", "sec, nsec, mono := runtimeNow()\n\tsec += Jumped.Load()\n\tif mono == 0 {"},
	} {
		require.Equal(t, 1, strings.Count(code, change.from), "package time of %s is not as it was", runtime.Version())
		code = strings.Replace(code, change.from, change.to, 1)
	}
	code += "\n// Jumped is how many seconds the wall clock is wrong by.\nvar Jumped atomic.Int64\n"
	changed, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(changed, []byte(code), 0o600))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(overlay, replace, 0o600))
	binary = filepath.Join(dir, "child")
	out, err := exec.Command("go", "test", "-c", "-tags", "jumps", "-overlay", overlay, "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return binary
}

// jump makes the wall clocks of processes wrong, each by something else.
func (r *relay) jump(runners ...*runner) {
	r.t.Helper()
	for _, p := range runners {
		if r.set.binary != "" {
			p.do(command{Do: doJump, Text: r.wrong()})
			r.jumps++
		}
	}
}

func (r *relay) wrong() string { return (r.upTo(jumpBack+jumpAhead) - jumpBack).String() }
