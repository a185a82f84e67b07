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
	restart func(*pgtest.Container)    // to a server of its own
	network func(*life, *pgtest.Proxy) // between the client and the server
}

var badDays = []badDay{
	{name: "restarted", restart: (*pgtest.Container).Restart},
	{name: "killed and restarted", restart: (*pgtest.Container).Kill},
	{name: "away", network: func(_ *life, p *pgtest.Proxy) {
		p.Down()
		time.Sleep(*awayFlag)
		p.Up()
	}},
	{name: "silent", network: func(_ *life, p *pgtest.Proxy) {
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
	before := k.talkUntil(time.After(500 * time.Millisecond))
	over := make(chan time.Time)
	go func() {
		defer close(over) // also when it fails the test
		happen()
	}()
	meanwhile := k.talkUntil(over)
	after := k.talkUntil(time.After(500 * time.Millisecond))
	k.check(before, meanwhile, after)
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

// check waits until all is quiet, and holds the store against what it promises.
func (k *talking) check(phases ...[]sending) {
	k.t.Helper()
	latency := ""
	for i, name := range []string{"before", "meanwhile", "after"} {
		var took []time.Duration
		for _, s := range phases[i] {
			select {
			case e := <-s.done:
				require.Empty(k.t, e.Error)
				took = append(took, e.At.Sub(s.began))
			case <-k.ctx.Done():
				require.Fail(k.t, "a message was not sent", "%q, %s", s.text, name)
			}
		}
		require.NotEmpty(k.t, took, "sends %s", name)
		slices.Sort(took)
		latency += fmt.Sprintf("; %s %d sends took %v at the median and %v at the most", name, len(took), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
	k.settle()
	handled := k.handled()
	lost, unanswered, unread := 0, 0, 0
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
	k.t.Logf("%d in, %d out: %d never handled, %d never answered, %d never read; %d retry receipts of the client, %d answers of it to such%s",
		len(k.in), len(k.out), lost, unanswered, unread, stats.RetryReceipts, stats.RetryAnswers, latency)
	k.requireOnePairing()
	k.requireNothingReused()
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
