package life

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// killing is a client that is killed again and again while it answers its contacts and writes to them.
type killing struct {
	*life
	rng     *rand.Rand
	all     []*waserver.Contact
	friends []*waserver.Contact          // who write now
	sent    map[string]*waserver.Contact // texts of contacts
	next    int
}

// traffic lets contacts write, and the client, for a while. What the client is told to write and has not written when it is killed
// is nobody's loss.
func (k *killing) traffic(length time.Duration) {
	k.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(k.upTo(20 * time.Millisecond)) {
		friend := k.friends[k.rng.IntN(len(k.friends))]
		k.next++
		if k.set.Answer && k.next%3 == 0 {
			k.begin(command{Do: doSay, To: friend.LID(), Text: fmt.Sprint("own ", k.next)})
			continue
		}
		text := fmt.Sprint("message ", k.next)
		devices := friend.Devices()
		_, err := devices[k.rng.IntN(len(devices))].Send(k.account.LID(), waserver.Conversation(text))
		require.NoError(k.t, err)
		k.sent[text] = friend
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
	if k.rng.IntN(4) > 0 {
		k.await(ofKind(saidConnected))
	}
	if k.rng.IntN(3) == 0 {
		k.device.SpendPreKeys(k.rng.IntN(5)) // the client uploads new ones
	}
	k.traffic(k.upTo(600 * time.Millisecond))
	k.kill()
}

// acknowledged is how many messages of contacts the client has acknowledged.
func (k *killing) acknowledged() int {
	ids := make(map[string]bool)
	for _, friend := range k.all {
		for _, r := range friend.Receipts() {
			if r.From == k.device.LID() && r.Type != "retry" {
				ids[r.ID] = true
			}
		}
	}
	return len(ids)
}

func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		backend backend
		rounds  int
		set     func(*settings)
	}{
		{"pgstore as we advise", onPgstore, *roundsFlag, func(*settings) {}},
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
			l := paired(t, c.backend, func(s *settings) { s.Answer, s.RetryStore = true, true }, c.set)
			l.troubles = []string{noConnection} // it is told to write before it has logged in
			l.quit()
			k := &killing{life: l, rng: rng, sent: make(map[string]*waserver.Contact)}
			missing := 0
			for range c.rounds {
				k.round()
				held := l.db.count("buffered_event")
				if gone := k.acknowledged() - held; gone > 0 && l.set.Buffer {
					missing = max(missing, gone)
				}
			}
			k.comeBack()
			k.check(missing)
		})
	}
}

// comeBack starts the client for the last time and waits until nothing is on its way any more.
func (k *killing) comeBack() {
	k.t.Helper()
	k.start()
	k.await(ofKind(saidConnected))
	k.settle()
	for _, friend := range k.friends { // everybody can still talk to the client
		k.talk(friend, "at last")
	}
	k.settle()
}

// check holds the store against what it promises, and says what happened where it promises nothing.
func (k *killing) check(missing int) {
	k.t.Helper()
	handled := k.handled()
	lost, unanswered, again := 0, 0, 0
	for text, friend := range k.sent {
		if handled[text] == 0 {
			lost++
		} else if k.set.Answer && !answered(friend, "re: "+text) {
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
	k.t.Logf("%d kills, %d messages in, %d out: %d never handled, %d never answered, %d handled again; %d retry receipts of the client; contacts could not read %d at first, %d for ever; %d pre-keys uploaded, %d of them again; %d acknowledged and not in the database",
		k.started-2, len(k.sent), stats.Messages, lost, unanswered, again, stats.RetryReceipts, unread, forEver, stats.PreKeysUploaded, stats.PreKeysRepeated, missing)
	k.requireOnePairing()
	k.requireNothingReused()
	if !k.set.Buffer {
		return // what was decrypted and not handled when the client was killed is lost on any store
	}
	require.Zero(k.t, lost, "messages that the handler never saw")
	if !k.backend.ours {
		require.LessOrEqual(k.t, unanswered, forEver, "answers that nobody could read are as good as none")
		return
	}
	require.Zero(k.t, unanswered, "messages that were handled and never answered")
	require.Zero(k.t, unread, "messages that contacts could not read")
	for _, e := range k.events(ofKind(saidUndecryptable)) {
		require.True(k.t, k.came(e.ID), "message %s of %s was undecryptable for ever", e.ID, e.Sender)
	}
	if k.set.Durable {
		require.Zero(k.t, missing, "messages that were acknowledged and are not in the database")
		require.Zero(k.t, stats.RetryReceipts, "retry receipts")
	}
}

// came reports whether the handler has seen a message.
func (k *killing) came(id string) bool {
	return len(k.events(func(e event) bool { return e.Kind == saidMessage && e.ID == id })) > 0
}
