package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

func TestQuickstartGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "quickstart")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	dsn := pgtest.Open(t)
	for range 2 { // it leaves nothing behind
		cmd := exec.Command(program)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn)
		out, err = cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "Worker 1 paired 2 devices. They sent each other 50 messages, then the worker was killed.")
		require.Contains(t, string(out), "Worker 2 opened both devices: 0 paired again, 0 sessions negotiated again.")
		require.Contains(t, string(out), "They went on for 100 messages. All of them could be read.")
	}
}
