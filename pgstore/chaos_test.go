package pgstore_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	chaosRounds = flag.Int("chaos.rounds", 150, "how many lives a test of chaos has; the long form is 2000")
	chaosSeed   = flag.Uint64("chaos.seed", rand.Uint64(), "what they are drawn from")
)

// chaos is one device that lives many short lives, and whom it talks to: real encryption on both sides. In the middle of each life the
// database may go away, so that its flushes end anywhere, and most end without a Close.
type chaos struct {
	testing.TB
	rng     *rand.Rand
	off     bool // the mechanism is switched off
	direct  string
	network *pgtest.Proxy
	jid     types.JID
	c       *pgstore.Container
	ours    *signaltest.Peer
	theirs  []*signaltest.Peer
	group   types.JID
	known   map[membership]bool // sender keys of ours that the others have
	late    [][]inbound         // what each of the others wrote and the server holds back
	owed    []owed
	asked   int         // retry receipts of the others
	numbers []types.JID // by what the others are known: by their phone numbers, also when their LIDs are known

	takes   pgstore.Takes
	witness *string // its file, nil for none
	device  *store.Device
	saved   bool // the rows were kept, in that life
	savedIn int
	backIn  int // the life in which the database went back

	seen                                           map[place][]byte
	furthest                                       map[string]uint64 // by chain
	repeated, back                                 int               // message keys used twice, and chains that went back
	left, notLeft, retries, lives, clean           int
	wentBack, imports, newcomers, healed, replayed int
	begun                                          []atomic.Int64 // sessions of ours with each of the others, that were begun anew
	promoted                                       atomic.Int64   // archived states that came back
	migrated, atOnce                               int            // numbers whose LID became known, and sends while something was read
	evicted                                        int64
	unread                                         []string
}

// membership is one of the others and a sender key of ours.
type membership struct {
	who   int
	chain string
}

func (x *chaos) String() string {
	return fmt.Sprintf("%d lives, %d of them ended cleanly, %d times the database went back, %d healed, %d replayed, %d imports, %d newcomers, "+
		"%d migrations, %d promotions, %d evictions, %d sends and receives at once; "+
		"%d messages left, %d did not, %d message keys used twice, %d chains went back, %d unread, %d retry receipts of ours, %d of the others",
		x.lives, x.clean, x.wentBack, x.healed, x.replayed, x.imports, x.newcomers, x.migrated, x.promoted.Load(), x.evicted, x.atOnce,
		x.left, x.notLeft, x.repeated, x.back, len(x.unread), x.retries, x.asked)
}

func newChaos(t testing.TB, off bool, takes pgstore.Takes) *chaos {
	dsn, _ := onTimelines(t)
	x := &chaos{
		TB: t, rng: rand.New(rand.NewPCG(*chaosSeed, 1+uint64(takes))), off: off, takes: takes, direct: dsn, network: pgtest.NewProxy(t, dsn),
		group: types.NewJID("1-2", types.GroupServer), known: make(map[membership]bool), seen: make(map[place][]byte), furthest: make(map[string]uint64),
	}
	t.Logf("seed %d", *chaosSeed)
	if x.chance(50) {
		path := filepath.Join(t.TempDir(), "marks")
		x.witness = &path
	}
	c := reopen(t, dsn, func(cfg *pgstore.Config) { cfg.Takes = takes })
	d := pair(t, c.NewDevice())
	x.jid = *d.ID
	x.ours = signaltest.NewPeer(d)
	x.theirs, x.numbers, x.late, x.begun = make([]*signaltest.Peer, 3), make([]types.JID, 3), make([][]inbound, 3), make([]atomic.Int64, 3)
	for i := range x.theirs {
		require.True(t, x.newcomer(i))
	}
	require.NoError(t, c.Close())
	return x
}

// newcomer puts somebody in the place of one of the others, known by its number. While the database is away it may not work out.
func (x *chaos) newcomer(who int) bool {
	p := memoryPeers(1)[0]
	reading, cancel := x.patiently()
	defer cancel()
	hello, err := p.Meet(reading, x.ours, []byte("hello"))
	if err == nil {
		_, err = x.ours.Receive(reading, *p.Device.ID, hello)
	}
	if err != nil {
		return false
	}
	x.theirs[who], x.numbers[who], x.late[who] = p, *p.Device.ID, nil
	x.owed = slices.DeleteFunc(x.owed, func(o owed) bool { return o.who == who })
	maps.DeleteFunc(x.known, func(m membership, _ bool) bool { return m.who == who })
	x.newcomers++
	return true
}

func (x *chaos) chance(percent int) bool { return x.rng.IntN(100) < percent }

// life is one process, from its start to its end.
func (x *chaos) life() {
	x.lives++
	x.betweenLives()
	var err error
	x.c, err = pgstore.NewWithConfig(ctx, x.config())
	require.NoError(x, err)
	if x.off {
		x.c.IgnoreUncleanEnds()
	}
	x.device, err = x.c.GetDevice(ctx, x.jid)
	require.NoError(x, err)
	newPeer := signaltest.NewPeer
	if x.chance(20) {
		newPeer = signaltest.NewUnbufferedPeer
	}
	x.ours = newPeer(x.device)
	if x.chance(25) {
		x.newcomer(x.rng.IntN(len(x.theirs)))
	}
	steps := x.rng.IntN(25)
	away, back := -1, -1
	if x.chance(60) {
		away = x.rng.IntN(steps + 1)
	} else if x.saved && x.chance(25) {
		back = x.rng.IntN(steps + 1)
	}
	for i := range steps {
		switch {
		case i == away:
			x.network.Down()
		case i == back:
			x.under()
		case x.chance(2):
			x.remember()
		}
		x.step(x.rng.IntN(len(x.theirs)))
		x.pay()
		if x.chance(30) {
			time.Sleep(time.Duration(x.rng.IntN(15)) * time.Millisecond)
		}
	}
	x.end(away < 0 && x.chance(30))
}

// config is a process's. Those of one instance need not agree.
func (x *chaos) config() pgstore.Config {
	cfg := pgstore.Config{
		DSN: x.network.DSN, Reserve: []int{1, 3, 12}[x.rng.IntN(3)], NewChainWait: 20 * time.Millisecond, OutageWait: 20 * time.Millisecond,
		FlushInterval: time.Duration(1+x.rng.IntN(20)) * time.Millisecond, FlushTimeout: time.Second, Takes: x.takes, HealRate: -1,
		BatchSize: []int{1, 3, pgstore.DefaultBatchSize}[x.rng.IntN(3)], // a backlog of many segments, or of few
	}
	switch {
	case x.off:
		cfg.Sends = pgstore.WriteBehind
	case x.chance(30):
		cfg.NewChains = pgstore.WriteBehind
	case x.chance(15):
		cfg.Sends = pgstore.Durable
	}
	if x.chance(30) {
		cfg.MemoryBudget = 1
	}
	x.witnessed(&cfg)
	return cfg
}

// end is a Close, or a death: whatever is not saved is lost.
func (x *chaos) end(cleanly bool) {
	defer func() {
		x.healed += int(x.c.Stats().Healed)
		x.replayed += int(x.c.Stats().Replayed)
		x.evicted += x.c.Stats().Cache.Evictions
	}()
	if cleanly {
		err := x.c.Close()
		if x.backIn == x.lives && errors.Is(err, pgstore.ErrDatabaseRewound) {
			return // it was about to go, so it did not come back
		}
		require.NoError(x, err)
		x.clean++
		return
	}
	x.network.Down()
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_ = x.c.Shutdown(gone)
	x.network.Up()
}

// step is a message out, in (now and then one that comes late), or to the group; now and then two at once, and now and then a new session.
func (x *chaos) step(who int) {
	switch n := x.rng.IntN(100); {
	case n < 40:
		x.send(who, false)
	case n < 50:
		x.send(who, true)
	case n < 70:
		x.read(who, x.written(who))
	case n < 73 && len(x.late[who]) < 5:
		x.late[who] = append(x.late[who], x.written(who))
	case n < 76 && len(x.late[who]) > 0:
		i := x.rng.IntN(len(x.late[who]))
		in := x.late[who][i]
		x.late[who] = slices.Delete(x.late[who], i, i+1)
		x.read(who, in)
	case n < 80:
		in := x.written(who)
		x.atOnce++
		done := make(chan struct{})
		go func() { defer close(done); x.read(who, in) }()
		x.send(who, false)
		<-done
	case n < 85:
		x.meet(who)
	case n < 88: // each message begins a chain
		for range 2 + x.rng.IntN(7) {
			x.read(who, x.written(who))
			x.send(who, x.chance(30))
		}
	case n < 90: // the server tells of a LID
		telling, cancel := x.patiently()
		defer cancel()
		if err := x.learn(telling, who); telling.Err() != nil { // as the client does when the server tells it again
			x.Logf("telling of a LID ended without an answer, %+v: %v", x.c.Stats().Batcher, err)
			again, cancel := x.patiently()
			defer cancel()
			err = x.learn(again, who)
			require.NoError(x, err)
		} else {
			require.NoError(x, err)
		}
	default:
		x.sendGroup()
	}
}

func (x *chaos) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 30*time.Millisecond)
}

// patiently is for what must work out, or fails for good.
func (x *chaos) patiently() (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, noticeWait)
}

func (x *chaos) send(who int, answer bool) {
	sending, cancel := x.limited()
	defer cancel()
	text := fmt.Sprint("out ", x.left)
	to := x.numbers[who]
	var node *waBinary.Node
	var err error
	if answer {
		node, err = x.ours.Answer(sending, to, []byte(text))
	} else {
		var all map[types.JID]*waBinary.Node
		all, err = x.ours.Send(sending, []types.JID{to}, []byte(text))
		node = all[to]
	}
	x.arrive(who, node, text, err)
}

// meet begins a new session from a bundle, which is what the client does where there is none, or none that may be sent on.
func (x *chaos) meet(who int) {
	sending, cancel := x.limited()
	defer cancel()
	text := fmt.Sprint("anew ", x.left)
	begin := x.ours.Meet
	if x.chance(50) {
		begin = x.ours.SendAnew
	}
	node, err := begin(sending, x.theirs[who], []byte(text))
	if err == nil {
		x.begun[who].Add(1)
	}
	x.arrive(who, node, text, err)
}

// learn tells of a LID, with which all that is stored for its number moves.
func (x *chaos) learn(ctx context.Context, who int) error {
	p := x.theirs[who]
	known, err := x.device.LIDs.GetLIDForPN(ctx, p.Device.ID.ToNonAD())
	if err != nil {
		return err
	}
	if err = x.device.LIDs.PutLIDMapping(ctx, p.Address().ToNonAD(), p.Device.ID.ToNonAD()); err == nil && known.IsEmpty() {
		x.migrated++
	}
	return err
}

// note is the judge.
func (x *chaos) note(reader int, node *waBinary.Node) place {
	x.left++
	at, body := placeOf(x, reader, node)
	if old, twice := x.seen[at]; twice && string(old) != string(body) {
		x.repeated++
	}
	x.seen[at] = body
	if last, known := x.furthest[at.chain]; known && at.counter < last {
		x.back++
	}
	x.furthest[at.chain] = max(x.furthest[at.chain], at.counter)
	return at
}

func (x *chaos) arrive(who int, node *waBinary.Node, text string, err error) {
	if err != nil {
		x.notLeft++
		if errors.Is(err, pgstore.ErrMessageKeyUsed) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			return
		}
		x.meet(who) // there is no session to send on
		return
	}
	x.note(who, node)
	if x.chance(10) {
		return // lost on the way
	}
	if got, err := x.theirs[who].Receive(ctx, x.ours.Address(), node); err != nil || string(got) != text {
		x.owed = append(x.owed, owed{who, text}) // it sends a retry receipt
	}
}

// owed is a message that its reader has asked for again: it knows more of a session than we do after the end of a life.
type owed struct {
	who  int
	text string
}

// pay answers retry receipts: with a new session, from the keys in them. While the database is away an answer may not leave.
func (x *chaos) pay() {
	x.owed = slices.DeleteFunc(x.owed, func(o owed) bool {
		sending, cancel := x.limited()
		defer cancel()
		node, err := x.ours.Meet(sending, x.theirs[o.who], []byte(o.text))
		if err != nil {
			return false
		}
		x.note(o.who, node)
		x.asked++
		if got, err := x.theirs[o.who].Receive(ctx, x.ours.Address(), node); err != nil || string(got) != o.text {
			x.unread = append(x.unread, fmt.Sprintf("life %d: %q: %v", x.lives, o.text, err))
		}
		return true
	})
}

type inbound struct {
	text  string
	node  *waBinary.Node
	begun int64 // how many sessions had been begun anew when it was written
}

func (x *chaos) written(who int) inbound {
	text := fmt.Sprint("in ", x.rng.Uint32())
	all, err := x.theirs[who].Send(ctx, []types.JID{x.ours.Address()}, []byte(text))
	require.NoError(x, err)
	return inbound{text, all[x.ours.Address()], x.begun[who].Load()}
}

// read takes a message in. One that cannot be read, for a chain that was lost, comes again on a new session, as after a retry receipt. While the
// database is away one may need what is not in memory; the server would bring it again.
func (x *chaos) read(who int, in inbound) {
	reading, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	got, err := x.ours.Receive(reading, x.numbers[who], in.node)
	if err == nil && string(got) != in.text {
		x.Errorf("read %q, not %q", got, in.text)
	}
	if err == nil && in.begun < x.begun[who].Load() { // on the session before
		x.promoted.Add(1)
	}
	if err == nil || reading.Err() != nil {
		return
	}
	x.retries++
	again, err := x.theirs[who].Meet(reading, x.ours, []byte(in.text))
	if err != nil && reading.Err() != nil {
		return
	}
	require.NoError(x, err)
	if _, err = x.ours.Receive(reading, x.numbers[who], again); err != nil && reading.Err() == nil {
		x.Errorf("a first message cannot be read: %v", err)
	}
}

func (x *chaos) sendGroup() {
	sending, cancel := x.limited()
	defer cancel()
	text := fmt.Sprint("to all ", x.left)
	node, distribution, err := x.ours.SendGroupAnew(sending, x.group, []byte(text))
	if err != nil {
		x.notLeft++
		return
	}
	at := x.note(groupMembers, node)
	for i, p := range x.theirs {
		if !x.known[membership{i, at.chain}] {
			require.NoError(x, p.Welcome(ctx, x.group, x.ours.Address(), distribution))
		}
		if got, err := p.ReceiveGroup(ctx, x.group, x.ours.Address(), node); err != nil || string(got) != text {
			x.unread = append(x.unread, fmt.Sprintf("life %d, group, member %d: %q: %v", x.lives, i, text, err))
		}
		x.known[membership{i, at.chain}] = true
	}
}

// Whatever dies, whatever of the last flushes has reached the database and wherever that goes back to, no message key is used twice, and the peers
// read all that left.
func TestP4NoMessageKeyTwiceWhateverDies(t *testing.T) {
	t.Parallel()
	for name, takes := range map[string]pgstore.Takes{"forced": pgstore.Forced, "leased": pgstore.RespectLease} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newChaos(t, false, takes)
			for range *chaosRounds / 2 {
				x.life()
				require.Zero(t, x.repeated, "message keys used twice: %v", x)
				require.Zero(t, x.back, "chains gone back: %v", x)
				require.Empty(t, x.unread, "neither at once nor when they were asked for again: %v", x)
			}
			t.Log(x)
			for what, n := range map[string]int{
				"clean ends": x.clean, "databases that went back": x.wentBack, "migrations": x.migrated, "evictions": int(x.evicted), "sends and receives at once": x.atOnce,
			} {
				require.Positive(t, n, what)
			}
			if *chaosRounds >= 1000 { // what is rarer
				require.Positive(t, min(int(x.promoted.Load()), x.healed, x.replayed, x.imports, x.asked, x.retries))
			}
		})
	}
}

// The judge fires: without ceilings and steps the same lives use keys twice.
func TestWithoutCeilingsMessageKeysComeBack(t *testing.T) {
	t.Parallel()
	x := newChaos(t, true, pgstore.Forced)
	for range *chaosRounds {
		if x.life(); x.repeated > 0 {
			break
		}
	}
	t.Log(x)
	require.Positive(t, x.repeated, "the judge never fired")
}
