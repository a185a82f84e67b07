package life

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestP5PairedByQRCodeOnceAndForAll(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l := paired(t, b)
		friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
		l.talk(friend, "first")
		for i := range 2 {
			l.restart()
			l.talk(friend, fmt.Sprint("after a kill ", i))
		}
		l.quit()
		l.start()
		l.talk(friend, "after a clean end")
		require.Empty(t, friend.Undecryptable())
		require.Equal(t, 4, l.device.Logins())
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

func TestP5PairedByCode(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l := newLife(t, b)
		l.start()
		l.await(ofKind(saidQR))
		answer := l.do(command{Do: doPairPhone, Text: l.account.PN().User})
		var err error
		l.device, err = l.account.EnterCode(l.ctx, strings.Trim(string(answer.Value), `"`))
		require.NoError(t, err)
		l.await(ofKind(saidConnected))
		friend := l.server.NewContact(waserver.ContactConfig{})
		l.talk(friend, "first")
		l.restart()
		l.talk(friend, "after a kill")
		require.Equal(t, 1, l.server.Stats().LinkCodes)
		require.Zero(t, l.server.Stats().QRScans)
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

// A gateway names its instances itself. When the phone has removed one's device it is paired again under the same name, in the same
// process or in the next one.
func TestP9PairedAgainUnderTheSameNameNothingOfTheOldLifeRemains(t *testing.T) {
	t.Parallel()
	for _, again := range []string{"in the same process", "in another process", "after a kill at once"} {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(b.name+" "+again, func(t *testing.T) {
				t.Parallel()
				l := paired(t, b, func(s *settings) { s.Instance = "shop 42" })
				friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
				group := l.server.NewGroup(waserver.GroupConfig{}, l.account.Contact, friend)
				friend.GrantPrivacyToken(l.account, []byte("token"))
				l.talk(friend, "old life")
				l.secret(friend)
				l.say(group.JID(), "old group")
				l.heard(friend, "old group")
				l.settle()
				l.do(command{Do: doFlush})
				old, first := l.db.rows(), l.device
				for _, kind := range []string{"session", "identity", "sender_key", "message_secret"} {
					require.NotZero(t, l.db.count(kind), kind)
				}

				l.device.Unlink()
				l.await(ofKind(saidLoggedOut))
				if again == "after a kill at once" {
					l.kill()
				} else {
					l.requireNoDevice()
				}
				if again == "in the same process" {
					l.look()
					l.do(command{Do: doReopen})
				} else {
					if again != "after a kill at once" {
						l.kill()
					}
					l.start()
				}
				l.pairAgain()
				require.NotEqual(t, first.PN(), l.device.PN())
				l.requireNothingOf(old)
				l.requireNothingAbout(friend)
				l.settle()
				l.do(command{Do: doFlush})
				l.requireNothingAbout(friend) // no late write came
				l.talk(friend, "new life")
				l.restart()
				l.talk(friend, "new life goes on")
				require.Equal(t, 2, l.server.Stats().Pairings)
				l.requireNothingReused()
			})
		}
	}
}

// requireNothingAbout requires that the new life, in which nobody has written yet, knows nothing of what was said in the old one, be it
// changed or not.
func (l *life) requireNothingAbout(friend *waserver.Contact) {
	l.t.Helper()
	for _, d := range friend.Devices() {
		for _, of := range []types.JID{d.LID(), d.PN()} {
			require.Zero(l.t, l.db.about("session", of.SignalAddress().String()), "sessions of %s", of)
			require.Zero(l.t, l.db.about("identity", of.SignalAddress().String()), "identities of %s", of)
		}
	}
	require.Zero(l.t, l.db.count("sender_key"), "sender keys")
	require.Zero(l.t, l.db.count("message_secret"), "message secrets")
}

// requireNothingOf requires that no row of an earlier life is there. What the new one honestly wrote again is not one: who the same
// phone is and what it is called, the app state that it shares, and the counter of pre-key ids, of which there were as many.
func (l *life) requireNothingOf(old map[string]int) {
	l.t.Helper()
	again := []string{
		"identity " + l.account.LID().SignalAddress().String(), "contact " + l.account.LID().String(), "contact " + l.account.PN().String(), "creds pre_keys",
		"app_state_key", "app_state_version", "app_state_mac",
	}
	if l.backend.ours {
		require.Zero(l.t, l.db.number(`SELECT count(*) FROM whatsmeow.auth_keys k JOIN whatsmeow.instances i ON i.id = k.instance_id
			WHERE k.updated_at < i.created_at`))
	} else {
		again = []string{"privacy_token"} // sqlstore leaves them behind
	}
	for row := range l.db.rows() {
		if !slices.ContainsFunc(again, func(what string) bool { return strings.HasPrefix(row, what+" ") }) {
			require.Zero(l.t, old[row], "of the old life: %s", row)
		}
	}
}
