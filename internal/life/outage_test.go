package life

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// The client answers its contacts and writes to them while something happens to the database, or to the connections.

// badDay is what happens.
type badDay struct {
	name    string
	trouble string                     // for the client's sends
	away    bool                       // nothing can be written for a while
	restart func(*pgtest.Container)    // to a server of its own
	network func(*life, *pgtest.Proxy) // between the client and the server
}

var badDays = []badDay{
	{name: "restarted", restart: (*pgtest.Container).Restart},
	{name: "killed and restarted", restart: (*pgtest.Container).Kill},
	{name: "away", away: true, network: func(_ *life, p *pgtest.Proxy) {
		p.Down()
		time.Sleep(*awayFlag)
		p.Up()
	}},
	{name: "silent", away: true, network: func(_ *life, p *pgtest.Proxy) {
		p.Hang()
		time.Sleep(*awayFlag)
		p.Down() // the connections that hung are of no use any more
		p.Heal()
		p.Up()
	}},
	{name: "connections cut", trouble: noConnection, network: func(l *life, p *pgtest.Proxy) {
		for range 5 {
			time.Sleep(*awayFlag / 10)
			p.Down()
			p.Up()
			l.server.CutAll() // and those to the other side
			time.Sleep(*awayFlag / 10)
			_, _ = l.db.pool.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		}
	}},
}

func TestP7GoesOnThroughBadDaysOfTheDatabase(t *testing.T) {
	t.Parallel()
	for _, day := range badDays {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(day.name+" on "+b.name, func(t *testing.T) {
				t.Parallel()
				live(t, b, day)
			})
		}
	}
}

func live(t *testing.T, b backend, day badDay) {
	var l *life
	var happen func()
	set := func(s *settings) { s.Answer = true }
	if day.restart != nil {
		server := pgtest.NewContainer(t)
		l = newLifeOn(t, b, server.DSN, set)
		happen = func() { day.restart(server) }
	} else {
		l = newLife(t, b, set)
		proxy := pgtest.NewProxy(t, l.dsn)
		l.set.DSN = proxy.DSN
		happen = func() { day.network(l, proxy) }
	}
	if day.trouble != "" {
		l.troubles = []string{day.trouble}
	}
	l.start()
	l.pair()
	k := &talking{life: l, in: make(map[string][]*waserver.Contact), out: make(map[string][]*waserver.Contact)}
	for range 4 {
		friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
		l.talk(friend, "hello "+friend.PN().User)
		k.friends = append(k.friends, friend)
	}
	k.group = l.server.NewGroup(waserver.GroupConfig{}, slices.Concat([]*waserver.Contact{l.account.Contact}, k.friends)...)
	k.took("before", k.talkUntil(time.After(500*time.Millisecond)))
	over := make(chan time.Time)
	go func() {
		defer close(over) // also when it fails the test
		happen()
	}()
	flushes := make(chan int, 2)
	if b.ours && day.away {
		go func() { // in the middle of it, past the proxy
			defer close(flushes)
			for range cap(flushes) {
				time.Sleep(*awayFlag / 3)
				flushes <- l.db.number(`SELECT sum(seq)::int FROM whatsmeow.instances`)
			}
		}()
	}
	meanwhile := k.talkUntil(over)
	if b.ours && day.away {
		first := <-flushes
		require.Equal(t, first, <-flushes, "the database was written while it was away")
	}
	k.took("meanwhile", meanwhile)
	k.settle()
	k.took("after", k.talkUntil(time.After(500*time.Millisecond)))
	k.check()
	k.comeBack()
}

// talking is a client that answers and writes, and how long it takes for that.
type talking struct {
	*life
	friends []*waserver.Contact
	group   *waserver.Group
	in, out map[string][]*waserver.Contact // texts of contacts, and who is to get the answer; of the client, and who is to get them
}

// sending is a text on its way.
type sending struct {
	text  string
	began time.Time
	done  <-chan event
}

// talkUntil lets contacts write, which are answered, and the client.
func (k *talking) talkUntil(over <-chan time.Time) (own []sending) {
	k.t.Helper()
	for i := 0; ; i++ {
		select {
		case <-over:
			return own
		case <-k.ctx.Done():
			require.Fail(k.t, "it takes too long")
		case <-time.After(40 * time.Millisecond):
		}
		friend, text := k.friends[i%len(k.friends)], fmt.Sprint(len(k.in)+len(k.out))
		people, ours, theirs := []*waserver.Contact{friend}, friend.LID(), k.account.LID()
		if i%3 == 0 {
			people, ours, theirs = k.friends, k.group.JID(), k.group.JID()
		}
		if i%2 == 0 {
			_, err := friend.SendText(theirs, text)
			require.NoError(k.t, err)
			k.in[text] = people
		} else {
			k.out[text] = people
			own = append(own, sending{text, time.Now(), k.begin(command{Do: doSay, To: ours, Text: text})})
		}
	}
}

// took waits until all of a phase is sent, and says how long that took.
func (k *talking) took(phase string, sends []sending) {
	k.t.Helper()
	var took []time.Duration
	for _, s := range sends {
		select {
		case e := <-s.done:
			require.Empty(k.t, e.Error)
			took = append(took, e.At.Sub(s.began))
		case <-k.ctx.Done():
			require.Fail(k.t, "a message was not sent", "%q, %s", s.text, phase)
		}
	}
	require.NotEmpty(k.t, took, "sends %s", phase)
	slices.Sort(took)
	longest := took[len(took)-1]
	k.t.Logf("%s: %d sends took %v at the median and %v at the most", phase, len(took), took[len(took)/2].Round(time.Millisecond), longest.Round(time.Millisecond))
}

// comeBack kills the client after its bad day. The next one can talk to everybody, and everything that was acknowledged is there.
func (k *talking) comeBack() {
	k.t.Helper()
	k.kill()
	if missing := k.acknowledgedAndMissing(); k.backend.ours {
		require.Empty(k.t, missing, "messages that were acknowledged and are not in the database")
	} else {
		k.t.Logf("%d acknowledged and not in the event buffer", len(missing))
	}
	k.start()
	k.await(ofKind(saidConnected))
	for _, friend := range k.friends {
		k.hello(friend, "at last, from "+friend.PN().User)
		k.say(friend.LID(), "at last, to "+friend.PN().User)
		k.out["at last, to "+friend.PN().User] = []*waserver.Contact{friend}
		_, err := friend.SendText(k.group.JID(), "at last, to all, from "+friend.PN().User)
		require.NoError(k.t, err)
		k.in["at last, to all, from "+friend.PN().User] = k.friends
	}
	k.say(k.group.JID(), "at last, to all")
	k.out["at last, to all"] = k.friends
	k.check()
}

// check waits until all is quiet, and holds the store against what it promises.
func (k *talking) check() {
	k.t.Helper()
	k.settle()
	lost, unanswered, unread := k.tally()
	stats := k.server.Stats()
	k.requireOnePairing()
	k.requireNothingReused()
	k.requireNobodyLeftOut()
	if !k.backend.ours {
		return // what it could not decrypt while its database was away it has acknowledged
	}
	require.Zero(k.t, lost, "messages that the handler never saw")
	require.Zero(k.t, unanswered, "messages that were handled and never answered")
	require.Zero(k.t, unread, "messages of the client that did not arrive")
	require.Zero(k.t, stats.RetryReceipts)
	require.Empty(k.t, k.events(ofKind(saidUndecryptable)))
	for _, friend := range k.friends {
		require.Empty(k.t, friend.Undecryptable())
	}
}

// tally counts what never arrived, and says it.
func (k *talking) tally() (lost, unanswered, unread int) {
	k.t.Helper()
	handled := k.handled()
	for text, people := range k.in {
		if handled[text] == 0 {
			lost++
		} else if !got(people, "re: "+text) {
			unanswered++
		}
	}
	for text, people := range k.out {
		if !got(people, text) {
			unread++
		}
	}
	stats := k.server.Stats()
	k.t.Logf("%d in, %d out: %d never handled, %d never answered, %d never read; %d retry receipts of the client, %d answers of it to such",
		len(k.in), len(k.out), lost, unanswered, unread, stats.RetryReceipts, stats.RetryAnswers)
	return lost, unanswered, unread
}
