package life

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
)

// busy is a life in which something of every kind is in the tables.
func busy(t *testing.T, b backend) (*life, *waserver.Contact) {
	t.Helper()
	l := synced(t, b, appstate.Contact(person(1), "A", "A"), appstate.Archive(person(1), true), appstate.NCTSalt([]byte("salt")))
	friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
	friend.GrantPrivacyToken(l.account, []byte("token"))
	group := l.server.NewGroup(waserver.GroupConfig{}, l.account.Contact, friend)
	l.talk(friend, "hello")
	l.secret(friend)
	l.say(group.JID(), "everybody")
	l.heard(friend, "everybody")
	l.settle()
	l.do(command{Do: doFlush})
	for kind := range sqlstoreTables {
		require.NotZero(t, l.db.count(kind), kind)
	}
	return l, friend
}

func TestP9LogoutLeavesNothing(t *testing.T) {
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

func TestP9RemovedByThePhoneLeavesNothing(t *testing.T) {
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

func TestP9RemovedWhileAwayLeavesNothing(t *testing.T) {
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
func TestP6ReplacedByAnotherConnectionKeepsEverything(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l, friend := busy(t, b)
		l.warnings = []string{takenOver}
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
			require.ErrorContains(t, err, takenOver, "what it could not save")
		}
		require.NoError(t, first.ended())
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
