package life

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
)

// fewReserved is how many counters rows reserve here: so few that a burst is more.
const fewReserved = 4

// rewound is a client whose database loses what it had committed, or moves to another server. It talks in ways that bring keys back if rows
// come back: on chains that nobody answers, so that they stay the same, and further than rows reserve; on chains that
// change with every message; on sessions and in settings that only the lost part of the database knows.
type rewound struct {
	*talking
	cluster *pgtest.Cluster
	silent  *waserver.Contact // who answers nothing
	named   []string          // the names that the phone has given to people
	first   *process          // which was frozen
}

// newRewound is one on a cluster, that has talked to everybody.
func newRewound(t testing.TB, edit ...func(*settings)) *rewound {
	t.Helper()
	cluster := pgtest.NewCluster(t)
	r := newRewoundOn(t, cluster.DSN, edit...)
	r.cluster = cluster
	return r
}

// newRewoundOn is one on a database that somebody else looks after.
func newRewoundOn(t testing.TB, dsn string, edit ...func(*settings)) *rewound {
	t.Helper()
	few := func(s *settings) { s.Answer, s.Reserve = true, fewReserved }
	l := newLifeOn(t, onPgstore, dsn, append([]func(*settings){few}, edit...)...)
	l.troubles = []string{noConnection, keyUsed} // a send is refused whose chain is given up in the middle of it
	l.pairSynced(appstate.Contact(person(0), "P", "Person 0"), appstate.Archive(person(0), true))
	r := &rewound{talking: &talking{life: l, in: make(map[string][]*waserver.Contact), out: make(map[string][]*waserver.Contact)}}
	r.silent = l.server.NewContact(waserver.ContactConfig{Devices: 2})
	r.friends = []*waserver.Contact{r.silent, l.server.NewContact(waserver.ContactConfig{}), l.server.NewContact(waserver.ContactConfig{Devices: 2})}
	r.group = l.server.NewGroup(waserver.GroupConfig{}, slices.Concat([]*waserver.Contact{l.account.Contact}, r.friends)...)
	r.hear(r.silent, "hello, from one who is silent from now on")
	r.talkAbout("the beginning")
	r.save()
	return r
}

// save makes everything durable.
func (r *rewound) save() {
	r.t.Helper()
	r.settle()
	r.do(command{Do: doFlush})
}

// hear lets somebody write to the client, and waits until it has handled that.
func (r *rewound) hear(from *waserver.Contact, text string) {
	r.t.Helper()
	r.in[text] = []*waserver.Contact{from}
	r.hello(from, text)
}

// tell lets the client write to somebody.
func (r *rewound) tell(to *waserver.Contact, text string) {
	r.t.Helper()
	r.out[text] = []*waserver.Contact{to}
	r.say(to.LID(), text)
}

// talkAbout lets the client talk with everybody, in all ways, and change a setting.
func (r *rewound) talkAbout(what string) {
	r.t.Helper()
	for i := range 2 * fewReserved {
		r.tell(r.silent, fmt.Sprintf("%d, about %s", i, what))
		text := fmt.Sprintf("%d, about %s, to all", i, what)
		r.out[text] = r.friends
		r.say(r.group.JID(), text)
	}
	for _, friend := range r.friends[1:] {
		r.hear(friend, "about "+what+", from "+friend.PN().User)
		text := "about " + what + ", to all, from " + friend.PN().User
		r.in[text] = r.friends
		_, err := friend.SendText(r.group.JID(), text)
		require.NoError(r.t, err)
		r.await(message(text))
	}
	r.hear(r.server.NewContact(waserver.ContactConfig{Devices: 2}), "about "+what+", and nice to meet you")
	r.tell(r.server.NewContact(waserver.ContactConfig{Devices: 2}), "nice to meet you, about "+what)
	r.named = append(r.named, what)
	r.change(appstate.Contact(person(len(r.named)), "P", what))
	for i, name := range r.named {
		r.awaitName(person(i+1), name) // also those that only the lost part of the database knew
	}
}

// while lets the client and its contacts write at random while something happens, which is done in a goroutine of its own.
func (r *rewound) while(happen func()) {
	r.t.Helper()
	const around = 200 * time.Millisecond // there is traffic before and after it, too
	over := make(chan time.Time)
	go func() {
		defer close(over) // also when it fails the test
		time.Sleep(around)
		happen()
		time.Sleep(around)
	}()
	r.took("meanwhile", r.talkUntil(over))
}

// stats are the container's, as far as they are about databases that go back.
func (r *rewound) stats() (s struct{ Healed, Replayed int64 }) {
	r.t.Helper()
	return ask[struct{ Healed, Replayed int64 }](r.life, command{Do: doStats})
}

// goOn lets the client talk on, die, and come back, and holds the store against what it promises.
func (r *rewound) goOn() {
	r.t.Helper()
	r.db.pool.Reset()
	r.talkAbout("what comes afterwards")
	r.check()
	r.restart()
	r.talkAbout("what comes after a kill")
	r.save()
	r.quit()
	r.start()
	r.await(ofKind(saidConnected))
	r.talkAbout("the end")
	r.check()
}

// check requires that no key was used twice, that nobody paired again, and that everything was read, at once or when it was asked for again.
func (r *rewound) check() {
	r.t.Helper()
	r.settle()
	lost, unanswered, unread := r.tally()
	r.requireOnePairing()
	if r.first == nil {
		r.requireNothingReused()
	} else {
		r.requireNoKeyTwice()
	}
	r.requireNobodyLeftOut()
	r.requireSynced()
	require.Zero(r.t, lost, "messages that the handler never saw")
	require.Zero(r.t, unanswered, "messages that were handled and never answered")
	require.Zero(r.t, unread, "messages of the client that did not arrive")
	for _, e := range r.events(ofKind(saidUndecryptable)) {
		require.NotEmpty(r.t, r.events(func(m event) bool { return m.Kind == saidMessage && m.ID == e.ID }), "%s of %s was undecryptable for ever", e.ID, e.Sender)
	}
	for _, friend := range r.friends {
		for _, e := range friend.Undecryptable() {
			require.True(r.t, e.Recovered, "%+v", e)
		}
	}
}

// fires requires that the judge finds keys that were used twice, now that nothing keeps them from coming back.
func (r *rewound) fires() {
	r.t.Helper()
	r.db.pool.Reset()
	for i := range 4 * fewReserved {
		r.say(r.silent.LID(), fmt.Sprint("once more ", i))
		r.say(r.group.JID(), fmt.Sprint("once more ", i))
	}
	found := make(map[waserver.Reuse]int)
	for _, f := range r.server.Record().Reused() {
		found[f.Kind]++
	}
	r.t.Log("used twice: ", found)
	require.NotZero(r.t, found[waserver.ReusedCounter], "the judge never fired")
}
