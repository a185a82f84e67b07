package life

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
)

const mostTokens = 65_535 / 5 // that sqlstore can store at once: a statement has no more parameters

// The history of a busy account comes right after its pairing, and some more of it while others write already. All of it is there in
// the next process.
func TestP3P7HistoryOfABusyAccountIsStored(t *testing.T) {
	t.Parallel()
	var statements sync.Map // by store
	t.Run("of", func(t *testing.T) {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				statements.Store(b, storeHistory(t, b, *historyFlag))
			})
		}
	})
	ours, ran := statements.Load(onPgstore)
	theirs, ranToo := statements.Load(onSqlstore)
	if ran && ranToo { // -run may leave one of them out
		require.Less(t, ours, theirs, "statements")
	}
}

// storeHistory sends a client a history, and says how many statements it took to store it.
func storeHistory(t *testing.T, b backend, size int) int {
	t.Helper()
	l := newLife(t, b, func(s *settings) { s.Count, s.Answer = true, true })
	l.start()
	l.pair()
	l.upToDate()
	friend := l.server.NewContact(waserver.ContactConfig{})
	l.talk(friend, "hello")
	before, began := ask[int](l, command{Do: doStatements}), time.Now()
	h, err := l.account.SendHistory(l.ctx, l.device, history.Spec{People: history.People(1, size), Messages: size, Seed: 1, NoNonce: true})
	require.NoError(t, err)
	tokens := size
	if !b.ours && size > mostTokens {
		tokens = 0
	}
	stored := func(size, tokens int) bool {
		return l.db.count("message_secret") >= size && l.db.count("contact") >= size && l.db.count("privacy_token") >= tokens &&
			l.db.count("nct_salt") == 1 && l.db.number("SELECT count(*) FROM "+l.db.lidMap()) >= size
	}
	for !stored(size, tokens) { // nobody writes: what that takes depends on the time
		require.NoError(t, l.ctx.Err())
		time.Sleep(tick)
	}
	statements := ask[int](l, command{Do: doStatements}) - before
	t.Logf("%d message secrets, contacts and LIDs and %d tokens were durable after %v and %d statements",
		size, l.db.count("privacy_token"), time.Since(began).Round(10*time.Millisecond), statements)
	more := size / 10
	later, err := l.account.SendHistory(l.ctx, l.device, history.Spec{People: history.People(1+size, more), Messages: more, Seed: 2, NoNonce: true})
	require.NoError(t, err)
	slowest := time.Duration(0)
	for i := 0; !stored(size+more, tokens+more); i++ {
		require.NoError(t, l.ctx.Err())
		sent, text := time.Now(), fmt.Sprint("meanwhile ", i)
		_, err = friend.SendText(l.account.LID(), text)
		require.NoError(t, err)
		l.heard(friend, "re: "+text)
		slowest = max(slowest, time.Since(sent))
		time.Sleep(tick)
	}
	t.Logf("the slowest answer while %d more came took %v", more, slowest.Round(time.Millisecond))
	l.kill()
	require.Len(t, h.Secrets, size)
	h.NCTSalt = later.NCTSalt // there is one
	l.requireHistory(h, tokens)
	l.requireHistory(later, more)
	l.start()
	l.await(ofKind(saidConnected))
	l.talk(friend, "after a kill")
	l.requireOnePairing()
	l.requireNothingReused()
	return statements
}

// requireHistory requires that the next process reads each message secret of a history, and what there is of a sample of its people.
func (l *life) requireHistory(h *history.History, tokens int) {
	l.t.Helper()
	c := l.open()
	defer func() { require.NoError(l.t, c.Close()) }()
	device, err := c.GetFirstDevice(l.ctx)
	require.NoError(l.t, err)
	var readers errgroup.Group
	for part := range slices.Chunk(h.Secrets, 1+len(h.Secrets)/8) {
		readers.Go(func() error {
			for _, want := range part {
				secret, sender, err := device.MsgSecrets.GetMessageSecret(l.ctx, want.Chat, want.Sender, want.ID)
				if err != nil || sender != want.Sender || !bytes.Equal(secret, want.Secret) {
					return fmt.Errorf("secret of message %s in %s is %x of %s (%w)", want.ID, want.Chat, secret, sender, err)
				}
			}
			return nil
		})
	}
	require.NoError(l.t, readers.Wait())
	for i := 0; i < len(h.People); i += 37 {
		person := h.People[i]
		contact, err := device.Contacts.GetContact(l.ctx, person.PN)
		require.NoError(l.t, err)
		require.Equal(l.t, person.Name, contact.PushName)
		lid, err := device.LIDs.GetLIDForPN(l.ctx, person.PN)
		require.NoError(l.t, err)
		require.Equal(l.t, person.LID, lid)
		pn, err := device.LIDs.GetPNForLID(l.ctx, person.LID)
		require.NoError(l.t, err)
		require.Equal(l.t, person.PN, pn)
		if i < tokens {
			token, err := device.PrivacyTokens.GetPrivacyToken(l.ctx, person.LID)
			require.NoError(l.t, err)
			require.Equal(l.t, h.Tokens[i].Token, token.Token)
			require.True(l.t, h.Tokens[i].Timestamp.Equal(token.Timestamp), person.LID)
		}
	}
	salt, err := device.NCTSalt.GetNCTSalt(l.ctx)
	require.NoError(l.t, err)
	require.Equal(l.t, h.NCTSalt, salt)
}
