package life

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// At the moment at which a client is told that it is paired it is sent to a new connection. Whoever looks at the database then
// finds all that the pairing saved.

func TestP5TheConnectionAfterThePairingFindsWhatWasSaved(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l := newLife(t, b, func(s *settings) { s.Lazy = true }) // only what is waited for is in the database
		l.start()
		held := l.server.Inject(waserver.Fault{Action: waserver.Hold, Times: -1}) // the client fetches nothing yet that it would save
		l.scan()
		said := l.await(ofKind(saidPaired))
		seen := l.seenByOthers()
		found, err := json.Marshal(saved(seen))
		require.NoError(t, err)
		require.JSONEq(t, string(said.Value), string(found))
		require.Equal(t, l.device.PN(), *seen.ID)
		require.Equal(t, l.device.LID(), seen.LID)
		require.NotEmpty(t, seen.Account.GetDeviceSignature())
		require.Equal(t, 1, l.db.number("SELECT count(*) FROM "+l.db.lidMap()+" WHERE lid = $1 AND pn = $2", l.device.LID().User, l.device.PN().User))
		held.Release()
		l.await(ofKind(saidConnected))
		require.NoError(t, l.device.WaitConnected(l.ctx))
		require.Equal(t, 1, l.device.Logins())
		l.set.Lazy = false
		l.restart()
		l.talk(l.server.NewContact(waserver.ContactConfig{}), "hello")
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

// seenByOthers is the device as another container lists it, which takes nothing.
func (l *life) seenByOthers() *store.Device {
	l.t.Helper()
	c := l.open()
	defer func() { require.NoError(l.t, c.Close()) }()
	devices, err := c.GetAllDevices(l.ctx)
	require.NoError(l.t, err)
	require.Len(l.t, devices, 1)
	return devices[0]
}

// A process that dies at that moment, or another one that takes over from it while it lives.
func TestP5P6AnotherProcessMayLogInAtTheMomentOfThePairing(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{true, false} {
		for _, b := range []backend{onPgstore, onSqlstore} {
			name := b.name + ", the first one lives on"
			if killed {
				name = b.name + ", the first one is killed"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				l := newLife(t, b)
				l.warnings = []string{takenOver} // by the second process
				l.start()
				l.scan()
				l.await(ofKind(saidPaired))
				if killed {
					l.kill()
				}
				l.start()
				l.await(ofKind(saidConnected))
				friend := l.server.NewContact(waserver.ContactConfig{})
				l.talk(friend, "hello")
				l.restart()
				l.talk(friend, "still here")
				l.requireOnePairing()
				l.requireNothingReused()
			})
		}
	}
}
