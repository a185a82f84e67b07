package life

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// busy is a life in which something of every kind is in the tables.
func busy(t *testing.T, b backend) (*life, *waserver.Contact) {
	t.Helper()
	l := paired(t, b, func(s *settings) { s.RetryStore = true })
	friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
	friend.GrantPrivacyToken(l.account, []byte("token"))
	group := l.server.NewGroup(waserver.GroupConfig{}, l.account.Contact, friend)
	l.talk(friend, "hello")
	l.say(group.JID(), "everybody")
	l.heard(friend, "everybody")
	require.NoError(t, l.server.WaitIdle(l.ctx))
	l.do(command{Do: doFlush})
	for _, kind := range []string{"creds", "identity", "session", "pre_key", "sender_key", "contact", "privacy_token", "buffered_event", "outgoing_event"} {
		require.NotZero(t, l.db.count(kind), kind)
	}
	return l, friend
}

func TestLogoutLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l, _ := busy(t, b)
		l.do(command{Do: doLogout})
		l.requireNoDevice()
		l.quit()
		l.requireNoDevice() // no late write came
		require.Equal(t, 1, l.server.Stats().Unlinked)
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

func TestRemovedByThePhoneLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l, friend := busy(t, b)
		for i := range 20 { // it is removed in the middle of things
			_, err := friend.SendText(l.account.LID(), string(rune('a'+i)))
			require.NoError(t, err)
		}
		l.device.Unlink()
		l.await(ofKind(saidLoggedOut))
		l.requireNoDevice()
		l.quit()
		l.requireNoDevice()
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

func TestRemovedWhileAwayLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l, _ := busy(t, b)
		l.kill()
		l.device.Unlink()
		l.start()
		l.await(ofKind(saidLoggedOut))
		l.requireNoDevice()
		l.quit()
		require.Equal(t, 1, l.server.Stats().RefusedLogins)
		l.requireNothingReused()
	})
}

// A second process takes the connection. The first one stops, the second one has all that the first one had, and nothing that the
// first one does afterwards harms it.
func TestReplacedByAnotherConnectionKeepsEverything(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l, friend := busy(t, b)
		identities, creds := l.db.count("identity"), l.db.count("creds")
		first := l.process
		l.start()
		l.await(ofKind(saidConnected))
		require.NoError(t, l.server.Wait(l.ctx, func() bool { return l.server.Stats().Replaced == 1 }))
		require.Eventually(t, func() bool { return len(l.events(ofKind(saidReplaced))) == 1 }, patience, tick)
		l.talk(friend, "to the second")
		_, err := first.try(command{Do: doSend, To: friend.LID(), Text: "from the first"})
		require.Error(t, err)
		if _, err = first.try(command{Do: doQuit}); err != nil {
			require.ErrorContains(t, err, "taken by another owner", "what it could not save")
		}
		l.talk(friend, "to the second again")
		require.Equal(t, identities, l.db.count("identity"))
		require.Equal(t, creds, l.db.count("creds"))
		l.restart()
		l.talk(friend, "to the third")
		require.Empty(t, friend.Undecryptable())
		l.requireOnePairing()
		l.requireNothingReused()
	})
}
