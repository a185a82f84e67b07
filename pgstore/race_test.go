package pgstore_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var raceSends = flag.Int("race.sends", 1000, "messages that leave in each test of sending and receiving at once; the long form is 100000")

// place is where a message stands on the wire: whose it is to read, its sending chain and its counter. Two ciphertexts at one place were
// encrypted with one message key.
type place struct {
	reader  int
	chain   string
	counter uint64
}

const groupMembers = -1

// placeOf reads a message's place: libsignal's protobuf of a message holds the ratchet key (field 1) and the counter (field 2) after a version
// byte, a pre-key message the message itself (field 4), a group message the key's id (field 1) and the iteration (field 2).
func placeOf(t testing.TB, reader int, node *waBinary.Node) (place, []byte) {
	t.Helper()
	body := node.Content.([]byte)
	const mac, signature = 8, 64
	var message []byte
	switch node.Attrs["type"] {
	case "skmsg":
		message = body[1 : len(body)-signature]
	case "pkmsg":
		inner := protoField(t, body[1:], 4)
		message = inner[1 : len(inner)-mac]
	default:
		message = body[1 : len(body)-mac]
	}
	counter := uint64(0)
	if raw := protoField(t, message, 2); len(raw) > 0 {
		counter, _ = protowire.ConsumeVarint(raw)
	}
	return place{reader, string(protoField(t, message, 1)), counter}, body
}

// protoField is a field of a protobuf message: the bytes of a text, or a number as it is written.
func protoField(t testing.TB, b []byte, field protowire.Number) []byte {
	t.Helper()
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		require.Positive(t, n)
		length := protowire.ConsumeFieldValue(number, kind, b[n:])
		require.GreaterOrEqual(t, length, 0)
		value := b[n : n+length]
		if number == field && kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if number == field {
			return value
		}
		b = b[n+length:]
	}
	return nil
}

// raceConfig says who does what at once.
type raceConfig struct {
	peers, sends       int  // sends are messages that leave: a refused one is not counted
	senders, answerers int  // goroutines: as SendMessage does, and as retry answers do
	groups             bool // every fifth message goes to a group, and peers write to it
	first              bool // now and then somebody begins a session anew, as after a retry receipt with keys
	migrates           bool // peers are talked to by their phone numbers, and their LIDs become known while that goes on
	deletes            bool // now and then a session is deleted while it is used, as when a contact's identity changed, and begun anew
}

// race is a device on the store under test that talks with peers on maps, everything at once.
type race struct {
	raceConfig
	t      testing.TB
	ours   *signaltest.Peer
	theirs []*signaltest.Peer
	locks  []sync.Mutex   // a peer does one thing at a time
	flight []sync.RWMutex // held for reading while a message to the peer is made and delivered
	group  types.JID
	inTurn sync.Mutex   // whatsmeow's messageSendLock
	next   atomic.Int64 // the message that is sent next

	sent, refused, unread, lost atomic.Int64

	mu       sync.Mutex
	seen     map[place][]byte
	repeated int
}

func (r *race) String() string {
	return fmt.Sprintf("%d sent, %d message keys used twice, %d refused, %d that the peer could not read, %d that we could not",
		r.sent.Load(), r.repeated, r.refused.Load(), r.unread.Load(), r.lost.Load())
}

// members are the peers in the group.
func (r *race) members() []*signaltest.Peer { return r.theirs[:min(3, len(r.theirs))] }

// runRace sends and receives until enough has left.
func runRace(t testing.TB, ours *signaltest.Peer, cfg raceConfig) *race {
	r := &race{
		raceConfig: cfg, t: t, ours: ours, theirs: memoryPeers(cfg.peers), locks: make([]sync.Mutex, cfg.peers), flight: make([]sync.RWMutex, cfg.peers),
		group: types.NewJID("123-456", types.GroupServer), seen: make(map[place][]byte),
	}
	for i, p := range r.theirs {
		hello, err := p.Meet(ctx, ours, []byte("hello"))
		require.NoError(t, err)
		_, err = ours.Receive(ctx, r.address(i), hello)
		require.NoError(t, err)
		answer, err := ours.Answer(ctx, r.address(i), []byte("hello to you"))
		require.NoError(t, err)
		_, err = p.Receive(ctx, ours.Address(), answer)
		require.NoError(t, err)
	}
	if cfg.groups {
		mine, err := ours.JoinGroup(ctx, r.group)
		require.NoError(t, err)
		for i, p := range r.members() {
			require.NoError(t, p.Welcome(ctx, r.group, ours.Address(), mine))
			distribution, err := p.JoinGroup(ctx, r.group)
			require.NoError(t, err)
			require.NoError(t, ours.Welcome(ctx, r.group, r.address(i), distribution))
		}
	}
	var sending, receiving sync.WaitGroup
	for g := range cfg.senders + cfg.answerers {
		sending.Go(func() {
			for r.sent.Load() < int64(cfg.sends) {
				r.send(int(r.next.Add(1)), g >= cfg.senders)
			}
		})
	}
	stop := make(chan struct{})
	receiving.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				r.receive(i)
			}
		}
	})
	receiving.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rand.IntN(int(10 * time.Millisecond)))):
				r.change(int(r.next.Load()+1) % r.peers) // whom it is sent to now
			}
		}
	})
	sending.Wait()
	close(stop)
	receiving.Wait()
	return r
}

// address is what a peer is known by: its phone number, until its LID is known.
func (r *race) address(i int) types.JID {
	if r.migrates {
		return *r.theirs[i].Device.ID
	}
	return r.theirs[i].Address()
}

// change lets something happen to a peer that is talked to.
func (r *race) change(i int) {
	p := r.theirs[i]
	if r.migrates {
		if err := r.ours.Device.LIDs.PutLIDMapping(ctx, p.Address().ToNonAD(), p.Device.ID.ToNonAD()); err != nil {
			r.lost.Add(1)
		}
	}
	if r.deletes {
		if err := r.ours.Device.Sessions.DeleteAllSessions(ctx, p.Address().SignalAddressUser()); err != nil {
			r.lost.Add(1)
		}
		r.meet(i)
	}
}

// meet begins a session anew. Who sends meanwhile holds the flight of the peer: it is not taken here, since a receiver that waits in between
// would have both wait for ever.
func (r *race) meet(i int) {
	r.locks[i].Lock() // the peer's bundle
	node, err := r.ours.Meet(ctx, r.theirs[i], []byte("anew"))
	r.locks[i].Unlock()
	r.deliver(i, node, "anew", err)
}

// deliver has a peer read a message, if it left.
func (r *race) deliver(to int, node *waBinary.Node, text string, err error) {
	if !r.left(to, node, err) {
		return
	}
	r.locks[to].Lock()
	defer r.locks[to].Unlock()
	if got, err := r.theirs[to].Receive(ctx, r.ours.Address(), node); err != nil || string(got) != text {
		r.unread.Add(1)
	}
}

func (r *race) send(i int, answer bool) {
	to := i % r.peers
	r.flight[to].RLock()
	defer r.flight[to].RUnlock()
	text := fmt.Sprint("out ", i)
	if r.groups && !answer && i%5 == 0 {
		r.sendGroup(text)
		return
	}
	var node *waBinary.Node
	var err error
	switch {
	case answer && r.first && i%50 == 0:
		r.meet(to)
		return
	case answer:
		node, err = r.ours.Answer(ctx, r.address(to), []byte(text))
	default:
		var all map[types.JID]*waBinary.Node
		r.inTurn.Lock()
		all, err = r.ours.Send(ctx, []types.JID{r.address(to)}, []byte(text))
		r.inTurn.Unlock()
		node = all[r.address(to)]
	}
	r.deliver(to, node, text, err)
}

func (r *race) sendGroup(text string) {
	r.inTurn.Lock()
	node, err := r.ours.SendGroup(ctx, r.group, []byte(text))
	r.inTurn.Unlock()
	if !r.left(groupMembers, node, err) {
		return
	}
	for i, p := range r.members() {
		r.locks[i].Lock()
		if got, err := p.ReceiveGroup(ctx, r.group, r.ours.Address(), node); err != nil || string(got) != text {
			r.unread.Add(1)
		}
		r.locks[i].Unlock()
	}
}

// left notes a message that left, and whether its message key had been used.
func (r *race) left(reader int, node *waBinary.Node, err error) bool {
	if errors.Is(err, pgstore.ErrMessageKeyUsed) {
		r.refused.Add(1)
		return false
	}
	if err != nil {
		r.lost.Add(1)
		return false
	}
	r.sent.Add(1)
	at, body := placeOf(r.t, reader, node)
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, twice := r.seen[at]; twice && string(old) != string(body) {
		r.repeated++
	}
	r.seen[at] = body
	return true
}

func (r *race) receive(i int) {
	from := i % r.peers
	if i/r.peers%4 == 0 { // a receiver keeps the chains of five steps: what is older must have arrived
		r.flight[from].Lock()
		r.flight[from].Unlock() //nolint:staticcheck // nothing to do but wait
	}
	text := fmt.Sprint("in ", i)
	var got []byte
	var err error
	if r.groups && i%5 == 0 && from < len(r.members()) {
		r.locks[from].Lock()
		node, e := r.theirs[from].SendGroup(ctx, r.group, []byte(text))
		r.locks[from].Unlock()
		if err = e; err == nil {
			got, err = r.ours.ReceiveGroup(ctx, r.group, r.address(from), node)
		}
	} else {
		r.locks[from].Lock()
		var node *waBinary.Node
		var e error
		if r.first && i%50 == 7 {
			node, e = r.theirs[from].Meet(ctx, r.ours, []byte(text))
		} else {
			all, e2 := r.theirs[from].Send(ctx, []types.JID{r.ours.Address()}, []byte(text))
			node, e = all[r.ours.Address()], e2
		}
		r.locks[from].Unlock()
		if err = e; err == nil {
			got, err = r.ours.Receive(ctx, r.address(from), node)
		}
	}
	if err != nil || string(got) != text {
		r.lost.Add(1)
	}
}

func TestP4SendingAndReceivingAtOnceUsesNoMessageKeyTwice(t *testing.T) {
	t.Parallel()
	behind := func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind }
	durable := func(cfg *pgstore.Config) { cfg.Sends = pgstore.Durable }
	small := func(cfg *pgstore.Config) { cfg.Sends, cfg.MemoryBudget = pgstore.WriteBehind, 1 }
	for _, tc := range []struct {
		name string
		edit func(*pgstore.Config)
		peer func(*store.Device) *signaltest.Peer
		race raceConfig
		// fewer divides the number of messages.
		fewer int
	}{
		{"one sender", behind, signaltest.NewPeer, raceConfig{peers: 2, senders: 1}, 1},
		{"retry answers", behind, signaltest.NewPeer, raceConfig{peers: 2, senders: 1, answerers: 1}, 1},
		{"one session, two senders in turn", behind, signaltest.NewPeer, raceConfig{peers: 1, senders: 2}, 1},
		{"one session, two senders at once", behind, signaltest.NewPeer, raceConfig{peers: 1, answerers: 2}, 1},
		{"one session, a sender and retry answers", behind, signaltest.NewPeer, raceConfig{peers: 1, senders: 1, answerers: 1}, 1},
		{"one session, no event buffer", behind, signaltest.NewUnbufferedPeer, raceConfig{peers: 1, senders: 1, answerers: 1}, 4},
		{"one session, durable sends", durable, signaltest.NewPeer, raceConfig{peers: 1, senders: 1, answerers: 1}, 4},
		{"everything, 2 peers", behind, signaltest.NewPeer, raceConfig{peers: 2, senders: 2, answerers: 2, groups: true, first: true}, 1},
		{"everything, 50 peers", behind, signaltest.NewPeer, raceConfig{peers: 50, senders: 2, answerers: 2, groups: true, first: true}, 1},
		{"everything, durable sends", durable, signaltest.NewPeer, raceConfig{peers: 2, senders: 1, answerers: 1, groups: true, first: true}, 4},
		{"LIDs become known", behind, signaltest.NewPeer, raceConfig{peers: 100, senders: 2, answerers: 2, groups: true, migrates: true}, 1},
		{"LIDs become known, no event buffer", behind, signaltest.NewUnbufferedPeer, raceConfig{peers: 50, senders: 1, answerers: 2, groups: true, migrates: true}, 4},
		{"sessions are deleted", behind, signaltest.NewPeer, raceConfig{peers: 2, senders: 1, answerers: 1, deletes: true}, 4},
		{"everything is evicted", small, signaltest.NewPeer, raceConfig{peers: 2, senders: 1, answerers: 1, groups: true, first: true}, 4},
		{"no event buffer", behind, signaltest.NewUnbufferedPeer, raceConfig{peers: 2, senders: 1, answerers: 1, groups: true, first: true}, 4},
		{"sends as by default", func(*pgstore.Config) {}, signaltest.NewPeer, raceConfig{peers: 2, senders: 1, answerers: 1, groups: true, first: true}, 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, _ := open(t, tc.edit)
			tc.race.sends = *raceSends / max(1, tc.fewer)
			r := runRace(t, tc.peer(pair(t, c.NewDevice())), tc.race)
			t.Logf("%v; %d merged", r, c.Stats().Merged)
			require.Zero(t, r.repeated)
			require.Zero(t, r.unread.Load(), "messages that left and that the peer could not read")
			if tc.race.deletes {
				return // the peer may write on a session that is gone, and who sends on one fails
			}
			require.Zero(t, r.lost.Load(), "messages that we could not read, or sends that failed with another error")
			require.True(t, c.Stats().Merged > 0 || tc.fewer > 1, "nothing raced, so nothing was shown")
			require.Equal(t, r.refused.Load(), c.Stats().Refused)
		})
	}
}

// The judge fires: with nothing compared, the same traffic uses message keys twice on our store, too.
func TestWithoutComparingMessageKeysAreUsedTwice(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	c.IgnoreRaces()
	r := runRace(t, signaltest.NewPeer(pair(t, c.NewDevice())), raceConfig{peers: 1, sends: 1000, senders: 1, answerers: 1})
	t.Logf("nothing compared: %v", r)
	require.Positive(t, r.repeated, "the judge never fired")
}

// The judge fires: on sqlstore the same traffic uses message keys twice.
func TestSqlstoreUsesMessageKeysTwice(t *testing.T) {
	t.Parallel()
	for try := range 5 {
		s := storetest.New(t, storetest.SqlstorePostgres())
		r := runRace(t, signaltest.NewPeer(s.Device), raceConfig{peers: 2, sends: 300 * (try + 1), senders: 1, answerers: 1})
		t.Logf("sqlstore: %v", r)
		if r.repeated > 0 {
			return
		}
		t.Log("no message key was used twice in this run, trying more")
	}
	require.Fail(t, "the judge never fired")
}
