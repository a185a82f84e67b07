package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestPairByQRAndTalk(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{Devices: 2})
	friend.Echo("echo: ")

	_, err := friend.SendText(b.account.PN(), "hello")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("hello"))

	b.client.say(ctx, t, friend.PN(), "hi")
	got, err := friend.WaitReceived(ctx, waserver.Text("hi"))
	require.NoError(t, err)
	require.Equal(t, b.device.LID(), got.Sender)
	waitFor(ctx, t, b.client, text("echo: hi"))

	require.NoError(t, b.server.WaitIdle(ctx))
	stats := b.server.Stats()
	require.Equal(t, 1, stats.Pairings)
	require.Equal(t, 1, stats.QRScans)
	require.Equal(t, 1, stats.Logins)
	require.Empty(t, stats.UnknownIQs)
	require.Empty(t, friend.Undecryptable())
	require.Len(t, friend.Received(), 4, "the answer to the client reaches the friend's other device")
	b.requireClean(t)
}

// TestServerRefusesAWrongDeviceSignature has the client sign with a key that is not the private half of its identity.
func TestServerRefusesAWrongDeviceSignature(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account, client := server.NewAccount(""), newClient(t, server)
	client.Store.IdentityKey = &keys.KeyPair{Pub: client.Store.IdentityKey.Pub, Priv: keys.NewKeyPair().Priv}
	_, err := account.Scan(ctx, client.shows(ctx, t))
	require.ErrorIs(t, err, waserver.ErrPairing)
	require.ErrorContains(t, err, "signature")
	waitFor[*events.LoggedOut](ctx, t, client)
	requireNoDevices(t, client)
	require.Equal(t, 1, server.Stats().RefusedPairings)
	require.Zero(t, server.Stats().Pairings)
	require.Len(t, account.Devices(), 1, "the phone")
}

// TestClientRefusesAWrongAccountSignature changes the client's identity after it was shown: what the account signs is then not
// what the client has.
func TestClientRefusesAWrongAccountSignature(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account, client := server.NewAccount(""), newClient(t, server)
	code := client.shows(ctx, t)
	client.Store.IdentityKey = keys.NewKeyPair()
	_, err := account.Scan(ctx, code)
	require.ErrorIs(t, err, waserver.ErrPairing)
	require.ErrorContains(t, err, "401 signature-mismatch")
	require.ErrorIs(t, waitFor[*events.PairError](ctx, t, client).Error, whatsmeow.ErrPairInvalidDeviceSignature)
	requireNoDevices(t, client)
	require.Equal(t, 1, server.Stats().RefusedPairings)
	require.Len(t, account.Devices(), 1, "the phone")
}
