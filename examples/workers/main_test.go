package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// program builds the example.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "workers")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

func TestP6WorkersShareDevicesWhateverHappensToThem(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(program(t), "-demo")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+pgtest.Open(t), "PGSTORE_TEST_DSN=")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var said strings.Builder
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	defer time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() }).Stop()

	var text strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "A deploy") { // the last thing that happens before it begins anew
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
	}
	require.NoError(t, cmd.Wait(), "%s%s", text.String(), said.String())
	require.Empty(t, said.String())
	for _, happened := range []string{"worker 1 is killed", "worker 2 is frozen", "worker 2 wakes up", "worker 2 gets SIGTERM"} {
		require.Contains(t, text.String(), happened)
	}
	require.Regexp(t, `(?m)^WORKER +STATE +LAST SIGN +UNSAVED +CLIENTS +NUMBERS\n(worker \d +alive +[\d.]+s +\d+ +4  +(4915\d+ ?){4}\n){3}\n`, text.String(), "the work is shared")
	require.Regexp(t, `(?m)^worker 2 +dead `, text.String())
	counts := regexp.MustCompile(`(?m)^Devices: 12\nQR codes: 12\nMessages: (\d+), answered: (\d+)\nAnswers that nobody could read: 0\nMessage keys used twice: 0$`).
		FindStringSubmatch(text.String())
	require.NotNil(t, counts, text.String())
	require.Equal(t, counts[1], counts[2])
	require.Greater(t, len(counts[1]), 2, "at least a hundred messages")
}

func TestAWorkerWithoutADatabaseSaysWhatToDo(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(program(t))
	cmd.Env = append(os.Environ(), "DATABASE_URL=")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 2, cmd.ProcessState.ExitCode())
	require.Equal(t, "set DATABASE_URL to a PostgreSQL, or use -demo\n", string(out))
}
