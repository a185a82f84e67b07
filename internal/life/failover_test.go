package life

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// loss is a way in which a database loses what it had committed.
type loss struct {
	name string
	// begin is when what is written from now on will be lost. What it returns loses it.
	begin func(*rewound) (lose func())
}

var (
	failover = loss{"failover", func(r *rewound) func() {
		standby := r.cluster.Standby(pgtest.Asynchronous)
		standby.Cut()
		return func() { r.cluster.FailOver(standby) }
	}}
	// restore is to a moment in the middle of things.
	restore = loss{"restore", func(r *rewound) func() {
		r.cluster.Backup()
		r.talkAbout("what the archive has")
		r.while(func() { r.cluster.Mark("moment") })
		return func() { r.cluster.Restore("recovery_target_name", "moment") }
	}}
	// snapshot of a volume: the database cannot tell that it went back.
	snapshot = loss{"snapshot", func(r *rewound) func() {
		r.cluster.Snapshot()
		return r.cluster.Rewind
	}}
)

// fate is what becomes of the client meanwhile.
type fate struct {
	name string
	tail func(*rewound)         // writes what is lost
	over func(*rewound, func()) // and goes on when it is
}

var (
	alive = fate{
		"alive", func(r *rewound) { r.talkAbout("the tail") },
		func(r *rewound, lose func()) {
			r.while(lose)
			require.EqualValues(r.t, 1, r.replayed())
		},
	}
	dead = fate{
		"dead",
		func(r *rewound) {
			r.talkAbout("the tail")
			r.save()
			if r.set.Witness != "" {
				time.Sleep(2 * time.Second) // it is told once a second
			}
			r.kill()
		},
		func(r *rewound, lose func()) {
			lose()
			r.start()
			r.await(ofKind(saidConnected))
		},
	}
	// frozen stands still while somebody else takes the instance, sends, and dies; that he ever had it is lost.
	frozen = fate{
		"frozen",
		func(r *rewound) {
			r.first = r.process
			r.first.freeze()
			r.start()
			r.await(ofKind(saidConnected))
			r.talkAbout("the tail")
			r.save()
			r.kill()
		},
		func(r *rewound, lose func()) {
			lose()
			r.process = r.first
			r.look()
			r.wake()
			// It may still read why it was cut off. If not, it connects again by itself.
			said := r.await(func(e event) bool { return e.Kind == saidReplaced || e.Kind == saidConnected })
			if said.Kind == saidReplaced {
				r.do(command{Do: doReopen})
				r.await(ofKind(saidConnected))
			}
		},
	}
)

// replayed waits until the living owner has noticed and says how often.
func (r *rewound) replayed() int64 {
	r.t.Helper()
	r.save()
	return r.stats().Replayed
}

func (f fate) of(r *rewound, l loss) {
	lose := l.begin(r)
	f.tail(r)
	f.over(r, lose)
}

func TestP4ADatabaseThatGoesBackBringsNoKeyBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		loss      loss
		fate      fate
		witnessed bool
		leased    bool
		encrypts  bool
	}{
		{loss: failover, fate: alive},
		{loss: failover, fate: alive, encrypts: true},
		{loss: restore, fate: dead, encrypts: true},
		{loss: failover, fate: alive, leased: true},
		{loss: failover, fate: dead},
		{loss: failover, fate: frozen},
		{loss: failover, fate: frozen, leased: true},
		{loss: restore, fate: alive},
		{loss: restore, fate: dead},
		{loss: snapshot, fate: alive},
		{loss: snapshot, fate: dead, witnessed: true},
	} {
		t.Run(fmt.Sprintf("%s, %s, leased=%t, encrypts=%t", c.loss.name, c.fate.name, c.leased, c.encrypts), func(t *testing.T) {
			t.Parallel()
			r := newRewound(t, func(s *settings) {
				s.Leased = c.leased
				if c.encrypts {
					encrypting(t)(s)
				}
				if c.witnessed {
					s.Witness = filepath.Join(t.TempDir(), "marks")
				}
			})
			c.fate.of(r, c.loss)
			r.goOn()
		})
	}
}

// The judge fires where nothing keeps keys from coming back: without the mechanism, and without a witness where only that can notice.
func TestWithoutTheMechanismADatabaseThatGoesBackBringsKeysBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		loss loss
		fate fate
		on   bool
	}{
		{loss: failover, fate: dead},
		{loss: failover, fate: frozen},
		{loss: restore, fate: dead},
		{loss: snapshot, fate: dead, on: true},
	} {
		t.Run(fmt.Sprintf("%s, %s", c.loss.name, c.fate.name), func(t *testing.T) {
			t.Parallel()
			r := newRewound(t, func(s *settings) { s.Off = !c.on })
			r.anything = true
			c.fate.of(r, c.loss)
			r.fires()
		})
	}
}

// A failover that loses nothing looks like one that does. Who knows that his loses nothing may say so, and keeps his chains.
func TestP4AFailoverToASynchronousStandbyLosesNothing(t *testing.T) {
	t.Parallel()
	for _, trust := range []bool{false, true} {
		for _, f := range []fate{alive, dead} {
			t.Run(fmt.Sprintf("%s, trusted=%t", f.name, trust), func(t *testing.T) {
				t.Parallel()
				r := newRewound(t, func(s *settings) { s.Trust = trust })
				standby := r.cluster.Standby(pgtest.Synchronous)
				f.tail(r)
				before := r.groupChain()
				lose := func() { r.cluster.FailOver(standby) }
				if f.name == "alive" {
					r.while(lose)
					r.save()
				} else {
					f.over(r, lose)
				}
				r.say(r.group.JID(), "after the failover")
				require.Equal(t, trust, before == r.groupChain(), "chains are kept")
				r.goOn()
			})
		}
	}
}

// groupChain is the sending chain of the client's last message to the group.
func (r *rewound) groupChain() (chain string) {
	for _, sent := range r.server.Record().Sent() {
		if sent.Type == "skmsg" && sent.Sender == r.device.LID() {
			chain = sent.Chain
		}
	}
	return chain
}
