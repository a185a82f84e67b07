package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestStreamErrorAndFailuresAreSurvived(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})

	require.NoError(t, b.device.StreamError(503))
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 2 && b.device.Connected() }))

	b.server.RejectConnections(503)
	b.server.FailLogins(503)
	b.device.Cut()
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 3 && b.device.Connected() }))

	b.hear(ctx, t, friend, "still there?")
	require.Equal(t, 1, b.server.Stats().QRCodes, "it never has to be scanned again")
	b.requireClean(t)
}

func TestSecondConnectionReplacesTheFirst(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	twin := clientOn(t, b.server, b.client.container, b.client.Store)
	require.NoError(t, twin.Connect())
	waitFor[*events.StreamReplaced](ctx, t, b.client)
	waitFor[*events.Connected](ctx, t, twin)
	require.NoError(t, b.device.WaitConnected(ctx))
	require.Equal(t, 1, b.server.Stats().Replaced)
	b.requireClean(t)
}

func TestUnlinkWhileConnected(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.device.Unlink()
	out := waitFor[*events.LoggedOut](ctx, t, b.client)
	require.False(t, out.OnConnect)
	requireNoDevices(t, b.client)
}

func TestUnlinkWhileAway(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	b.device.Unlink()
	require.NoError(t, b.client.Connect())
	out := waitFor[*events.LoggedOut](ctx, t, b.client)
	require.True(t, out.OnConnect)
	requireNoDevices(t, b.client)
	require.Equal(t, 1, b.server.Stats().RefusedLogins)
}

func TestLogout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.client.Logout(testContext(t)))
	requireNoDevices(t, b.client)
	require.Len(t, b.account.Devices(), 1, "the phone")

	again := clientOn(t, b.server, b.client.container, b.client.container.NewDevice())
	device := again.pair(t, b.account)
	require.NotEqual(t, b.device.PN(), device.PN())
	require.Equal(t, 2, b.server.Stats().Pairings)
}

func requireNoDevices(t *testing.T, c *testClient) {
	t.Helper()
	require.Eventually(t, func() bool {
		devices, err := c.container.GetAllDevices(testContext(t))
		return err == nil && len(devices) == 0
	}, eventually, tick)
}

func TestImpostorIsRefused(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	b.client.Store.NoiseKey = keys.NewKeyPair()
	require.NoError(t, b.client.Connect())
	waitFor[*events.LoggedOut](ctx, t, b.client)
	require.Equal(t, 1, b.server.Stats().RefusedLogins)
	requireNoDevices(t, b.client)
}

func TestFailureThatIsNoLogout(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	b.server.FailLogins(int(events.ConnectFailureClientOutdated))
	require.NoError(t, b.client.Connect())
	waitFor[*events.ClientOutdated](ctx, t, b.client)
	require.NotNil(t, b.client.Store.ID)
	b.requireClean(t)
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	b := setup(t)
	//nolint:staticcheck // deprecated to warn off bots; this is what it is for
	ok, _ := b.client.DangerousInternals().SendKeepAlive(testContext(t))
	require.True(t, ok)
	require.Equal(t, 1, b.server.Stats().KeepAlives)
}

func TestClientOfAnotherRootIsNotAttached(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	endpoint := server.Endpoint()
	client := whatsmeow.NewClient(newContainer(t).NewDevice(), nil)
	require.NoError(t, endpoint.Attach(client))
	endpoint.RootKey[0]++
	require.Error(t, endpoint.Attach(client))
}
