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

// However the database's container goes away under a running bot, it is an outage like another: nothing is lost, and another process finds all
// that was written. A send of WriteBehind goes on meanwhile; one that is Durable waits, and is there when it has returned, without a flush.
func TestP7SurvivesTheDatabasesContainer(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*pgtest.Container){
		"restarted": (*pgtest.Container).Restart,
		"killed":    (*pgtest.Container).Kill,
		"replaced":  (*pgtest.Container).Replace, // by a new one on the data that it left
	} {
		for mode, sends := range map[string]pgstore.SendMode{"Reserved": pgstore.Reserved, "Durable": pgstore.Durable, "WriteBehind": pgstore.WriteBehind} {
			t.Run(name+" "+mode, func(t *testing.T) {
				t.Parallel()
				survive(t, end, sends)
			})
		}
	}
}

func survive(t *testing.T, end func(*pgtest.Container), sends pgstore.SendMode) {
	server := pgtest.NewContainer(t)
	c := reopen(t, server.DSN, func(cfg *pgstore.Config) { cfg.Sends = sends })
	d := pair(t, c.NewDevice())
	ours, theirs := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	signaltest.Meet(t, theirs, ours)
	who := func(i int) types.JID { return types.NewJID(fmt.Sprint(i), types.DefaultUserServer) }
	identity := func(i int) [32]byte { return [32]byte{1, byte(i), byte(i >> 8)} }
	turns := 0
	exchange := func() {
		t.Helper()
		signaltest.Say(t, theirs, ours, fmt.Sprint("in ", turns))
		_, _, err := d.Contacts.PutPushName(ctx, who(turns), fmt.Sprint("name ", turns))
		require.NoError(t, err)
		require.NoError(t, d.Identities.PutIdentity(ctx, who(turns).SignalAddress().String(), identity(turns)))
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, who(turns), who(turns), "A", fmt.Append(nil, "secret ", turns)))
		signaltest.Say(t, ours, theirs, fmt.Sprint("out ", turns)) // what came before it is durable with it
		turns++
	}
	for range 5 {
		exchange()
	}
	require.NoError(t, c.Flush(ctx))
	before := c.Stats().Batcher
	back := make(chan struct{})
	go func() {
		defer close(back)
		end(server)
	}()
	for over := false; !over; {
		select {
		case <-back:
			over = true // and once more
		default:
		}
		exchange()
	}
	during := turns
	require.Greater(t, c.Stats().Batcher.Retries, before.Retries, "a flush has met the outage")
	for range 5 {
		exchange()
	}
	if sends != pgstore.Durable {
		require.NoError(t, c.Flush(ctx))
	}

	require.Greater(t, c.Stats().Batcher.Flushes, before.Flushes)
	t.Logf("%d exchanges before, %d during, %d after; %d flushes were tried again", 5, during-5, turns-during, c.Stats().Batcher.Retries-before.Retries)

	another, err := reopen(t, server.DSN).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NotNil(t, another)
	for i := range turns {
		contact, err := another.Contacts.GetContact(ctx, who(i))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("name ", i), contact.PushName)
		for _, n := range []int{i, i + 1} {
			trusted, err := another.Identities.IsTrustedIdentity(ctx, who(i).SignalAddress().String(), identity(n))
			require.NoError(t, err)
			require.Equal(t, n == i, trusted)
		}
		secret, _, err := another.MsgSecrets.GetMessageSecret(ctx, who(i), who(i), "A")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint("secret ", i), string(secret))
	}
	ours = signaltest.NewPeer(another)
	signaltest.Say(t, theirs, ours, "in, later")
	signaltest.Say(t, ours, theirs, "out, later")
}

// Devices that are dumped with the rest of the database, or with their schema alone, and restored on another server open and talk there, with no new pairing: healed, since nobody knows how
// old the dump is, or as they were for who says that nothing was sent since.
func TestP4P5DumpAndRestoreMoveDevicesToAnotherServer(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{"database": nil, "schema": {"--schema=" + pgstore.DefaultSchema}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testDumpAndRestore(t, options...)
		})
	}
}

func testDumpAndRestore(t *testing.T, options ...string) {
	t.Helper()
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
	dump := from.Dump(options...)

	to := pgtest.NewContainer(t)
	to.Restore(dump)
	c = reopen(t, to.DSN)
	trusting := reopen(t, to.DSN, func(cfg *pgstore.Config) { cfg.OnNewSystem = pgstore.Trust })
	all, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, all, len(devices))
	for i, jid := range devices {
		c := c
		if i == len(devices)-1 {
			c = trusting
		}
		d, err := c.GetDevice(ctx, jid)
		require.NoError(t, err)
		ours := signaltest.NewPeer(d)
		_, err = ours.Send(ctx, []types.JID{theirs[i].Address()}, []byte("on the chain of the dump"))
		if c == trusting {
			require.NoError(t, err)
		} else {
			require.Error(t, err, "the chain may have been used since")
		}
		signaltest.Say(t, theirs[i], ours, "in")
		signaltest.Say(t, ours, theirs[i], "out")
		contact, err := d.Contacts.GetContact(ctx, theirs[i].Address())
		require.NoError(t, err)
		require.Equal(t, "a\x00stranger's \xff name", contact.PushName)
		lid, err := c.LIDMap.GetLIDForPN(ctx, *theirs[i].Device.ID)
		require.NoError(t, err)
		require.Equal(t, theirs[i].Address(), lid)
	}
	require.EqualValues(t, len(devices)-1, c.Stats().Healed)
	require.Zero(t, trusting.Stats().Healed)
}
