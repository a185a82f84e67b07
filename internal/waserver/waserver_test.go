package waserver_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"
	"go.uber.org/goleak"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// How long and how often tests look at what no event tells.
const (
	patience   = 4 * time.Minute // two cores are shared with much else; less than five, which a single test is given, so that it fails itself
	eventually = time.Minute
	tick       = 10 * time.Millisecond
)

func TestMain(m *testing.M) {
	if config := os.Getenv(childOf); config != "" {
		if err := runChild(config); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(pgtest.Main(m.Run,
		// A frame that is read at the moment at which the client disconnects stays in the hands of the goroutine that read it:
		// the client's FrameSocket sends it into a channel from which nobody receives any more.
		goleak.IgnoreTopFunction("go.mau.fi/whatsmeow/socket.(*FrameSocket).frameComplete"),
		// It waits a minute for more history, whether or not the client is connected.
		goleak.IgnoreTopFunction("go.mau.fi/whatsmeow.(*Client).handleHistorySyncNotificationLoop")))
}

// testBundle is a server with an account and the client that is to be its device.
type testBundle struct {
	server  *waserver.Server
	account *waserver.Account
	device  *waserver.Device // once paired
	client  *testClient
}

// testClient is a whatsmeow client and what it has seen.
type testClient struct {
	*whatsmeow.Client
	container *container
	seen      struct {
		sync.Mutex
		events  []any
		changed chan struct{}
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newServer(t *testing.T) *waserver.Server {
	t.Helper()
	server, err := waserver.New(waserver.Config{Grace: 300 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server
}

// setup makes a server and a client that is paired with an account of it and logged in.
func setup(t *testing.T) *testBundle {
	t.Helper()
	server := newServer(t)
	b := &testBundle{server: server, account: server.NewAccount("")}
	b.client = newClient(t, server)
	b.device = b.client.pair(t, b.account)
	return b
}

// container is sqlstore and the database under it.
type container struct {
	*sqlstore.Container
	db *sql.DB
}

// newContainer is sqlstore on a database of its own.
func newContainer(t *testing.T) *container {
	t.Helper()
	c, err := openContainer(context.Background(), filepath.Join(t.TempDir(), "store.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func openContainer(ctx context.Context, path string) (*container, error) {
	db, err := sql.Open("sqlite", "file:"+path+
		"?_txlock=immediate&_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(off)&_pragma=busy_timeout(10000)")
	if err != nil {
		return nil, err
	}
	c := &container{sqlstore.NewWithDB(db, "sqlite3", nil), db}
	return c, c.Upgrade(ctx)
}

func newClient(t *testing.T, server *waserver.Server) *testClient {
	t.Helper()
	c := newContainer(t)
	return clientOn(t, server, c, c.NewDevice())
}

// clientOn is a client for a device. It is disconnected when the test ends, before its store is closed.
func clientOn(t *testing.T, server *waserver.Server, on *container, device *store.Device) *testClient {
	t.Helper()
	var log waLog.Logger
	if testing.Verbose() {
		log = waLog.Stdout(t.Name(), "WARN", false)
	}
	c := &testClient{Client: whatsmeow.NewClient(device, log), container: on}
	c.EnableDecryptedEventBuffer = true
	c.SynchronousAck = true
	c.seen.changed = make(chan struct{})
	c.AddEventHandler(func(event any) {
		c.seen.Lock()
		defer c.seen.Unlock()
		c.seen.events = append(c.seen.events, event)
		close(c.seen.changed)
		c.seen.changed = make(chan struct{})
	})
	require.NoError(t, server.Attach(c.Client))
	t.Cleanup(c.Disconnect)
	return c
}

// shows connects the client, which is not paired, and returns a QR code that it shows.
func (c *testClient) shows(ctx context.Context, t *testing.T) string {
	t.Helper()
	require.NoError(t, c.Connect())
	return waitFor[*events.QR](ctx, t, c).Codes[0]
}

// pair pairs the client by QR code and waits until it has logged in and has the app state.
func (c *testClient) pair(t *testing.T, account *waserver.Account) *waserver.Device {
	t.Helper()
	ctx := testContext(t)
	device, err := account.Scan(ctx, c.shows(ctx, t))
	require.NoError(t, err)
	waitFor[*events.PairSuccess](ctx, t, c)
	waitFor[*events.Connected](ctx, t, c)
	require.NoError(t, device.WaitConnected(ctx))
	c.waitSynced(ctx, t)
	require.NoError(t, account.WaitSynced(ctx, device))
	return device
}

// waitSynced waits for the end of the first fetch of the app state.
func (c *testClient) waitSynced(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, name := range appstate.AllPatchNames {
		waitFor(ctx, t, c, func(e *events.AppStateSyncComplete) bool { return e.Name == name })
	}
}

// reconnectByHand makes the client connect again from an event handler, until ctx ends. A connection that is cut before it is
// logged in is no event.
func (c *testClient) reconnectByHand(ctx context.Context) {
	c.EnableAutoReconnect = false
	c.AddEventHandler(func(event any) {
		if _, ok := event.(*events.Disconnected); !ok {
			return
		}
		go func() {
			for err := c.Connect(); err != nil && !errors.Is(err, whatsmeow.ErrAlreadyConnected) && ctx.Err() == nil; err = c.Connect() {
				time.Sleep(tick)
			}
		}()
	})
}

// all are the events of a type that the client has seen.
func all[E any](c *testClient) []E {
	c.seen.Lock()
	defer c.seen.Unlock()
	var found []E
	for _, event := range c.seen.events {
		if e, ok := event.(E); ok {
			found = append(found, e)
		}
	}
	return found
}

// waitFor waits for an event of a type that fits.
func waitFor[E any](ctx context.Context, t *testing.T, c *testClient, fits ...func(E) bool) E {
	t.Helper()
	for {
		c.seen.Lock()
		changed := c.seen.changed
		c.seen.Unlock()
		for _, e := range all[E](c) {
			if len(fits) == 0 || fits[0](e) {
				return e
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			var none E
			require.Failf(t, "event did not come", "%T", none)
		}
	}
}

// text fits message events with a text.
func text(want string) func(*events.Message) bool {
	return func(e *events.Message) bool { return e.Message.GetConversation() == want }
}

// texts are the texts of the messages that the client has seen.
func (c *testClient) texts() []string {
	var found []string
	for _, e := range all[*events.Message](c) {
		if text := e.Message.GetConversation(); text != "" {
			found = append(found, text)
		}
	}
	return found
}

func (c *testClient) say(ctx context.Context, t *testing.T, to types.JID, what string) whatsmeow.SendResponse {
	t.Helper()
	response, err := c.SendMessage(ctx, to, &waE2E.Message{Conversation: &what})
	require.NoError(t, err)
	return response
}

// hear has a contact write to the account, and waits until the client has it.
func (b *testBundle) hear(ctx context.Context, t *testing.T, from *waserver.Contact, what string) {
	t.Helper()
	_, err := from.SendText(b.account.LID(), what)
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text(what))
}

// tell has the client write to a contact, and waits until one of the contact's devices has it.
func (b *testBundle) tell(ctx context.Context, t *testing.T, to *waserver.Contact, what string) {
	t.Helper()
	b.client.say(ctx, t, to.LID(), what)
	_, err := to.WaitReceived(ctx, waserver.Text(what))
	require.NoError(t, err)
}

// requireClean requires that nothing happened that a correct client and store would not do.
func (b *testBundle) requireClean(t *testing.T) {
	t.Helper()
	stats := b.server.Stats()
	require.Empty(t, b.server.Record().Reused())
	require.Zero(t, stats.RefusedLogins, "refused logins")
	require.Zero(t, stats.BadIdentities, "bad identities")
	require.Zero(t, stats.Nacks, "nacks")
	require.Empty(t, stats.UnknownNodes)
}
