package pgstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Two devices on pgstore talk, and every few messages both are closed and opened again: nothing is paired or negotiated anew.
func TestSignalTrafficSurvivesReopening(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	ids := []types.JID{*pair(t, c.NewDevice()).ID, *pair(t, c.NewDevice()).ID}
	var peers [2]*signaltest.Peer
	load := func() {
		for i, id := range ids {
			d, err := c.GetDevice(ctx, id)
			require.NoError(t, err)
			peers[i] = signaltest.NewPeer(d)
		}
	}
	load()
	signaltest.Meet(t, peers[0], peers[1])
	for round := range 10 {
		for i := range 5 {
			signaltest.Say(t, peers[(round+i)%2], peers[(round+i+1)%2], fmt.Sprintf("%d/%d", round, i))
		}
		answer, err := peers[0].Answer(ctx, peers[1].Address(), []byte("retry"))
		require.NoError(t, err)
		require.Equal(t, "msg", answer.Attrs["type"], "the session is the old one")
		require.NoError(t, c.Close())
		c = reopen(t, dsn, func(cfg *pgstore.Config) {
			if round%2 == 0 {
				cfg.MemoryBudget = 1 // everything is evicted as soon as it is durable
			}
		})
		load()
		got, err := peers[1].Receive(ctx, peers[0].Address(), answer)
		require.NoError(t, err)
		require.Equal(t, "retry", string(got))
	}
}

// A ciphertext that comes twice, also after a restart, is answered from the event buffer and not decrypted again.
func TestARedeliveredMessageIsNotDecryptedAgain(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	ours, theirs := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	signaltest.Meet(t, theirs, ours)
	sent, err := theirs.Send(ctx, []types.JID{ours.Address()}, []byte("once"))
	require.NoError(t, err)
	_, err = ours.Receive(ctx, theirs.Address(), sent[ours.Address()])
	require.NoError(t, err)
	require.NoError(t, c.Close())
	d, err = reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	_, err = signaltest.NewPeer(d).Receive(ctx, theirs.Address(), sent[ours.Address()])
	require.ErrorContains(t, err, "already processed")
}

// Groups of up to 512 devices: one message for all by our sender key, the key to each by its session, and answers from all.
func TestSignalGroupTraffic(t *testing.T) {
	t.Parallel()
	sizes := []int{1, 2, 32, 512}
	if testing.Short() {
		sizes = sizes[:3]
	}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c, dsn := open(t)
			group := types.NewJID("12345", types.GroupServer)
			d := pair(t, c.NewDevice())
			ours := signaltest.NewPeer(d)
			members := make([]*signaltest.Peer, size)
			addresses := make([]types.JID, size)
			for i := range members {
				members[i] = signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
				addresses[i] = members[i].Address()
				signaltest.Meet(t, members[i], ours)
			}
			everyoneReads := func(text string) {
				distribution, err := ours.JoinGroup(ctx, group)
				require.NoError(t, err)
				message, err := ours.SendGroup(ctx, group, []byte(text))
				require.NoError(t, err)
				keys, err := ours.Send(ctx, addresses, distribution)
				require.NoError(t, err)
				for _, member := range members {
					key, err := member.Receive(ctx, ours.Address(), keys[member.Address()])
					require.NoError(t, err)
					require.NoError(t, member.Welcome(ctx, group, ours.Address(), key))
					got, err := member.ReceiveGroup(ctx, group, ours.Address(), message)
					require.NoError(t, err)
					require.Equal(t, text, string(got))
				}
			}
			weRead := func(text string) {
				for _, member := range members {
					distribution, err := member.JoinGroup(ctx, group)
					require.NoError(t, err)
					require.NoError(t, ours.Welcome(ctx, group, member.Address(), distribution))
					message, err := member.SendGroup(ctx, group, []byte(text))
					require.NoError(t, err)
					got, err := ours.ReceiveGroup(ctx, group, member.Address(), message)
					require.NoError(t, err)
					require.Equal(t, text, string(got))
				}
			}
			everyoneReads("one")
			weRead("two")
			require.NoError(t, c.Close())
			d, err := reopen(t, dsn).GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			ours = signaltest.NewPeer(d)
			everyoneReads("three")
			weRead("four")
		})
	}
}
