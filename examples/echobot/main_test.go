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
	"go.mau.fi/whatsmeow/proto/waE2E"

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

func TestDemoPrintsOnlyItsOwn(t *testing.T) {
	t.Parallel()
	if exec.Command("docker", "info").Run() != nil {
		pgtest.Missing(t, "Docker")
	}
	cmd := command(t.Context(), t, "-demo")
	cmd.Env = append(cmd.Env, "DATABASE_URL=")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, said.String())
	require.Regexp(t, `\ADatabase: .* in Docker\n`, string(out))
	require.Empty(t, said.String())
}

func TestBotWithoutADatabaseSaysWhatToDo(t *testing.T) {
	t.Parallel()
	cmd := command(t.Context(), t)
	cmd.Env = append(cmd.Env, "DATABASE_URL=")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 2, cmd.ProcessState.ExitCode())
	require.Equal(t, "set DATABASE_URL to a PostgreSQL, or use -demo\n", string(out))
}

func TestBotEndsWhenItsPairingFails(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Close()) }()
	endpoint, err := json.Marshal(server.Endpoint())
	require.NoError(t, err)

	cmd := command(ctx, t, "-demo", "-endpoint", string(endpoint))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var said strings.Builder
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "2@") {
	}
	server.CutAll() // as WhatsApp does when the codes are used up
	for lines.Scan() {
	}
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Contains(t, said.String(), "pairing has failed: timeout")
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
	reply := "hello, as a reply"
	for text, message := range map[string]*waE2E.Message{
		"hello": waserver.Conversation("hello"),
		reply:   {ExtendedTextMessage: &waE2E.ExtendedTextMessage{Text: &reply}},
	} {
		_, err = ada.Send(account.LID(), message)
		require.NoError(t, err)
		_, err = ada.WaitReceived(ctx, waserver.Text(text))
		require.NoError(t, err)
	}
	require.NoError(t, server.WaitIdle(ctx))
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	for lines.Scan() {
	}
	require.NoError(t, cmd.Wait())
}
