package life

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
)

// The history of a busy account comes right after its pairing, while others write already.
func TestHistoryOfABusyAccount(t *testing.T) {
	t.Parallel()
	const mostTokens = 65_535 / 5 // that sqlstore can store at once: a statement has no more parameters
	size := *historyFlag
	for _, b := range []backend{onPgstore, onSqlstore} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			l := newLife(t, b, func(s *settings) { s.Count, s.Answer = true, true })
			l.start()
			l.pair()
			l.upToDate()
			friend := l.server.NewContact(waserver.ContactConfig{})
			l.talk(friend, "hello")
			before, began := ask[int](l, command{Do: doStatements}), time.Now()
			h, err := l.account.SendHistory(l.ctx, l.device, history.Spec{People: history.People(1, size), Messages: size, Seed: 1, NoNonce: true})
			require.NoError(t, err)
			slowest := time.Duration(0)
			stored := func() bool {
				return l.db.count("message_secret") >= size && l.db.count("contact") >= size &&
					l.db.number("SELECT count(*) FROM "+l.db.lidMap()) >= size &&
					(l.db.count("privacy_token") >= size || !b.ours && size > mostTokens)
			}
			for i := 0; !stored(); i++ {
				require.NoError(t, l.ctx.Err())
				sent, text := time.Now(), fmt.Sprint("meanwhile ", i)
				_, err = friend.SendText(l.account.LID(), text)
				require.NoError(t, err)
				l.heard(friend, "re: "+text)
				slowest = max(slowest, time.Since(sent))
				time.Sleep(200 * time.Millisecond)
			}
			t.Logf("%d message secrets, contacts and LIDs and %d tokens were durable after %v and %d statements; the slowest answer meanwhile took %v",
				size, l.db.count("privacy_token"), time.Since(began).Round(10*time.Millisecond), ask[int](l, command{Do: doStatements})-before, slowest.Round(time.Millisecond))
			l.restart()
			l.talk(friend, "after a kill")
			require.Len(t, h.Secrets, size)
			chats := make(map[types.JID]bool)
			for _, s := range h.Secrets {
				chats[s.Chat] = true
			}
			require.Len(t, chats, size)
			l.requireOnePairing()
			l.requireNothingReused()
		})
	}
}
