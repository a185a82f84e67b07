package pgstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// rowJSON is what stands beside a record.
type rowJSON struct {
	Record    string
	Ceiling   uint64
	Stepped   uint64
	Abandoned []string
}

func (r rowJSON) counter(t testing.TB) uint64 {
	var parsed struct {
		SessionState struct {
			SenderChain struct{ ChainKey struct{ Index uint64 } }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(r.Record), &parsed))
	return parsed.SessionState.SenderChain.ChainKey.Index
}

// sender is a device that talks with one peer, and its processes.
type sender struct {
	testing.TB
	dsn  string
	c    *pgstore.Container
	d    *store.Device
	ours *signaltest.Peer
	peer *signaltest.Peer
}

func newSender(t testing.TB, edit ...func(*pgstore.Config)) *sender {
	c, dsn := open(t, edit...)
	s := &sender{TB: t, dsn: dsn, c: c, d: pair(t, c.NewDevice()), peer: memoryPeers(1)[0]}
	s.ours = signaltest.NewPeer(s.d)
	signaltest.Meet(t, s.peer, s.ours)
	require.NoError(t, c.Flush(ctx))
	return s
}

func (s *sender) send() {
	s.Helper()
	s.arrives(s.ours.Send(ctx, []types.JID{s.peer.Address()}, []byte("message")))
}

// next is a process after one that died after its last flush, or that ended cleanly.
func (s *sender) next(cleanly bool, edit ...func(*pgstore.Config)) {
	s.Helper()
	require.NoError(s, s.c.Close())
	if !cleanly {
		require.NoError(s, execSQL(s, s.dsn, `UPDATE whatsmeow.instances SET clean_at_epoch = 0`))
	}
	s.c = reopen(s, s.dsn, edit...)
	var err error
	s.d, err = s.c.GetDevice(ctx, *s.d.ID)
	require.NoError(s, err)
	s.ours = signaltest.NewPeer(s.d)
}

func (s *sender) row() (r rowJSON) {
	s.Helper()
	require.NoError(s, s.c.Flush(ctx))
	data := scalar[string](s, s.dsn, `SELECT data::text FROM whatsmeow.auth_keys WHERE key_type = 'session' AND key_id = $1`, s.peer.Address().SignalAddress().String())
	require.NoError(s, json.Unmarshal([]byte(data), &r))
	return r
}

func TestP4RowsReserveCountersAhead(t *testing.T) {
	t.Parallel()
	s := newSender(t, func(cfg *pgstore.Config) { cfg.Reserve = 7 })
	s.send()
	first := s.row()
	require.Equal(t, first.counter(t)+7, first.Ceiling)
	s.next(true, func(cfg *pgstore.Config) { cfg.Reserve = 1 })
	s.send()
	second := s.row()
	require.Equal(t, first.counter(t)+1, second.counter(t), "a clean end burns nothing")
	require.Equal(t, first.Ceiling, second.Ceiling, "a ceiling never goes down for its chain")
}

func TestP4AnUncleanEndMovesTheChainToItsCeiling(t *testing.T) {
	t.Parallel()
	s := newSender(t, func(cfg *pgstore.Config) { cfg.Reserve = 7 })
	s.send()
	before := s.row()
	s.next(false)
	s.next(true) // neither used nor written
	s.next(true)
	s.send()
	after := s.row()
	require.Equal(t, before.Ceiling+1, after.counter(t), "whoever owned it in between")
	require.Equal(t, before.Ceiling-before.counter(t), after.Stepped)
	s.next(true)
	s.send()
	require.Equal(t, after.counter(t)+1, s.row().counter(t), "and only once")
}

// Gaps with nothing delivered in between add up, and a receiver skips 2,000 keys: before that the chain is abandoned.
func TestP4GapsDoNotAddUpToMoreThanAReceiverSkips(t *testing.T) {
	t.Parallel()
	wide := func(cfg *pgstore.Config) { cfg.Reserve = 900 }
	s := newSender(t, wide)
	s.send()
	for range 5 {
		_, err := s.ours.Send(ctx, []types.JID{s.peer.Address()}, []byte("lost"))
		if err != nil { // there is none to send on: a bundle is fetched
			node, err := s.ours.Meet(ctx, s.peer, []byte("anew"))
			require.NoError(t, err)
			_, err = s.peer.Receive(ctx, s.ours.Address(), node)
			require.NoError(t, err)
			s.send()
			return
		}
		require.Less(t, s.row().Stepped, uint64(2000))
		s.next(false, wide)
	}
	require.Fail(t, "the chain was never abandoned")
}

// An import whose counters are exact says so by an instance that is cleanly left.
func TestP4AfterACleanEndARowWithoutACeilingIsExact(t *testing.T) {
	t.Parallel()
	s := newSender(t)
	s.send()
	before := s.row()
	require.NoError(t, s.c.Close())
	require.NoError(t, execSQL(t, s.dsn, `UPDATE whatsmeow.auth_keys SET data = data - 'ceiling' WHERE key_type = 'session'`))
	s.next(true)
	s.send()
	after := s.row()
	require.Equal(t, before.counter(t)+1, after.counter(t))
	require.Empty(t, after.Abandoned)
}

// What an older version of the library, or an import, has written says nothing of what has left.
func TestP4AfterAnUncleanEndARowWithoutACeilingIsNotSentOn(t *testing.T) {
	t.Parallel()
	for name, anew := range map[string]func(*sender) (*waBinary.Node, error){
		"a retry answer begins anew": func(s *sender) (*waBinary.Node, error) { return s.ours.Meet(ctx, s.peer, []byte("anew")) },
		"a send begins anew":         func(s *sender) (*waBinary.Node, error) { return s.ours.SendAnew(ctx, s.peer, []byte("anew")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testAbandoned(t, anew)
		})
	}
}

func testAbandoned(t *testing.T, anew func(*sender) (*waBinary.Node, error)) {
	s := newSender(t)
	s.send()
	written := func() map[types.JID]*waBinary.Node {
		in, err := s.peer.Send(ctx, []types.JID{s.ours.Address()}, []byte("in"))
		require.NoError(t, err)
		return in
	}
	read := func(in map[types.JID]*waBinary.Node) {
		_, err := s.ours.Receive(ctx, s.peer.Address(), in[s.ours.Address()])
		require.NoError(t, err)
	}
	read(written())
	late := written() // on the same chain
	s.send()
	require.NoError(t, s.c.Flush(ctx))
	require.NoError(t, execSQL(t, s.dsn, `UPDATE whatsmeow.auth_keys SET data = data - 'ceiling' WHERE key_type = 'session'`))
	s.next(false)
	address := s.peer.Address().SignalAddress().String()
	has, err := s.d.Sessions.HasSession(ctx, address)
	require.NoError(t, err)
	require.False(t, has)
	many, err := s.d.Sessions.GetManySessions(ctx, []string{address})
	require.NoError(t, err)
	require.Nil(t, many[address])
	read(late) // it is there for decrypts
	has, err = s.d.Sessions.HasSession(ctx, address)
	require.NoError(t, err)
	require.False(t, has, "and still not for sends")
	node, err := anew(s)
	require.NoError(t, err)
	_, err = s.peer.Receive(ctx, s.ours.Address(), node)
	require.NoError(t, err)
	s.send()
	row := s.row()
	require.Len(t, row.Abandoned, 1)
	require.Contains(t, row.Record, row.Abandoned[0], "what the peer may still write on is kept beneath")
	read(written()) // a step of the ratchet
	s.send()
}

// A row that was moved before it was used takes its unclean end along.
func TestP4AMigrationForgetsNoUncleanEnd(t *testing.T) {
	t.Parallel()
	s := newSender(t)
	pn := *s.peer.Device.ID
	first, err := s.peer.Meet(ctx, s.ours, []byte("by number"))
	require.NoError(t, err)
	_, err = s.ours.Receive(ctx, pn, first)
	require.NoError(t, err)
	s.arrives(s.ours.Send(ctx, []types.JID{pn}, []byte("message")))
	require.NoError(t, s.d.Sessions.DeleteSession(ctx, s.peer.Address().SignalAddress().String()))
	require.NoError(t, s.c.Flush(ctx))
	ceiling := scalar[uint64](t, s.dsn, `SELECT (data->>'ceiling')::bigint FROM whatsmeow.auth_keys WHERE key_type = 'session' AND key_id = $1`, pn.SignalAddress().String())
	s.next(false)
	require.NoError(t, s.d.Sessions.MigratePNToLID(ctx, pn.ToNonAD(), s.peer.Address().ToNonAD()))
	s.next(true)
	s.send()
	require.Equal(t, ceiling+1, s.row().counter(t))
}

// arrives has the peer read what was sent to one address.
func (s *sender) arrives(sent map[types.JID]*waBinary.Node, err error) {
	s.Helper()
	require.NoError(s, err)
	for _, node := range sent {
		_, err = s.peer.Receive(ctx, s.ours.Address(), node)
		require.NoError(s, err)
	}
}

// A send on a chain that is durable waits for nothing, until it has used up what is reserved.
func TestP4ASendBelowTheCeilingWaitsForNothing(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	const reserve = 5
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, Reserve: reserve})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	ours, peer := signaltest.NewPeer(d), memoryPeers(1)[0]
	signaltest.Meet(t, peer, ours)
	var sent *waBinary.Node
	send := func(ctx context.Context) error {
		all, err := ours.Send(ctx, []types.JID{peer.Address()}, []byte("message"))
		sent = all[peer.Address()]
		return err
	}
	require.NoError(t, send(ctx))
	first, _ := placeOf(t, 0, sent)
	require.NoError(t, c.Flush(ctx))
	network.Down()
	for range reserve {
		require.NoError(t, send(ctx))
	}
	require.ErrorIs(t, send(within(t, 100*time.Millisecond)), pgstore.ErrUnavailable)
	network.Up()
	require.NoError(t, send(ctx))
	last, _ := placeOf(t, 0, sent)
	require.Equal(t, place{0, first.chain, first.counter + reserve + 2}, last, "the message that did not leave keeps its key")
	require.NoError(t, c.Close())
}

// A message to many whose chains are all new waits once, for all of them.
func TestP4ManyNewChainsAreWaitedForTogether(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	const bound = time.Second
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, NewChainWait: bound})
	require.NoError(t, err)
	ours, peers := signaltest.NewPeer(pair(t, c.NewDevice())), memoryPeers(20)
	var to []types.JID
	for _, p := range peers {
		signaltest.Meet(t, p, ours)
		to = append(to, p.Address())
	}
	require.NoError(t, c.Flush(ctx))
	network.Down()
	for _, p := range peers {
		in, err := p.Send(ctx, []types.JID{ours.Address()}, []byte("in"))
		require.NoError(t, err)
		_, err = ours.Receive(ctx, p.Address(), in[ours.Address()])
		require.NoError(t, err)
	}
	waited, began := c.Stats().Waited, time.Now()
	_, err = ours.Send(ctx, to, []byte("to all"))
	took := time.Since(began)
	require.NoError(t, err)
	require.Equal(t, waited+1, c.Stats().Waited)
	require.GreaterOrEqual(t, took, bound)
	require.Less(t, took, 5*bound, "not one after the other")
	network.Up()
	require.NoError(t, c.Close())
}

// answer reads a message and answers it, on the chain that it began, and says how long the answer took to be sent.
func answer(t testing.TB, ours, peer *signaltest.Peer) time.Duration {
	t.Helper()
	in, err := peer.Send(ctx, []types.JID{ours.Address()}, []byte("in"))
	require.NoError(t, err)
	_, err = ours.Receive(ctx, peer.Address(), in[ours.Address()])
	require.NoError(t, err)
	began := time.Now()
	_, err = ours.Send(ctx, []types.JID{peer.Address()}, []byte("out"))
	require.NoError(t, err)
	return time.Since(began)
}

// The first send on a chain waits until the chain is durable, but not for long, and then nobody waits until the database answers.
func TestP4TheWaitForANewChainIsBounded(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, NewChainWait: 300 * time.Millisecond})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	ours, peers := signaltest.NewPeer(d), memoryPeers(2)
	for _, p := range peers {
		signaltest.Meet(t, p, ours)
	}
	require.NoError(t, c.Flush(ctx))
	network.Down()
	require.GreaterOrEqual(t, answer(t, ours, peers[0]), 300*time.Millisecond)
	require.Less(t, answer(t, ours, peers[1]), 300*time.Millisecond, "nobody waits any more")
	network.Up()
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, c.Close())
}

// Where one instance alone cannot be flushed, its sends do not wait again each time that another's is.
func TestP4AnInstanceThatCannotBeFlushedWaitsOnce(t *testing.T) {
	t.Parallel()
	const bound = 2 * time.Second
	c, dsn := open(t, func(cfg *pgstore.Config) { cfg.NewChainWait = bound })
	stuck, other := pair(t, c.NewDevice()), pair(t, c.NewDevice())
	ours, peers := signaltest.NewPeer(stuck), memoryPeers(2)
	for _, p := range peers {
		signaltest.Meet(t, p, ours)
	}
	require.NoError(t, c.Flush(ctx))
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `SELECT FROM whatsmeow.instances WHERE id = $1 FOR UPDATE`, stuck.ID.String())
	require.NoError(t, err)
	require.GreaterOrEqual(t, answer(t, ours, peers[0]), bound)
	trust(t, "1:0", other)
	require.Eventually(t, func() bool { return trusted(t, dsn, "1:0") == 1 }, 10*time.Second, time.Millisecond)
	require.Less(t, answer(t, ours, peers[1]), bound)
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, c.Close())
}

// A decrypt that began a sending chain asks for its flush at once.
func TestP4AChainThatADecryptBeganIsDurableSoon(t *testing.T) {
	t.Parallel()
	slow := func(cfg *pgstore.Config) { cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour }
	s := newSender(t, slow)
	s.send()
	in, err := s.peer.Send(ctx, []types.JID{s.ours.Address()}, []byte("in"))
	require.NoError(t, err)
	_, err = s.ours.Receive(ctx, s.peer.Address(), in[s.ours.Address()])
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return scalar[int](t, s.dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session' AND (data->>'ceiling')::int = $1`, pgstore.DefaultReserve) == 1
	}, 10*time.Second, 10*time.Millisecond, "at counter 0")
}

// Our own sender key that an unclean end has left behind is stepped, and one without a ceiling is made anew.
func TestP4OurSenderKeyAfterAnUncleanEnd(t *testing.T) {
	t.Parallel()
	group := types.NewJID("1-2", types.GroupServer)
	s := newSender(t, func(cfg *pgstore.Config) { cfg.Reserve = 7 })
	say := func() place {
		distribution, err := s.ours.JoinGroup(ctx, group)
		require.NoError(t, err)
		node, err := s.ours.SendGroup(ctx, group, []byte("to all"))
		require.NoError(t, err)
		require.NoError(t, s.peer.Welcome(ctx, group, s.ours.Address(), distribution))
		_, err = s.peer.ReceiveGroup(ctx, group, s.ours.Address(), node)
		require.NoError(t, err)
		at, _ := placeOf(t, groupMembers, node)
		return at
	}
	first := say()
	require.NoError(t, s.c.Flush(ctx))
	ceiling := scalar[uint64](t, s.dsn, `SELECT (data->>'ceiling')::bigint FROM whatsmeow.auth_keys WHERE key_type = 'sender_key'`)
	s.next(false)
	second := say()
	require.Equal(t, place{groupMembers, first.chain, ceiling}, second)
	require.NoError(t, s.c.Flush(ctx))
	require.NoError(t, execSQL(t, s.dsn, `UPDATE whatsmeow.auth_keys SET data = data - 'ceiling' WHERE key_type = 'sender_key'`))
	s.next(false)
	require.NotEqual(t, first.chain, say().chain, fmt.Sprint("a new key, ", second))
}
