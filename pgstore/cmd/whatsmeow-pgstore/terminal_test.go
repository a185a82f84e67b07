package main_test

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// terminal is a command with a person in front of it.
type terminal struct {
	testing.TB
	cmd  *exec.Cmd
	tty  *os.File
	said string
}

func (s *stage) terminal(env []string, args ...string) *terminal {
	s.Helper()
	cmd := exec.Command(command, args...)
	cmd.Env = append(append(os.Environ(), "PGSTORE_DSN="+s.dsn, "TERM=xterm-256color"), env...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 160})
	require.NoError(s, err)
	s.Cleanup(func() { _ = cmd.Process.Kill(); _ = tty.Close() })
	return &terminal{TB: s, cmd: cmd, tty: tty}
}

// await reads until a text is on the screen.
func (t *terminal) await(text string) {
	t.Helper()
	for buf := make([]byte, 4096); !strings.Contains(t.said, text); {
		n, err := t.tty.Read(buf)
		t.said += string(buf[:n])
		if !strings.Contains(t.said, text) {
			require.NoError(t, err, "%q", t.said)
		}
	}
}

func (t *terminal) press(keys string) {
	t.Helper()
	_, err := t.tty.WriteString(keys)
	require.NoError(t, err)
}

// end waits for the end, and returns the exit code.
func (t *terminal) end() int {
	t.Helper()
	rest, _ := io.ReadAll(t.tty) // it ends with an error on Linux
	t.said += string(rest)
	_ = t.cmd.Wait()
	return t.cmd.ProcessState.ExitCode()
}

func TestTopGoesOnUntilQ(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.pair(s.open(), "shop-1")
	top := s.terminal(nil, "top", "--interval", "100ms")
	top.await("worker-1")
	top.press("q")
	require.Zero(t, top.end())
	s.secrets.RequireNoneIn(t, "top", top.said)
}

func TestHealAsks(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	require.NoError(t, c.Close())
	for _, answer := range []struct {
		keys string
		code int
	}{{"n\n", 4}, {"\n", 4}, {"y\n", 0}} {
		heal := s.terminal(nil, "heal", "shop-1")
		heal.await("[y/N]")
		heal.press(answer.keys)
		require.Equal(t, answer.code, heal.end(), heal.said)
	}
}

func TestColoursOnATerminalAlone(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.pair(s.open(), "shop-1")
	const green = "\x1b[32m"
	coloured := s.terminal([]string{"NO_COLOR="}, "instances", "list")
	require.Zero(t, coloured.end())
	require.Contains(t, coloured.said, green)
	plain := s.terminal([]string{"NO_COLOR=1"}, "instances", "list")
	require.Zero(t, plain.end())
	require.NotContains(t, plain.said, "\x1b")
	require.NotContains(t, s.ok("instances", "list"), "\x1b")
}
