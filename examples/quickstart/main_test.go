package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

func TestP4P5QuickstartGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "quickstart")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	dsn := pgtest.Open(t)
	for range 2 { // it leaves nothing behind
		cmd := exec.CommandContext(ctx, program)
		cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn, "PGSTORE_TEST_DSN=")
		out, err = cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "█", "a QR code")
		require.Contains(t, string(out), "The phone has scanned it. The bot is device 4915000000001:1@s.whatsapp.net.")
		killed := regexp.MustCompile(`Ada wrote 100 messages\. The bot was killed when it had answered (\d+) of them\.`).FindSubmatch(out)
		require.NotNil(t, killed, string(out))
		answered, err := strconv.Atoi(string(killed[1]))
		require.NoError(t, err)
		require.GreaterOrEqual(t, answered, killAfter)
		require.Less(t, answered, half, "it was killed in the middle")
		require.Contains(t, string(out), "QR codes: 1\n"+
			"Messages to the bot: 200, answered: 200\nAnswers that Ada could not read: 0\nMessage keys used twice: 0\n")
	}
}
