package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestPreKeysAreHandedOutOnceAndRefilled(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	require.Equal(t, 811, b.device.PreKeys(), "the client's first upload, less one for its own phone")
	for range 3 {
		friend := b.server.NewContact(waserver.ContactConfig{})
		_, err := friend.SendText(b.account.PN(), "hello")
		require.NoError(t, err)
	}
	require.Equal(t, 808, b.device.PreKeys())
	require.NoError(t, b.server.WaitIdle(ctx))

	b.device.SpendPreKeys(4)
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.PreKeys() >= 50 }))
	require.Zero(t, b.server.Stats().PreKeysRepeated)
	b.requireClean(t)
}

func TestDigest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	//nolint:staticcheck // deprecated to warn off bots; this is what it is for
	answer, err := b.client.DangerousInternals().SendIQ(testContext(t), whatsmeow.DangerousInfoQuery{
		Namespace: "encrypt", Type: "get", To: types.ServerJID, Content: []waBinary.Node{{Tag: "digest"}},
	})
	require.NoError(t, err)
	list := answer.GetChildByTag("digest", "list")
	require.Len(t, list.GetChildren(), 811)
}

func TestUnknownQueriesAreCounted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	//nolint:staticcheck // deprecated to warn off bots; this is what it is for
	_, err := b.client.DangerousInternals().SendIQ(testContext(t), whatsmeow.DangerousInfoQuery{
		Namespace: "w:unheard:of", Type: "get", To: types.ServerJID,
	})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"w:unheard:of": 1}, b.server.Stats().UnknownIQs)
}

func TestFirstMessagesWithoutOneTimeKeys(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	b.device.SpendPreKeys(0)
	friend := b.server.NewContact(waserver.ContactConfig{})
	_, err := friend.SendText(b.account.PN(), "no key left")
	require.NoError(t, err)
	require.NoError(t, b.client.Connect())
	waitFor(ctx, t, b.client, text("no key left"))
	b.requireClean(t)
}
