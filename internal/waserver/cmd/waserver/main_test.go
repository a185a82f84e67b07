package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	signallogger "go.mau.fi/libsignal/logger"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestMain(m *testing.M) {
	signallogger.Debug() // libsignal makes its default logger at the first use, without a lock
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.mau.fi/whatsmeow/socket.(*FrameSocket).frameComplete"))
}

// process is the server in a process of its own.
type process struct {
	*testing.T
	in       io.Writer
	out      *bufio.Scanner
	endpoint waserver.Endpoint
}

func start(t *testing.T) *process {
	t.Helper()
	program := filepath.Join(t.TempDir(), "waserver")
	built, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(built))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // then it is killed, and nothing waits for it any more
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{T: t, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() { // it ends when there is nothing more to do
		require.NoError(t, in.Close())
		_, err := io.Copy(io.Discard, out)
		require.NoError(t, err)
		require.NoError(t, cmd.Wait())
	})
	require.True(t, p.out.Scan())
	require.NoError(t, json.Unmarshal(p.out.Bytes(), &p.endpoint))
	return p
}

// write gives the server a line.
func (p *process) write(line string) {
	p.Helper()
	_, err := fmt.Fprintln(p.in, line)
	require.NoError(p, err)
}

// read reads lines of the server up to one that holds a text.
func (p *process) read(want string) string {
	p.Helper()
	for p.out.Scan() {
		if strings.Contains(p.out.Text(), want) {
			return p.out.Text()
		}
	}
	require.Fail(p, "the server did not say: "+want)
	return ""
}

// client connects a new client, whose events go into a channel.
func (p *process) client() (*whatsmeow.Client, <-chan any) {
	p.Helper()
	backend := storetest.SqlstoreSQLite()
	container := backend.Open(p, backend.Database(p))
	p.Cleanup(func() { require.NoError(p, container.Close()) })
	client := whatsmeow.NewClient(container.NewDevice(), nil)
	seen := make(chan any, 100)
	client.AddEventHandler(func(event any) {
		select {
		case seen <- event:
		case <-p.Context().Done(): // nobody waits for events any more
		}
	})
	require.NoError(p, p.endpoint.Attach(client))
	require.NoError(p, client.Connect())
	p.Cleanup(client.Disconnect)
	return client, seen
}

func await[E any](t *testing.T, seen <-chan any, fits func(E) bool) E {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case event := <-seen:
			if e, ok := event.(E); ok && fits(e) {
				return e
			}
		case <-late:
			require.Fail(t, "event did not come")
		}
	}
}

func TestAPersonPairsAndTalks(t *testing.T) {
	t.Parallel()
	p := start(t)
	number := regexp.MustCompile(`\+(\d+)`)
	found := number.FindAllStringSubmatch(p.read("The account is"), -1)
	require.Len(t, found, 2)
	account, ada := found[0][1], types.NewJID(found[1][1], types.DefaultUserServer)

	client, seen := p.client()
	qr := await(t, seen, func(*events.QR) bool { return true })
	p.write(qr.Codes[0])
	p.read("is linked")
	p.write("hello")
	await(t, seen, func(e *events.Message) bool { return e.Message.GetConversation() == "hello" })
	_, err := client.SendMessage(context.Background(), ada, waserver.Conversation("hi Ada"))
	require.NoError(t, err)
	p.read("Ada was sent: hi Ada")
	await(t, seen, func(e *events.Message) bool { return e.Message.GetConversation() == "you said: hi Ada" })

	second, seen := p.client()
	await(t, seen, func(*events.QR) bool { return true })
	p.write("ABCD-1234")
	p.read("that failed")
	code, err := second.PairPhone(context.Background(), account, true, whatsmeow.PairClientChrome, "Chrome (Linux)")
	require.NoError(t, err)
	p.write(code)
	p.read("is linked")
}
