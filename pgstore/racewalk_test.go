package pgstore_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	raceWalks = flag.Int("race.walks", 10, "how many random interleavings each setting tries")
	raceSeed  = flag.Uint64("race.seed", rand.Uint64(), "the first one's seed")
)

// walk is a random interleaving: sends, answers and decrypts that are held before their Puts and let go in any order, new sessions, migrations
// and deletions in between.
type walk struct {
	*talk
	walkConfig
	rng     *rand.Rand
	log     []string
	faults  []string
	held    map[string]func()
	deleted bool // what was written on a session that is gone cannot be read, and nothing can be sent on it
	n       int
}

type walkConfig struct {
	name                    string
	migrates, deletes, anew bool
	pn, lid                 types.JID
}

func (w *walk) say(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *walk) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// arrive is the judge, and the peer that reads.
func (w *walk) arrive(name string, node *waBinary.Node, err error) {
	switch {
	case errors.Is(err, pgstore.ErrMessageKeyUsed):
		w.say("%s is refused", name)
	case err != nil && w.deleted:
		w.say("%s fails", name)
	case err != nil:
		w.fault("%s: %v", name, err)
	default:
		at, body := placeOf(w, 0, node)
		if old, twice := w.seen[at]; twice && old != string(body) {
			w.fault("%s: message key used twice", name)
		}
		w.seen[at] = string(body)
		if got, err := w.theirs.Receive(ctx, w.ours.Address(), node); err != nil || string(got) != name {
			w.fault("%s: the peer cannot read it: %v", name, err)
		}
	}
}

// op is something that one goroutine does, and before which of its Puts it can be held.
func (w *walk) op(kind string) (name, at string, do func(context.Context)) {
	w.n++
	name = fmt.Sprint(kind, " ", w.n)
	to, text := w.to, []byte(name)
	switch kind {
	case "send":
		return name, aSend, func(ctx context.Context) {
			all, err := w.ours.Send(ctx, []types.JID{to}, text)
			w.arrive(name, all[to], err)
		}
	case "answer":
		return name, anAnswer, func(ctx context.Context) {
			node, err := w.ours.Answer(ctx, to, text)
			w.arrive(name, node, err)
		}
	case "meet":
		return name, anAnswer, func(ctx context.Context) {
			node, err := w.ours.Meet(ctx, w.theirs, text)
			w.arrive(name, node, err)
		}
	}
	in := w.written
	if kind == "read anew" {
		in = w.writtenAnew
	}
	l := in()
	return name, w.aDecrypt, func(ctx context.Context) {
		if got, err := w.ours.Receive(ctx, l.from, l.node); (err != nil || string(got) != l.text) && !w.deleted {
			w.fault("%s: we cannot read it: %v", name, err)
		}
	}
}

// start does something, or holds it.
func (w *walk) start(kind string) {
	name, at, do := w.op(kind)
	if len(w.held) == 4 || w.rng.IntN(2) == 0 {
		w.say("%s", name)
		do(ctx)
		return
	}
	w.say("%s is held", name)
	h := &hold{at: at, arrived: make(chan struct{}), released: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(context.WithValue(ctx, holdKey{}, h))
	}()
	select {
	case <-h.arrived:
		w.held[name] = func() {
			close(h.released)
			<-done
		}
	case <-done: // it came to nothing
	}
}

func (w *walk) letGo() {
	if len(w.held) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(w.held))
	name := names[w.rng.IntN(len(names))]
	w.say("%s goes on", name)
	w.held[name]()
	delete(w.held, name)
}

func (w *walk) step() {
	switch x := w.rng.IntN(20); {
	case x < 4:
		w.start("send")
	case x < 8:
		w.start("answer")
	case x < 13:
		w.start("read")
	case x == 13 && w.anew:
		w.start("read anew")
	case x == 14 && w.anew && w.to == w.lid:
		w.start("meet")
	case x == 15 && w.migrates:
		w.say("migrate")
		w.to = w.lid
		require.NoError(w, w.ours.Device.Sessions.MigratePNToLID(ctx, w.pn.ToNonAD(), w.lid.ToNonAD()))
	case x == 16 && w.deletes:
		w.say("delete")
		w.deleted = true
		w.deleteSession()
		_, _, read := w.op("read anew")
		read(ctx)
	default:
		w.letGo()
	}
}

// run is one walk; in the end both go on talking.
func (w *walk) run() {
	if w.migrates {
		w.to = w.pn
		w.do(w.read(w.writtenAnew()), w.send, w.read(w.written()), w.send)
	} else {
		w.introduce()
	}
	for range 24 {
		w.step()
	}
	for len(w.held) > 0 {
		w.letGo()
	}
	w.deleted = false
	for _, kind := range []string{"read anew", "send", "read", "answer", "send", "read", "answer"} {
		name, _, do := w.op(kind)
		w.say("%s", name)
		do(ctx)
	}
}

func TestP4RandomInterleavingsUseNoMessageKeyTwice(t *testing.T) {
	t.Parallel()
	t.Logf("seed %d", *raceSeed)
	for _, cfg := range []walkConfig{
		{name: "messages"},
		{name: "new sessions", anew: true},
		{name: "migrations", migrates: true},
		{name: "new sessions and migrations", anew: true, migrates: true},
		{name: "deletions", deletes: true},
		{name: "everything", anew: true, migrates: true, deletes: true},
	} {
		for client, newTalk := range map[string]func(*testing.T) *talk{"event buffer": newTalk, "no event buffer": newUnbufferedTalk} {
			t.Run(cfg.name+", "+client, func(t *testing.T) {
				t.Parallel()
				one := newTalk(t)
				for n := range uint64(*raceWalks) {
					own := *one
					own.theirs = signaltest.NewPeer(signaltest.NewMemoryPhone(one.c.NewDevice()))
					own.to, own.seen = own.theirs.Address(), make(map[place]string)
					w := &walk{talk: &own, walkConfig: cfg, rng: rand.New(rand.NewPCG(*raceSeed+n, 7)), held: make(map[string]func())}
					w.pn, w.lid = *own.theirs.Device.ID, own.theirs.Address()
					w.run()
					require.Empty(t, w.faults, "seed %d: %s", *raceSeed+n, strings.Join(w.log, "; "))
				}
			})
		}
	}
}
