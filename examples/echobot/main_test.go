package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

// command builds the bot and makes a command of it.
func command(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	program := filepath.Join(t.TempDir(), "echobot")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+pgtest.Open(t), "PGSTORE_TEST_DSN=")
	return cmd
}

func TestDemoShowsAConversation(t *testing.T) {
	t.Parallel()
	out, err := command(t.Context(), t, "-demo").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "█", "a QR code")
	require.Contains(t, string(out), "The phone has scanned the code: the bot is device 4915000000001:1@s.whatsapp.net\n"+
		"Ada: Hello?\nBot: Hello?\n"+
		"Ada: Is anybody there?\nBot: Is anybody there?\n"+
		"Ada: You are just repeating what I say.\nBot: You are just repeating what I say.\n")
}

func TestDemoOnAServerThatRunsAlready(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Close()) }()
	account, ada := server.NewAccount(""), server.NewContact(waserver.ContactConfig{})
	endpoint, err := json.Marshal(server.Endpoint())
	require.NoError(t, err)

	cmd := command(ctx, t, "-demo", "-endpoint", string(endpoint))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "2@") {
	}
	_, err = account.Scan(ctx, lines.Text())
	require.NoError(t, err)
	_, err = ada.SendText(account.LID(), "hello")
	require.NoError(t, err)
	_, err = ada.WaitReceived(ctx, waserver.Text("hello"))
	require.NoError(t, err)
	require.NoError(t, server.WaitIdle(ctx))
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	for lines.Scan() {
	}
	require.NoError(t, cmd.Wait())
}
