package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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
