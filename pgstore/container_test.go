package pgstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// However the database's container goes away under a running bot, it is an outage like another: messages go on, and nothing is lost.
func TestP7SurvivesTheDatabasesContainer(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*pgtest.Container){
		"restarted": (*pgtest.Container).Restart,
		"killed":    (*pgtest.Container).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.NewContainer(t)
			c := reopen(t, server.DSN, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
			d := pair(t, c.NewDevice())
			ours, theirs := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
			signaltest.Meet(t, theirs, ours)
			back := make(chan struct{})
			go func() {
				defer close(back)
				end(server)
			}()
			talking := true
			for i := 0; talking; i++ {
				select {
				case <-back:
					talking = false
				default:
				}
				signaltest.Say(t, theirs, ours, fmt.Sprint("in ", i))
				signaltest.Say(t, ours, theirs, fmt.Sprint("out ", i))
			}
			require.NoError(t, c.Flush(ctx))
			session, err := d.Sessions.GetSession(ctx, theirs.Address().SignalAddress().String())
			require.NoError(t, err)
			require.NoError(t, c.Close())
			d, err = reopen(t, server.DSN).GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			saved, err := d.Sessions.GetSession(ctx, theirs.Address().SignalAddress().String())
			require.NoError(t, err)
			require.Equal(t, string(session), string(saved))
		})
	}
}

// Devices that are dumped with the rest of the database and restored on another server open and talk there, with no new pairing.
func TestDumpAndRestoreMoveDevicesToAnotherServer(t *testing.T) {
	t.Parallel()
	from := pgtest.NewContainer(t)
	c := reopen(t, from.DSN)
	var devices []types.JID
	var theirs []*signaltest.Peer
	for i := range 3 {
		d := pair(t, c.NewDevice())
		devices, theirs = append(devices, *d.ID), append(theirs, signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice())))
		signaltest.Meet(t, theirs[i], signaltest.NewPeer(d))
		_, _, err := d.Contacts.PutPushName(ctx, theirs[i].Address(), "a\x00stranger's \xff name")
		require.NoError(t, err)
		require.NoError(t, c.LIDMap.PutLIDMapping(ctx, theirs[i].Address(), *theirs[i].Device.ID))
	}
	require.NoError(t, c.Close())
	dump := from.Dump()

	to := pgtest.NewContainer(t)
	to.Restore(dump)
	c = reopen(t, to.DSN)
	all, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, all, len(devices))
	for i, jid := range devices {
		d, err := c.GetDevice(ctx, jid)
		require.NoError(t, err)
		ours := signaltest.NewPeer(d)
		signaltest.Say(t, theirs[i], ours, "in")
		signaltest.Say(t, ours, theirs[i], "out")
		contact, err := d.Contacts.GetContact(ctx, theirs[i].Address())
		require.NoError(t, err)
		require.Equal(t, "a\x00stranger's \xff name", contact.PushName)
		lid, err := c.LIDMap.GetLIDForPN(ctx, *theirs[i].Device.ID)
		require.NoError(t, err)
		require.Equal(t, theirs[i].Address(), lid)
	}
}
