package waserver_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

// TestRecordFiresWhenASessionGoesBack does what a store does that lost its last write.
func TestRecordFiresWhenASessionGoesBack(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.tell(ctx, t, friend, "one")

	address := friend.LID().SignalAddress().String()
	old, err := b.client.Store.Sessions.GetSession(ctx, address)
	require.NoError(t, err)
	b.tell(ctx, t, friend, "two")
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
	require.Equal(t, lost, friend.Lost())
	require.Len(t, lost, 1)
	require.ErrorIs(t, lost[0].Err, contact.ErrDuplicate, "the contact refuses it as one that it has read")
	require.Zero(t, friend.Duplicates())

	b.client.say(ctx, t, friend.LID(), "four")
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Len(t, b.server.Record().Reused(), 1, "the chain goes on where it was")
}

// TestRecordFiresWhenAChainGoesBackBetweenLogins has a client use counters that the wire never saw, but below one that it did
// see. In one login the order is no matter.
func TestRecordFiresWhenAChainGoesBackBetweenLogins(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.client.say(ctx, t, friend.LID(), "counter 0")
	address := friend.LID().SignalAddress().String()
	sessions := [][]byte{}
	keep := func() {
		session, err := b.client.Store.Sessions.GetSession(ctx, address)
		require.NoError(t, err)
		sessions = append(sessions, session)
	}
	keep()
	for range 2 { // counters 1 and 2 are encrypted and go nowhere
		//nolint:staticcheck // deprecated to warn off bots; this is what it is for
		_, _, err := b.client.DangerousInternals().EncryptMessageForDevice(ctx, []byte("lost"), friend.LID(), nil, nil, nil)
		require.NoError(t, err)
	}
	b.client.say(ctx, t, friend.LID(), "counter 3")
	keep()

	require.NoError(t, b.client.Store.Sessions.PutSession(ctx, address, sessions[0]))
	b.client.say(ctx, t, friend.LID(), "counter 1")
	require.Empty(t, b.server.Record().Reused())
	require.Equal(t, 1, b.server.Record().Behind())

	b.client.Disconnect()
	require.NoError(t, b.client.Connect())
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 2 && b.device.Connected() }))
	b.client.say(ctx, t, friend.LID(), "counter 2")
	require.NoError(t, b.client.Store.Sessions.PutSession(ctx, address, sessions[1]))
	b.client.say(ctx, t, friend.LID(), "counter 4")
	found := b.server.Record().Reused()
	require.Len(t, found, 1)
	require.Equal(t, waserver.ReusedChain, found[0].Kind)
	require.Equal(t, b.device.LID(), found[0].Device)
	require.Equal(t, []uint32{3, 2}, []uint32{found[0].First.Counter, found[0].Second.Counter})
	require.Equal(t, []int{1, 2}, []int{found[0].First.Login, found[0].Second.Login})
	require.Contains(t, found[0].String(), "went back between two logins")
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

// TestRecordFiresWhenAPreKeyIsPublishedAgain has a store forget that pre-keys were uploaded. Right after the upload that is what
// becomes of every client that ends before it has the answer; later it is the store's fault.
func TestRecordFiresWhenAPreKeyIsPublishedAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.EnableAutoReconnect = false
	uploads := b.server.Stats().PreKeysUploaded
	uploaded := func() {
		uploads += whatsmeow.WantedPreKeyCount
		require.NoError(t, b.server.Wait(ctx, func() bool { return b.server.Stats().PreKeysUploaded == uploads }))
	}
	first := uploads + 1
	forget := func() {
		_, err := b.client.container.db.ExecContext(ctx, "UPDATE whatsmeow_pre_keys SET uploaded=false WHERE key_id>=?", first)
		require.NoError(t, err)
	}
	b.device.SpendPreKeys(3)
	uploaded()
	b.device.Cut()
	waitFor[*events.Disconnected](ctx, t, b.client)
	b.device.SpendPreKeys(0)
	forget()
	require.NoError(t, b.client.Connect())
	uploaded() // the same again
	uploaded() // new ones: that none were left was also in the mailbox
	require.Equal(t, whatsmeow.WantedPreKeyCount, b.server.Stats().PreKeysRepeated)
	require.Empty(t, b.server.Record().Reused())

	require.NoError(t, b.device.WaitConnected(ctx))
	_, err := b.server.NewContact(waserver.ContactConfig{}).SendText(b.account.LID(), "behind the answer to the upload")
	require.NoError(t, err)
	require.NoError(t, b.server.WaitIdle(ctx))
	time.Sleep(500 * time.Millisecond) // by now the client has taken note
	forget()
	b.device.SpendPreKeys(0)
	uploaded()
	found := b.server.Record().Reused()
	require.Len(t, found, whatsmeow.WantedPreKeyCount)
	require.Equal(t, waserver.RepeatedPreKey, found[0].Kind)
	require.Contains(t, found[0].String(), "published again")
}

func TestRecordFiresWhenASignedPreKeyIsReplaced(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Store.SignedPreKey = b.client.Store.IdentityKey.CreateSignedPreKey(b.client.Store.SignedPreKey.KeyID)
	b.device.SpendPreKeys(3)
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.PreKeys() > 3 }))
	found := b.server.Record().Reused()
	require.Len(t, found, 1)
	require.Equal(t, waserver.ReusedSignedPreKey, found[0].Kind)
	require.Contains(t, found[0].String(), "published with two keys")
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

// TestRecordHasEachCiphertextOfAMessage sends two to one device in one message, of which somebody has spoilt the second.
func TestRecordHasEachCiphertextOfAMessage(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.acquainted(ctx, t, friend)
	before := len(b.server.Record().Sent())
	internals := b.client.DangerousInternals() //nolint:staticcheck // deprecated to warn off bots; this is what it is for
	var encs []waBinary.Node
	for range 2 {
		enc, _, err := internals.EncryptMessageForDevice(ctx, []byte{}, friend.LID(), nil, nil, nil)
		require.NoError(t, err)
		encs = append(encs, *enc)
	}
	spoilt := encs[1].Content.([]byte)
	spoilt[len(spoilt)-1]++
	require.NoError(t, internals.SendNode(ctx, waBinary.Node{
		Tag: "message", Attrs: waBinary.Attrs{"id": b.client.GenerateMessageID(), "to": friend.LID(), "type": "text"},
		Content: []waBinary.Node{{Tag: "participants", Content: []waBinary.Node{
			{Tag: "to", Attrs: waBinary.Attrs{"jid": friend.LID()}, Content: encs},
		}}},
	}))
	require.NoError(t, b.server.Wait(ctx, func() bool { return len(friend.Undecryptable()) == 1 }))
	sent := b.server.Record().Sent()[before:]
	require.Len(t, sent, 2)
	require.Equal(t, []int{1, 0}, []int{sent[0].Read, sent[1].Read})
	require.Empty(t, sent[0].Failures)
	require.NotEmpty(t, sent[0].Used.CipherKey)
	require.Len(t, sent[1].Failures, 1)
	require.Equal(t, sent[0].Chain, sent[1].Chain, "the chain shows on the wire, whether or not somebody could read it")
	require.Equal(t, sent[0].Counter+1, sent[1].Counter)
}
