package migrate_test

import (
	"bytes"
	"context"
	"database/sql"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// What is moved is judged by an unmodified client, which goes on talking with the same people, and by the server's record of all that left.

var ctx = context.Background()

const patience = 3 * time.Minute

// talk is a client, whose store is moved, and everybody it talks with.
type talk struct {
	testing.TB
	ctx     context.Context
	server  *waserver.Server
	account *waserver.Account
	friend  *waserver.Contact
	group   *waserver.Group
	device  *waserver.Device // once paired
	client  *whatsmeow.Client
	heard   chan string
	said    int
}

func newTalk(t testing.TB) *talk {
	t.Helper()
	within, cancel := context.WithTimeout(ctx, patience)
	t.Cleanup(cancel)
	server, err := waserver.New(waserver.Config{Grace: 300 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	k := &talk{TB: t, ctx: within, server: server, account: server.NewAccount(""), heard: make(chan string, 1000)}
	k.friend = server.NewContact(waserver.ContactConfig{Devices: 2})
	k.group = server.NewGroup(waserver.GroupConfig{}, k.account.Contact, k.friend)
	return k
}

// first is what all containers have.
type first interface {
	GetFirstDevice(ctx context.Context) (*store.Device, error)
}

// login connects a client on the first device of a store. One that is not paired is; one that shows a QR code although it was fails.
func (k *talk) login(c first) {
	k.Helper()
	d, err := c.GetFirstDevice(k.ctx)
	require.NoError(k, err)
	k.loginWith(d)
}

func (k *talk) loginWith(d *store.Device) {
	k.Helper()
	codes, synced := make(chan string, 10), make(chan struct{}, 100)
	k.client = whatsmeow.NewClient(d, nil)
	k.client.EnableDecryptedEventBuffer, k.client.SynchronousAck, k.client.EnableAutoReconnect, k.client.UseRetryMessageStore = true, true, false, true
	k.client.AddEventHandler(func(e any) {
		switch e := e.(type) {
		case *events.QR:
			codes <- e.Codes[0]
		case *events.AppStateSyncComplete:
			synced <- struct{}{}
		case *events.Message:
			if text := e.Message.GetConversation(); text != "" {
				k.heard <- text
			}
		case *events.UndecryptableMessage:
			k.Log("undecryptable at first:", e.Info.ID)
		}
	})
	require.NoError(k, k.server.Attach(k.client))
	k.Cleanup(k.client.Disconnect)
	require.NoError(k, k.client.Connect())
	if k.device == nil {
		var err error
		k.device, err = k.account.Scan(k.ctx, receive(k, codes))
		require.NoError(k, err)
		for range appstate.AllPatchNames {
			receive(k, synced)
		}
		require.NoError(k, k.account.WaitSynced(k.ctx, k.device))
	}
	require.NoError(k, k.device.WaitConnected(k.ctx))
	require.Empty(k, codes, "it was paired")
	require.NoError(k, k.server.WaitIdle(k.ctx))
}

// receive waits for what a channel brings.
func receive[T any](k *talk, from <-chan T) (got T) {
	k.Helper()
	select {
	case got = <-from:
	case <-k.ctx.Done():
		require.Fail(k, "nothing came")
	}
	return got
}

// logout disconnects the client as a bot that is told to end.
func (k *talk) logout() {
	k.Helper()
	k.client.Disconnect()
	require.NoError(k, k.server.Wait(k.ctx, func() bool { return !k.device.Connected() }))
}

// say says something to somebody, until all of the friend's devices have read it.
func (k *talk) say(to types.JID) (text string) {
	k.Helper()
	k.said++
	text = "said " + strconv.Itoa(k.said)
	_, err := k.client.SendMessage(k.ctx, to, waserver.Conversation(text))
	require.NoError(k, err)
	for _, d := range k.friend.Devices() {
		_, err = k.friend.WaitReceived(k.ctx, func(r waserver.Received) bool { return r.Text == text && r.Device == d.LID() })
		require.NoError(k, err)
	}
	return text
}

// converse says something to the friend and to the group, and has both answer.
func (k *talk) converse() {
	k.Helper()
	for to, back := range map[types.JID]types.JID{k.friend.LID(): k.account.LID(), k.group.JID(): k.group.JID()} {
		answer := "heard " + k.say(to)
		_, err := k.friend.SendText(back, answer)
		require.NoError(k, err)
		for receive(k, k.heard) != answer {
		}
	}
	require.NoError(k, k.server.WaitIdle(k.ctx))
}

// judge requires that no key was used twice, and that everybody could read everything.
func (k *talk) judge() {
	k.Helper()
	require.NoError(k, k.server.WaitIdle(k.ctx))
	require.Empty(k, k.server.Record().Reused())
	require.Empty(k, k.friend.Undecryptable())
	require.Empty(k, k.account.Undecryptable())
	require.Zero(k, k.friend.Duplicates())
	for _, sent := range k.server.Record().Sent() {
		require.Empty(k, sent.Failures, &sent)
	}
}

// chains are the sending chains to those who do not answer, so that no ratchet is stepped: the friend's second device, and the group. None is new while the session and
// the sender key are the same.
func (k *talk) chains() []string {
	var chains []string
	for _, sent := range k.server.Record().Sent() {
		if (sent.Recipient == k.friend.Devices()[1].LID() || sent.Recipient == k.group.JID()) && !slices.Contains(chains, sent.Chain) {
			chains = append(chains, sent.Chain)
		}
	}
	return chains
}

// backend is a database that sqlstore knows.
type backend struct {
	name, driver, dialect string
	address               func(testing.TB) string
}

var backends = []backend{
	{"SQLite", "sqlite", "sqlite3", func(t testing.TB) string {
		return "file:" + filepath.Join(t.TempDir(), "bot.db") + "?_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(off)&_pragma=busy_timeout(10000)"
	}},
	{"PostgreSQL", "pgx", "postgres", pgtest.Open},
}

// onEach runs a test with sqlstore on each of its databases.
func onEach(t *testing.T, test func(t *testing.T, of migrate.Sqlstore)) {
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, b.open(t))
		})
	}
}

func (b backend) open(t testing.TB) migrate.Sqlstore {
	t.Helper()
	db, err := sql.Open(b.driver, b.address(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, sqlstore.NewWithDB(db, b.dialect, nil).Upgrade(ctx))
	return migrate.Sqlstore{DB: db, Dialect: b.dialect}
}

// container is sqlstore on its database. It is not closed: that would close the database.
func container(of migrate.Sqlstore) *sqlstore.Container {
	return sqlstore.NewWithDB(of.DB, of.Dialect, nil)
}

// open opens a container of ours on a database.
func open(t testing.TB, dsn string, edit ...func(*pgstore.Config)) *pgstore.Container {
	t.Helper()
	cfg := pgstore.Config{DSN: dsn}
	for _, change := range edit {
		change(&cfg)
	}
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // or it was closed before
	return c
}

// fill is n bytes.
func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// scalar reads one value of a database.
func scalar[T any](t testing.TB, dsn, query string, args ...any) (v T) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer conn.Close(ctx) //nolint:errcheck // nothing is at stake any more
	require.NoError(t, conn.QueryRow(ctx, query, args...).Scan(&v))
	return v
}
