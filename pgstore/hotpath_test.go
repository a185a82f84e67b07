package pgstore_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// watch counts the statements that are sent with a context marked by hot, and can hold up statements.
type watch struct {
	statements atomic.Int64
	gate       atomic.Pointer[gate]
}

// gate holds up statements that contain a text.
type gate struct {
	text   string
	opened chan struct{}
	held   atomic.Int64 // how many have come to it
}

type hotKey struct{}

func hot(ctx context.Context) context.Context { return context.WithValue(ctx, hotKey{}, true) }

func (w *watch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if ctx.Value(hotKey{}) != nil {
		w.statements.Add(1)
	}
	if g := w.gate.Load(); g != nil && strings.Contains(data.SQL, g.text) {
		g.held.Add(1)
		<-g.opened
	}
	return ctx
}

func (w *watch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// hang holds up the database until the returned function is called.
func (w *watch) hang() (release func()) {
	_, release = w.hold("")
	return release
}

// hold holds up the statements that contain text.
func (w *watch) hold(text string) (g *gate, release func()) {
	g = &gate{text: text, opened: make(chan struct{})}
	w.gate.Store(g)
	return g, sync.OnceFunc(func() {
		w.gate.Store(nil)
		close(g.opened)
	})
}

func openWatched(t testing.TB, dsn string, edit ...func(*pgstore.Config)) (*pgstore.Container, *watch) {
	t.Helper()
	pool, w := watchedPool(t, dsn)
	return reopen(t, "", append(edit, func(cfg *pgstore.Config) { cfg.Pool = pool })...), w
}

func watchedPool(t testing.TB, dsn string) (*pgxpool.Pool, *watch) {
	t.Helper()
	w := new(watch)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = w
	cfg.MaxConns = 4
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool, w
}

// talker is a warm instance just after a restart, and somebody it talks to.
type talker struct {
	c            *pgstore.Container
	w            *watch
	d            *store.Device
	ours, theirs *signaltest.Peer
	group        types.JID
	theirPN      types.JID
}

func warm(t testing.TB, edit ...func(*pgstore.Config)) *talker {
	t.Helper()
	dsn := pgtest.Open(t)
	before := reopen(t, dsn)
	d := pair(t, before.NewDevice())
	theirDevice := signaltest.NewMemoryDevice(before.NewDevice())
	tk := &talker{theirs: signaltest.NewPeer(theirDevice), group: types.NewJID("12345", types.GroupServer), theirPN: *theirDevice.ID}
	tk.ours = signaltest.NewPeer(d)
	signaltest.Meet(t, tk.theirs, tk.ours)
	for _, p := range []*signaltest.Peer{tk.ours, tk.theirs} {
		other := tk.ours
		if p == tk.ours {
			other = tk.theirs
		}
		distribution, err := p.JoinGroup(ctx, tk.group)
		require.NoError(t, err)
		require.NoError(t, other.Welcome(ctx, tk.group, p.Address(), distribution))
	}
	require.NoError(t, before.LIDMap.PutLIDMapping(ctx, theirDevice.LID, tk.theirPN))
	_, _, err := d.Contacts.PutPushName(ctx, tk.theirPN.ToNonAD(), "Ada")
	require.NoError(t, err)
	require.NoError(t, d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: tk.theirPN, Token: []byte("t"), Timestamp: time.Unix(1, 0)}))
	require.NoError(t, d.NCTSalt.PutNCTSalt(ctx, []byte("salt")))
	require.NoError(t, before.Close())

	tk.c, tk.w = openWatched(t, dsn, edit...)
	tk.d, err = tk.c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	tk.ours = signaltest.NewPeer(tk.d)
	return tk
}

// everything a bot does with a message, from its arrival to its answer, alone and in a group.
func (tk *talker) everything(t testing.TB, ctx context.Context) {
	t.Helper()
	in, err := tk.theirs.Send(context.Background(), []types.JID{tk.ours.Address()}, []byte("in"))
	require.NoError(t, err)
	_, err = tk.ours.Receive(ctx, tk.theirs.Address(), in[tk.ours.Address()])
	require.NoError(t, err)
	// The client sends to the phone number, and finds the LID.
	out, err := tk.ours.Send(ctx, []types.JID{tk.theirPN}, []byte("out"))
	require.NoError(t, err)
	_, err = tk.theirs.Receive(context.Background(), tk.ours.Address(), out[tk.theirPN])
	require.NoError(t, err)
	inGroup, err := tk.theirs.SendGroup(context.Background(), tk.group, []byte("in"))
	require.NoError(t, err)
	_, err = tk.ours.ReceiveGroup(ctx, tk.group, tk.theirs.Address(), inGroup)
	require.NoError(t, err)
	outGroup, err := tk.ours.SendGroup(ctx, tk.group, []byte("out"))
	require.NoError(t, err)
	_, err = tk.theirs.ReceiveGroup(context.Background(), tk.group, tk.ours.Address(), outGroup)
	require.NoError(t, err)
	// What the client asks and stores around it.
	require.NoError(t, tk.c.LIDMap.PutLIDMapping(ctx, tk.theirs.Device.LID, tk.theirPN))
	changed, _, err := tk.d.Contacts.PutPushName(ctx, tk.theirPN.ToNonAD(), "Ada")
	require.NoError(t, err)
	require.False(t, changed)
	token, err := tk.d.PrivacyTokens.GetPrivacyToken(ctx, tk.theirPN)
	require.NoError(t, err)
	require.NotNil(t, token)
	salt, err := tk.d.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.NotNil(t, salt)
	require.NoError(t, tk.d.EventBuffer.DeleteOldOutgoingEvents(ctx))
}

func TestHotPathSendsNoStatement(t *testing.T) {
	t.Parallel()
	tk := warm(t)
	for range 5 {
		tk.everything(t, hot(ctx))
	}
	require.Zero(t, tk.w.statements.Load())
	_, _, err := tk.d.MsgSecrets.GetMessageSecret(hot(ctx), tk.theirPN, tk.theirPN, "absent")
	require.NoError(t, err)
	require.EqualValues(t, 1, tk.w.statements.Load(), "the tracer does count")
}

// While every statement hangs, a flush and the read of a value that is not in memory among them, messages are encrypted and decrypted.
func TestP7HotPathHoldsNoLockAcrossIO(t *testing.T) {
	t.Parallel()
	tk := warm(t, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
	release := tk.w.hang()
	defer release()
	asked := make(chan error, 1)
	go func() {
		_, _, err := tk.d.MsgSecrets.GetMessageSecret(hot(ctx), tk.theirPN, tk.theirPN, "absent")
		asked <- err
	}()
	for range 5 {
		tk.everything(t, ctx)
	}
	require.Eventually(t, func() bool { return tk.w.statements.Load() == 1 }, 10*time.Second, time.Millisecond)
	require.Empty(t, asked, "the read hangs all the while")
	require.Positive(t, tk.c.Stats().Batcher.Pending)
	release()
	require.NoError(t, <-asked)
	require.NoError(t, tk.c.Flush(ctx))
}
