package pgstore_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
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

// A network between the store and its database that is broken in some way. The client encrypts and decrypts on as if nothing were, on chains that
// the database knows; on new ones it waits for a limited time.

const (
	networkRounds = 150                    // messages each way that go on while the network is broken
	networkPace   = 3 * time.Millisecond   // between them, so that flushes come and go
	networkWait   = 300 * time.Millisecond // Config.NewChainWait
	networkMargin = time.Second            // what a machine that is busy with other tests adds
)

// brokenNetwork is a way to break it, until the returned function is called.
type brokenNetwork struct {
	name    string
	breakIt func(t testing.TB, network *pgtest.Proxy, direct string) (mend func())
}

var brokenNetworks = []brokenNetwork{
	{"sound", func(testing.TB, *pgtest.Proxy, string) func() { return func() {} }},
	{"slow", func(_ testing.TB, network *pgtest.Proxy, _ string) func() {
		network.Slow(100 * time.Millisecond)
		return network.Heal
	}},
	// What was sent is executed, and the answer is cut off.
	{"cut after the commit was sent", func(_ testing.TB, network *pgtest.Proxy, _ string) func() {
		return again(20*time.Millisecond, func() { network.CutAfter(0, true) }, network.Heal)
	}},
	{"half open", func(_ testing.TB, network *pgtest.Proxy, _ string) func() {
		network.Hang()
		return func() {
			network.Down() // connections that hung are of no use any more
			network.Heal()
			network.Up()
		}
	}},
	// The server closes connections, and the client learns of it late.
	{"closed slowly", func(t testing.TB, network *pgtest.Proxy, direct string) func() {
		network.SlowClose(100 * time.Millisecond)
		stop := again(50*time.Millisecond, func() {
			err := execSQL(t, direct, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			if err != nil {
				t.Error(err)
			}
		}, func() {})
		return func() {
			stop()
			network.Heal()
		}
	}},
}

// again does and undoes something again and again, until it is stopped.
func again(pause time.Duration, do, undo func()) (stop func()) {
	ending := make(chan struct{})
	var over sync.WaitGroup
	over.Go(func() {
		for {
			do()
			time.Sleep(pause)
			undo()
			select {
			case <-ending:
				return
			case <-time.After(pause):
			}
		}
	})
	return func() {
		close(ending)
		over.Wait()
	}
}

// overNetwork is a device behind a network. It writes to a peer who reads alone, and reads of one who writes alone, so that neither chain changes; with
// the third one each message begins a new chain.
type overNetwork struct {
	testing.TB
	direct                string
	network               *pgtest.Proxy
	c                     *pgstore.Container
	d                     *store.Device
	ours                  *signaltest.Peer
	reader, writer, other *signaltest.Peer
	seen                  map[place][]byte
	received              int // messages
	repeated              int // message keys used twice
}

func newOverNetwork(t testing.TB) *overNetwork {
	direct := pgtest.Open(t)
	peers := memoryPeers(3)
	n := &overNetwork{TB: t, direct: direct, network: pgtest.NewProxy(t, direct), reader: peers[0], writer: peers[1], other: peers[2], seen: make(map[place][]byte)}
	n.open()
	n.d = pair(t, n.c.NewDevice())
	n.ours = signaltest.NewPeer(n.d)
	for _, p := range peers {
		signaltest.Meet(t, p, n.ours)
	}
	require.NoError(t, n.c.Flush(ctx))
	return n
}

// open opens a container that reserves far ahead, so that no send on a chain that the database knows has cause to wait.
func (n *overNetwork) open() {
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: n.network.DSN, Reserve: 1000, NewChainWait: networkWait, FlushTimeout: 300 * time.Millisecond})
	require.NoError(n, err)
	n.Cleanup(func() { _ = c.Close() }) // or it has died
	n.c = c
}

// note is the judge, and says what the peer read.
func (n *overNetwork) note(who int, to *signaltest.Peer, node *waBinary.Node) string {
	at, body := placeOf(n, who, node)
	if _, used := n.seen[at]; used {
		n.repeated++
	}
	n.seen[at] = body
	got, err := to.Receive(ctx, n.ours.Address(), node)
	require.True(n, err == nil || n.repeated > 0, "%v", err)
	return string(got)
}

// send is a message to the one who reads alone, and how long it took to encrypt it.
func (n *overNetwork) send(text string) time.Duration {
	began := time.Now()
	sent, err := n.ours.Send(ctx, []types.JID{n.reader.Address()}, []byte(text))
	took := time.Since(began)
	require.NoError(n, err)
	got := n.note(0, n.reader, sent[n.reader.Address()])
	require.True(n, got == text || n.repeated > 0, "%q", got)
	return took
}

// receive is a message of the one who writes alone, and how long it took to decrypt it.
func (n *overNetwork) receive(text string) time.Duration {
	all, err := n.writer.Send(ctx, []types.JID{n.ours.Address()}, []byte(text))
	require.NoError(n, err)
	began := time.Now()
	got, err := n.ours.Receive(ctx, n.writer.Address(), all[n.ours.Address()])
	took := time.Since(began)
	require.NoError(n, err)
	require.Equal(n, text, string(got))
	n.received++
	return took
}

// answer reads a message of the third one and answers it at once, and says how long the answer took.
func (n *overNetwork) answer(text string) time.Duration {
	all, err := n.other.Send(ctx, []types.JID{n.ours.Address()}, []byte(text))
	require.NoError(n, err)
	_, err = n.ours.Receive(ctx, n.other.Address(), all[n.ours.Address()])
	require.NoError(n, err)
	n.received++
	began := time.Now()
	sent, err := n.ours.Send(ctx, []types.JID{n.other.Address()}, []byte(text))
	took := time.Since(began)
	require.NoError(n, err)
	require.Equal(n, text, n.note(1, n.other, sent[n.other.Address()]))
	return took
}

// tookOver is how long encrypting, decrypting and answering took while the network was broken, each in ascending order.
type tookOver struct{ sends, receives, answers []time.Duration }

func (took tookOver) String() string {
	text := ""
	for _, what := range []struct {
		name string
		all  []time.Duration
	}{{"encrypting", took.sends}, {"decrypting", took.receives}, {"answering on a new chain", took.answers}} {
		text += fmt.Sprintf("%s %v at the median, %v at the most; ", what.name, what.all[len(what.all)/2], what.all[len(what.all)-1])
	}
	return text
}

// talkOver lets all talk while the network is broken. It is mended when they are through, and not before.
func (n *overNetwork) talkOver(broken brokenNetwork, round int) (took tookOver) {
	mend := sync.OnceFunc(broken.breakIt(n, n.network, n.direct))
	defer mend()
	for i := range networkRounds {
		text := fmt.Sprintf("%d %d", round, i)
		took.sends = append(took.sends, n.send(text))
		took.receives = append(took.receives, n.receive(text))
		if i%10 == 0 {
			took.answers = append(took.answers, n.answer(text))
		}
		time.Sleep(networkPace)
	}
	mend()
	for _, all := range [][]time.Duration{took.sends, took.receives, took.answers} {
		slices.Sort(all)
	}
	return took
}

func TestP4TheNetworkToTheDatabaseMayBeBroken(t *testing.T) {
	t.Parallel()
	for _, broken := range brokenNetworks {
		t.Run(broken.name, func(t *testing.T) {
			t.Parallel()
			n := newOverNetwork(t)
			before := n.c.Stats().Waited
			took := n.talkOver(broken, 0)
			t.Log(took)
			require.LessOrEqual(t, n.c.Stats().Waited-before, int64(len(took.answers)), "only first sends on new chains wait")
			require.LessOrEqual(t, took.answers[len(took.answers)-1], networkWait+networkMargin, "the client holds its send lock so long")
			require.NoError(t, n.c.Flush(within(t, 30*time.Second)))
			require.Zero(t, n.c.Stats().Batcher.Stopped)

			// Nothing was lost: the next process knows what came in, and goes on with everybody. It knows of this one's end only what was flushed.
			events := scalar[int](t, n.direct, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`)
			require.Equal(t, n.received+3, events, "and one when they met")
			n.next(broken, false)
			for i := range 3 {
				n.send(fmt.Sprint("afterwards ", i))
				n.receive(fmt.Sprint("afterwards ", i))
				n.answer(fmt.Sprint("afterwards ", i))
			}
			require.Zero(t, n.repeated, "message keys used twice")
			require.NoError(t, n.c.Close())
		})
	}
}

// next is a process after one that died while the network was broken: of its last messages the database does not know.
func (n *overNetwork) next(broken brokenNetwork, off bool) {
	mend := broken.breakIt(n, n.network, n.direct)
	for i := range 20 {
		n.send(fmt.Sprint("at the end ", i))
	}
	n.network.Down()
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_ = n.c.Shutdown(gone) // what it could not save is lost
	n.network.Up()
	mend()
	n.open()
	if off {
		n.c.IgnoreUncleanEnds()
	}
	d, err := n.c.GetDevice(ctx, *n.d.ID)
	require.NoError(n, err)
	n.ours = signaltest.NewPeer(d)
}

// The judge fires: without the mechanism the same ends bring keys back.
func TestWithoutCeilingsABrokenNetworkBringsKeysBack(t *testing.T) {
	t.Parallel()
	n := newOverNetwork(t)
	n.next(brokenNetworks[3], true) // half open: nothing comes through
	n.send("afterwards")
	require.Positive(t, n.repeated, "the judge never fired")
}

// BenchmarkNetwork says how long the client takes for a message on chains that the database knows while the network to it is broken. One
// round is 150 messages each way, and an answer on a new chain with every tenth.
func BenchmarkNetwork(b *testing.B) {
	for _, broken := range brokenNetworks {
		b.Run(broken.name, func(b *testing.B) {
			n := newOverNetwork(b)
			var all tookOver
			for i := range b.N {
				took := n.talkOver(broken, i)
				all.sends = append(all.sends, took.sends...)
				all.receives = append(all.receives, took.receives...)
				all.answers = append(all.answers, took.answers...)
				require.NoError(b, n.c.Flush(ctx)) // the next round has all its counters
			}
			b.ReportMetric(0, "ns/op")
			for name, took := range map[string][]time.Duration{"encrypt": all.sends, "decrypt": all.receives, "answer": all.answers} {
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-p99-µs")
			}
		})
	}
}
