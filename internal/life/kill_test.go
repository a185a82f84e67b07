package life

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

// killing is a client that is killed again and again while it answers its contacts and writes to them.
type killing struct {
	*life
	rng     *rand.Rand
	all     []*waserver.Contact
	friends []*waserver.Contact // who write now
	members []*waserver.Contact // of the group
	group   *waserver.Group
	sent    map[string][]*waserver.Contact // texts of contacts, and who is to get the answer
	next    int
	missing map[string]bool // what was acknowledged and is not in the database, by the keys of the event buffer
	cluster *pgtest.Cluster // which is killed, too; or nil
	crashes int             // how often it was
}

func newKilling(l *life, rng *rand.Rand) *killing {
	k := &killing{life: l, rng: rng, sent: make(map[string][]*waserver.Contact), missing: make(map[string]bool)}
	for i := range 3 {
		k.members = append(k.members, l.server.NewContact(waserver.ContactConfig{Devices: 1 + i%2}))
	}
	k.all = slices.Clone(k.members)
	k.group = l.server.NewGroup(waserver.GroupConfig{}, slices.Concat([]*waserver.Contact{l.account.Contact}, k.members)...)
	return k
}

// traffic lets contacts write, and the client, for a while, in the group too. What the client is told to write and has not written
// when it is killed is nobody's loss.
func (k *killing) traffic(length time.Duration) {
	k.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(k.upTo(20 * time.Millisecond)) {
		friend := k.friends[k.rng.IntN(len(k.friends))]
		people, ours, theirs := []*waserver.Contact{friend}, friend.LID(), k.account.LID()
		if k.rng.IntN(3) == 0 {
			friend, people = k.members[k.rng.IntN(len(k.members))], k.members
			ours, theirs = k.group.JID(), k.group.JID()
		}
		k.next++
		if k.set.Answer && k.next%3 == 0 {
			k.begin(command{Do: doSay, To: ours, Text: fmt.Sprint("own ", k.next)})
			continue
		}
		text := fmt.Sprint("message ", k.next)
		devices := friend.Devices()
		_, err := devices[k.rng.IntN(len(devices))].Send(theirs, waserver.Conversation(text))
		require.NoError(k.t, err)
		k.sent[text] = people
	}
}

// upTo is a random duration.
func (k *killing) upTo(most time.Duration) time.Duration {
	return time.Duration(k.rng.Int64N(int64(most)))
}

// round lets a client live for a random time and kills it. Some are killed before they have logged in.
func (k *killing) round() {
	k.t.Helper()
	k.start()
	newcomer := k.server.NewContact(waserver.ContactConfig{Devices: 1 + k.rng.IntN(2)}) // whose messages are first ones
	k.all = append(k.all, newcomer)
	k.friends = k.all[max(0, len(k.all)-8):]
	crash := k.cluster != nil && k.rng.IntN(3) == 0
	if crash || k.rng.IntN(4) > 0 {
		k.await(ofKind(saidConnected))
	}
	length := 600 * time.Millisecond
	delay := k.upTo(length)
	if k.rng.IntN(3) == 0 {
		k.device.SpendPreKeys(k.rng.IntN(5)) // the client uploads new ones
		length *= 2                          // and may have the time to take note of that
	}
	crashed := make(chan struct{})
	go func() {
		defer close(crashed) // also when it fails the test
		if crash {
			time.Sleep(delay)
			k.cluster.Crash()
		}
	}()
	k.traffic(k.upTo(length))
	k.kill()
	<-crashed
	if crash {
		k.crashes++
		k.db.pool.Reset()
	}
}

// TestP4KilledWithItsDatabase kills the database, too, in a part of the rounds: before the client, after it, or with nobody noticing. It reserves few
// counters, or many, and in some rounds flushes only what somebody waits for.
func TestP4KilledWithItsDatabase(t *testing.T) {
	t.Parallel()
	rng := random(t)
	cluster := pgtest.NewCluster(t)
	l := newLifeOn(t, onPgstore, cluster.DSN, func(s *settings) { s.Answer = true })
	l.troubles = []string{noConnection}
	l.start()
	l.pair()
	l.upToDate()
	l.quit()
	k := newKilling(l, rng)
	k.cluster = cluster
	for range *roundsFlag {
		k.set.Reserve, k.set.Lazy = []int{1, 4, 64}[rng.IntN(3)], rng.IntN(3) == 0
		k.round()
		maps.Copy(k.missing, l.acknowledgedAndMissing())
	}
	k.set.Lazy = false
	k.comeBack()
	t.Logf("the database was killed in %d rounds", k.crashes)
	k.check()
}

// The judge fires: without the mechanism a single kill brings keys back.
func TestWithoutTheMechanismAKillBringsKeysBack(t *testing.T) {
	t.Parallel()
	l := paired(t, onPgstore, func(s *settings) { s.Off, s.Lazy = true, true })
	friend := l.server.NewContact(waserver.ContactConfig{})
	l.hello(friend, "hello, and nothing else")
	for range 2 {
		for i := range 5 {
			l.say(friend.LID(), fmt.Sprint("on one chain ", i))
		}
		l.restart()
	}
	require.True(t, slices.ContainsFunc(l.server.Record().Reused(), func(f waserver.Finding) bool { return f.Kind == waserver.ReusedCounter }), "the judge never fired")
}

// encrypting is a setting with a key of its own.
func encrypting(t testing.TB) func(*settings) {
	key, err := encryption.NewKey("life")
	require.NoError(t, err)
	return func(s *settings) { s.Keys = key }
}

func TestP3P4P5KilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		backend backend
		rounds  int
		set     func(*settings)
	}{
		{"pgstore as we advise", onPgstore, *roundsFlag, func(*settings) {}},
		{"pgstore that encrypts", onPgstore, *roundsFlag / 2, encrypting(t)},
		{"pgstore, acknowledgements wait for nothing durable", onPgstore, *roundsFlag, func(s *settings) { s.Durable = false }},
		{"pgstore, acknowledgements in the background", onPgstore, *roundsFlag / 2, func(s *settings) { s.Synchronous = false }},
		{"pgstore, only listens", onPgstore, *roundsFlag / 2, func(s *settings) { s.Answer = false }},
		{"pgstore, only listens, acknowledgements wait for nothing durable", onPgstore, *roundsFlag / 2, func(s *settings) { s.Answer, s.Durable = false, false }},
		{"pgstore, no event buffer", onPgstore, *roundsFlag / 2, func(s *settings) { s.Buffer, s.Durable = false, false }},
		{"sqlstore", onSqlstore, *roundsFlag / 2, func(*settings) {}},
		{"sqlstore, no event buffer", onSqlstore, *roundsFlag / 2, func(s *settings) { s.Buffer = false }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rng := random(t)
			l := paired(t, c.backend, func(s *settings) { s.Answer = true }, c.set)
			l.troubles = []string{noConnection} // it is told to write before it has logged in
			l.upToDate()
			l.quit()
			k := newKilling(l, rng)
			for range c.rounds {
				k.round()
				if l.set.Buffer {
					maps.Copy(k.missing, l.acknowledgedAndMissing())
				}
			}
			k.comeBack()
			k.check()
		})
	}
}

// comeBack starts the client for the last time and waits until nothing is on its way any more.
func (k *killing) comeBack() {
	k.t.Helper()
	k.start()
	k.await(ofKind(saidConnected))
	k.settle()
	for _, friend := range slices.Concat(k.friends, k.members) { // everybody can still talk to the client
		k.talk(friend, "at last")
	}
	k.say(k.group.JID(), "everybody at last")
	for _, member := range k.members {
		k.heard(member, "everybody at last")
	}
	k.settle()
}

// check holds the store against what it promises, and says what happened where it promises nothing.
func (k *killing) check() {
	k.t.Helper()
	if k.set.Keys != "" {
		require.Zero(k.t, k.db.number(`SELECT count(*) FROM whatsmeow.auth_keys WHERE NOT data ? 'enc'`), "plain rows")
	}
	handled := k.handled()
	lost, unanswered, again := 0, 0, 0
	for text, people := range k.sent {
		if handled[text] == 0 {
			lost++
		} else if k.set.Answer && !got(people, "re: "+text) {
			unanswered++
		}
		again += max(0, handled[text]-1)
	}
	unread, forEver := 0, 0
	for _, friend := range k.all {
		for _, e := range friend.Undecryptable() {
			unread++
			if !e.Recovered {
				forEver++
			}
		}
	}
	stats := k.server.Stats()
	k.t.Logf("%d kills, %d messages in, %d out: %d never handled, %d never answered, %d handled again; %d retry receipts of the client; contacts could not read %d at first, %d for ever; %d pre-keys uploaded, %d of them again; %d acknowledged and not in the event buffer",
		k.started-2, len(k.sent), stats.Messages, lost, unanswered, again, stats.RetryReceipts, unread, forEver, stats.PreKeysUploaded, stats.PreKeysRepeated, len(k.missing))
	k.requireOnePairing()
	k.requireNothingReused()
	k.requireNobodyLeftOut()
	require.Zero(k.t, stats.Unread, "connections of which something may be missing in the record")
	long := k.started-2 >= 50
	if long {
		require.NotZero(k.t, stats.Redelivered, "no kill was in the middle of something")
	}
	if k.backend.ours {
		require.Zero(k.t, unread, "messages that contacts could not read")
	}
	if !k.set.Buffer {
		return // what was decrypted and not handled when the client was killed is lost on any store
	}
	require.Zero(k.t, lost, "messages that the handler never saw")
	if !k.backend.ours {
		require.LessOrEqual(k.t, unanswered, forEver, "answers that nobody could read are as good as none")
		return
	}
	require.Zero(k.t, unanswered, "messages that were handled and never answered")
	for _, e := range k.events(ofKind(saidUndecryptable)) {
		require.True(k.t, k.came(e.ID), "message %s of %s was undecryptable for ever", e.ID, e.Sender)
	}
	if k.set.Durable {
		require.Empty(k.t, k.missing, "messages that were acknowledged and are not in the database")
		if k.cluster == nil { // for which a new chain may have waited in vain
			require.Zero(k.t, stats.RetryReceipts, "retry receipts")
		}
	} else if !k.set.Answer && long {
		require.NotEmpty(k.t, k.missing, "nothing would be missing on any store: the comparison sees nothing")
	}
}

// came reports whether the handler has seen a message.
func (k *killing) came(id string) bool {
	return len(k.events(func(e event) bool { return e.Kind == saidMessage && e.ID == id })) > 0
}
