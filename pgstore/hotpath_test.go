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

// watch counts the statements that are sent with a context marked by hot, can hold up statements, and can let a context end with one.
type watch struct {
	statements atomic.Int64
	gate       atomic.Pointer[gate]
	ending     atomic.Pointer[ending]
}

// ending cancels a context at a moment: statements begin and end, and it is so many of both until then.
type ending struct {
	left   atomic.Int64
	cancel context.CancelFunc
}

func (w *watch) moment() {
	if e := w.ending.Load(); e != nil && e.left.Add(-1) == -1 {
		e.cancel()
	}
}

// endAt returns a context that is cancelled at a moment.
func (w *watch) endAt(moment int) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	e := &ending{cancel: cancel}
	e.left.Store(int64(moment))
	w.ending.Store(e)
	return ctx, cancel
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
	w.moment()
	return ctx
}

func (w *watch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { w.moment() }

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
	pool         *pgxpool.Pool
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

	tk.pool, tk.w = watchedPool(t, dsn)
	tk.c = reopen(t, "", append(edit, func(cfg *pgstore.Config) { cfg.Pool = tk.pool })...)
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

// A context ends when a statement begins or ends, at every such moment of a conversation, and all calls after it have one that has ended. What
// came in and was not read is read when it comes again, what was not sent has used no key that is used again, and another container goes on
// from what memory held.
func TestP4P7AContextThatEndsInTheMiddleOfAConversationLosesNothing(t *testing.T) {
	t.Parallel()
	for mode, sends := range map[string]pgstore.SendMode{"Durable": pgstore.Durable, "WriteBehind": pgstore.WriteBehind} {
		for memory, budget := range map[string]int64{"resident": 0, "evicting": 1} {
			t.Run(mode+" "+memory, func(t *testing.T) {
				t.Parallel()
				config := func(cfg *pgstore.Config) {
					cfg.Sends, cfg.MemoryBudget = sends, budget
					cfg.FlushInterval = time.Hour // statements are those that somebody waits for
				}
				tk := warm(t, config)
				for moment := 0; ; moment++ {
					ending, stop := tk.w.endAt(moment)
					tk.endingConversation(t, ending)
					over := ending.Err() == nil
					stop()
					tk.w.ending.Store(nil)

					held := tk.records(t)
					require.NoError(t, tk.c.Flush(ctx))
					require.Equal(t, held, tk.records(t))
					pool := tk.pool
					require.NoError(t, tk.c.Close())
					tk.c = reopen(t, "", config, func(cfg *pgstore.Config) { cfg.Pool = pool })
					var err error
					tk.d, err = tk.c.GetDevice(ctx, *tk.d.ID)
					require.NoError(t, err)
					tk.ours = signaltest.NewPeer(tk.d)
					require.Equal(t, held, tk.records(t), "moment %d", moment)
					tk.everything(t, ctx)
					if over {
						require.Greater(t, moment, 4, "a statement has two")
						t.Logf("cancelled at %d moments", moment)
						return
					}
				}
			})
		}
	}
}

// endingConversation is one, alone and in a group, with a context that may end. What could not be read comes again, with one that does not.
// Each part finds evicted what may be.
func (tk *talker) endingConversation(t testing.TB, ending context.Context) {
	t.Helper()
	ended := func(err error) {
		t.Helper()
		require.ErrorIs(t, ending.Err(), context.Canceled, err)
		require.ErrorIs(t, err, context.Canceled)
	}
	read := func(receive func(context.Context) ([]byte, error)) {
		t.Helper()
		got, err := receive(ending)
		if err != nil {
			ended(err)
			got, err = receive(ctx)
		}
		require.NoError(t, err)
		require.Equal(t, "in", string(got))
		require.NoError(t, tk.c.Flush(ctx))
	}
	in, err := tk.theirs.Send(ctx, []types.JID{tk.ours.Address()}, []byte("in"))
	require.NoError(t, err)
	read(func(ctx context.Context) ([]byte, error) {
		return tk.ours.Receive(ctx, tk.theirs.Address(), in[tk.ours.Address()])
	})
	out, err := tk.ours.Send(ending, []types.JID{tk.theirs.Address()}, []byte("out"))
	if err != nil {
		ended(err)
	} else {
		_, err = tk.theirs.Receive(ctx, tk.ours.Address(), out[tk.theirs.Address()])
		require.NoError(t, err)
	}
	require.NoError(t, tk.c.Flush(ctx))
	inGroup, err := tk.theirs.SendGroup(ctx, tk.group, []byte("in"))
	require.NoError(t, err)
	read(func(ctx context.Context) ([]byte, error) {
		return tk.ours.ReceiveGroup(ctx, tk.group, tk.theirs.Address(), inGroup)
	})
	outGroup, err := tk.ours.SendGroup(ending, tk.group, []byte("out"))
	if err != nil {
		ended(err)
	} else {
		_, err = tk.theirs.ReceiveGroup(ctx, tk.group, tk.ours.Address(), outGroup)
		require.NoError(t, err)
	}
}

// records are the ratchets of the talker.
func (tk *talker) records(t testing.TB) (records []string) {
	t.Helper()
	session, err := tk.d.Sessions.GetSession(ctx, tk.theirs.Address().SignalAddress().String())
	require.NoError(t, err)
	records = append(records, string(session))
	for _, p := range []*signaltest.Peer{tk.ours, tk.theirs} {
		key, err := tk.d.SenderKeys.GetSenderKey(ctx, tk.group.String(), p.Address().SignalAddress().String())
		require.NoError(t, err)
		records = append(records, string(key))
	}
	return records
}
