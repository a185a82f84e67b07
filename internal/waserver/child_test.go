package waserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// childOf is the environment variable that makes the test binary a client instead: a [childConfig].
const childOf = "WASERVER_TEST_CHILD"

type childConfig struct {
	Endpoint waserver.Endpoint
	Store    string
}

// runChild is a client that shows its QR code on standard output and answers everybody, until it is killed.
func runChild(config string) error {
	var cfg childConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	ctx := context.Background()
	on, err := openContainer(ctx, cfg.Store)
	if err != nil {
		return err
	}
	device, err := on.GetFirstDevice(ctx)
	if err != nil {
		return err
	}
	client := whatsmeow.NewClient(device, nil)
	client.EnableDecryptedEventBuffer, client.SynchronousAck = true, true
	client.AddEventHandler(func(event any) {
		switch e := event.(type) {
		case *events.QR:
			fmt.Println(e.Codes[0])
		case *events.Message:
			if text := e.Message.GetConversation(); text != "" && !e.Info.IsFromMe {
				_, _ = client.SendMessage(ctx, e.Info.Chat, waserver.Conversation("re: "+text))
			}
		}
	})
	if err = cfg.Endpoint.Attach(client); err != nil {
		return err
	}
	if err = client.Connect(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin) // until the parent is gone, if it does not kill us
	return err
}

// child starts a client in a process of its own.
func child(ctx context.Context, t *testing.T, cfg childConfig) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	config, err := json.Marshal(cfg)
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childOf+"="+string(config))
	cmd.Stderr = os.Stderr
	_, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, bufio.NewReader(out)
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

// TestClientInAnotherProcess kills a client again and again, and has it come back.
func TestClientInAnotherProcess(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account := server.NewAccount("")
	friend := server.NewContact(waserver.ContactConfig{})
	linked := make(chan *waserver.Device, 1)
	account.OnLinked(func(d *waserver.Device) { linked <- d })
	cfg := childConfig{server.Endpoint(), filepath.Join(t.TempDir(), "store.db")}

	cmd, out := child(ctx, t, cfg)
	code, err := out.ReadString('\n')
	require.NoError(t, err)
	device, err := account.Scan(ctx, code)
	require.NoError(t, err)
	select {
	case d := <-linked:
		require.Equal(t, device, d)
	case <-ctx.Done():
		require.Fail(t, "the phone was not told of the new client")
	}
	for round := range 4 {
		what := fmt.Sprint("round ", round)
		_, err = friend.SendText(account.LID(), what)
		require.NoError(t, err)
		_, err = friend.WaitReceived(ctx, waserver.Text("re: "+what))
		require.NoError(t, err)
		kill(t, cmd)
		_, err = friend.SendText(account.LID(), what+" while away")
		require.NoError(t, err)
		cmd, _ = child(ctx, t, cfg)
		_, err = friend.WaitReceived(ctx, waserver.Text("re: "+what+" while away"))
		require.NoError(t, err)
	}
	kill(t, cmd)
	stats := server.Stats()
	require.Equal(t, 1, stats.QRCodes)
	require.Equal(t, 1, stats.Pairings)
	require.Equal(t, 5, stats.Logins)
	require.Zero(t, stats.RefusedLogins)
	require.Empty(t, friend.Undecryptable())
	require.Empty(t, server.Record().Reused())
}
