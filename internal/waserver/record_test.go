package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

// TestRecordFiresWhenASessionGoesBack does what a store does that lost its last write.
func TestRecordFiresWhenASessionGoesBack(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.client.say(ctx, t, friend.LID(), "one")
	_, err := friend.WaitReceived(ctx, waserver.Text("one"))
	require.NoError(t, err)

	address := friend.LID().SignalAddress().String()
	old, err := b.client.Store.Sessions.GetSession(ctx, address)
	require.NoError(t, err)
	b.client.say(ctx, t, friend.LID(), "two")
	_, err = friend.WaitReceived(ctx, waserver.Text("two"))
	require.NoError(t, err)
	require.Empty(t, b.server.Record().Reused())

	require.NoError(t, b.client.Store.Sessions.PutSession(ctx, address, old))
	b.client.say(ctx, t, friend.LID(), "three")
	require.NoError(t, b.server.WaitIdle(ctx))
	found := b.server.Record().Reused()
	require.Len(t, found, 1)
	require.Equal(t, waserver.ReusedCounter, found[0].Kind)
	require.Equal(t, b.device.LID(), found[0].Device)
	require.Equal(t, friend.LID(), found[0].Second.Recipient)
	require.Contains(t, found[0].String(), "counter used twice")
	lost := friend.Undecryptable()
	require.Len(t, lost, 1)
	require.ErrorIs(t, lost[0].Err, contact.ErrDuplicate, "the contact refuses it as one that it has read")
	require.Zero(t, friend.Duplicates())

	b.client.say(ctx, t, friend.LID(), "four")
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Len(t, b.server.Record().Reused(), 1, "the chain goes on where it was")
}

// TestRecordFiresWhenASenderKeyGoesBack shows that a key is known by itself too: one member reads the first message and
// another, who joined in between, the second with the same key.
func TestRecordFiresWhenASenderKeyGoesBack(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	members := b.crowd(2, waserver.ContactConfig{})
	group := b.server.NewGroup(waserver.GroupConfig{}, members[:2]...)
	b.client.say(ctx, t, group.JID(), "one")
	address := b.device.LID().SignalAddress().String()
	old, err := b.client.Store.SenderKeys.GetSenderKey(ctx, group.JID().String(), address)
	require.NoError(t, err)
	b.client.say(ctx, t, group.JID(), "two")
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Empty(t, b.server.Record().Reused())

	group.Add(members[2])
	_, err = b.client.GetGroupInfo(ctx, group.JID())
	require.NoError(t, err)
	require.NoError(t, b.client.Store.SenderKeys.PutSenderKey(ctx, group.JID().String(), address, old))
	b.client.say(ctx, t, group.JID(), "three")
	_, err = members[2].WaitReceived(ctx, waserver.Text("three"))
	require.NoError(t, err)
	require.NoError(t, b.server.WaitIdle(ctx))
	var kinds []waserver.Reuse
	for _, f := range b.server.Record().Reused() {
		require.Equal(t, "skmsg", f.Second.Type)
		kinds = append(kinds, f.Kind)
	}
	require.ElementsMatch(t, []waserver.Reuse{waserver.ReusedCounter, waserver.ReusedKey}, kinds)
}

func TestRecordFiresWhenAPreKeyIsPublishedTwice(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	twin := newContainer(t) // its pre-keys begin at the same id
	device := twin.NewDevice()
	device.ID, device.LID = b.client.Store.ID, b.client.Store.LID
	device.Account = b.client.Store.Account
	device.NoiseKey, device.IdentityKey = b.client.Store.NoiseKey, b.client.Store.IdentityKey
	device.SignedPreKey, device.RegistrationID = b.client.Store.SignedPreKey, b.client.Store.RegistrationID
	require.NoError(t, device.Save(ctx))
	client := clientOn(t, b.server, twin, device)
	b.device.SpendPreKeys(2)
	require.NoError(t, client.Connect())
	require.NoError(t, b.server.Wait(ctx, func() bool { return len(b.server.Record().Reused()) > 0 }))
	found := b.server.Record().Reused()[0]
	require.Equal(t, waserver.ReusedPreKey, found.Kind)
	require.Contains(t, found.String(), "published with two keys")
}

func TestRecordSeesWhatTheRecipientDerived(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	for range 3 {
		b.client.say(ctx, t, friend.LID(), "hello")
	}
	require.NoError(t, b.server.WaitIdle(ctx))
	counters := []uint32{}
	for _, sent := range b.server.Record().Sent() {
		require.Equal(t, 1, sent.Read, sent.String())
		require.NotEmpty(t, sent.Used.CipherKey)
		require.NotEmpty(t, sent.Used.IV)
		require.Empty(t, sent.Failures)
		if sent.Recipient == friend.LID() {
			require.Equal(t, "pkmsg", sent.Type)
			counters = append(counters, sent.Counter)
		}
	}
	require.Equal(t, []uint32{0, 1, 2}, counters)
	require.Zero(t, b.server.Record().Behind())
}
