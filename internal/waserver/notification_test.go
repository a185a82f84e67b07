package waserver_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// acquainted sends a message in both directions, so that sessions are past their first messages.
func (b *testBundle) acquainted(ctx context.Context, t *testing.T, friend *waserver.Contact) {
	t.Helper()
	b.hear(ctx, t, friend, "nice to meet you")
	b.tell(ctx, t, friend, "you too")
	require.NoError(t, b.server.WaitIdle(ctx))
}

func TestIdentityChange(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.acquainted(ctx, t, friend)
	friend.Reinstall(friend.Devices()[0], false)
	waitFor(ctx, t, b.client, func(e *events.IdentityChange) bool { return e.JID == friend.LID() && !e.Implicit })
	b.hear(ctx, t, friend, "new phone")
	waitFor(ctx, t, b.client, func(e *events.IdentityChange) bool { return e.JID == friend.LID() && e.Implicit })
	b.tell(ctx, t, friend, "congratulations")
	require.Empty(t, friend.Undecryptable())
	b.requireClean(t)
}

func TestDeviceListChanges(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.acquainted(ctx, t, friend)
	tablet := friend.AddDevice(false)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.client.say(ctx, t, friend.LID(), "to both")
	_, err := friend.WaitReceived(ctx, func(r waserver.Received) bool { return r.Text == "to both" && r.Device == tablet.LID() })
	require.NoError(t, err)
	friend.RemoveDevice(tablet, false)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.tell(ctx, t, friend, "to one")
	require.Zero(t, b.server.Stats().PHashMismatches)
	require.Zero(t, b.server.Stats().Undeliverable)

	friend.AddDevice(true) // the server's hash tells the client
	b.client.say(ctx, t, friend.LID(), "not known yet")
	require.Equal(t, 1, b.server.Stats().PHashMismatches)
	b.client.say(ctx, t, friend.LID(), "known now")
	require.Equal(t, 1, b.server.Stats().PHashMismatches)
	b.requireClean(t)
}

func TestFromPhoneNumberToLID(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{HideLID: true})
	for _, what := range []string{"by number", "again by number"} {
		_, err := friend.SendText(b.account.PN(), what)
		require.NoError(t, err)
		got := waitFor(ctx, t, b.client, text(what))
		require.Equal(t, friend.PN(), got.Info.Chat)
	}
	has := func(jid types.JID) bool {
		ok, err := b.client.Store.Sessions.HasSession(ctx, jid.SignalAddress().String())
		require.NoError(t, err)
		return ok
	}
	require.True(t, has(friend.PN()))
	require.False(t, has(friend.LID()))

	friend.RevealLID()
	b.hear(ctx, t, friend, "with LID")
	require.False(t, has(friend.PN()), "moved")
	friend.UseLID()
	b.hear(ctx, t, friend, "by LID")
	b.client.say(ctx, t, friend.PN(), "answer")
	_, err := friend.WaitReceived(ctx, waserver.Text("answer"))
	require.NoError(t, err)
	require.NoError(t, b.server.WaitIdle(ctx))
	require.True(t, has(friend.LID()))
	require.Zero(t, b.server.Stats().RetryReceipts)
	require.Empty(t, friend.Undecryptable())
	b.requireClean(t)
}

func TestPrivacyTokensAndSettings(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	friend.GrantPrivacyToken(b.account, []byte("token"))
	require.Eventually(t, func() bool {
		token, err := b.client.Store.PrivacyTokens.GetPrivacyToken(ctx, friend.LID())
		return err == nil && token != nil && string(token.Token) == "token"
	}, eventually, tick)

	settings, err := b.client.TryFetchPrivacySettings(ctx, true)
	require.NoError(t, err)
	require.Equal(t, types.PrivacySettingAll, settings.LastSeen)
	_, err = b.client.SetPrivacySetting(ctx, types.PrivacySettingTypeLastSeen, types.PrivacySettingContacts)
	require.NoError(t, err)
	settings, err = b.client.TryFetchPrivacySettings(ctx, true)
	require.NoError(t, err)
	require.Equal(t, types.PrivacySettingContacts, settings.LastSeen)

	list, err := b.client.UpdateBlocklist(ctx, friend.PN(), events.BlocklistChangeActionBlock)
	require.NoError(t, err)
	require.Equal(t, []types.JID{friend.LID()}, list.JIDs)
	list, err = b.client.GetBlocklist(ctx)
	require.NoError(t, err)
	require.Len(t, list.JIDs, 1)
}

func TestWhoIsOnWhatsApp(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{Devices: 3})
	found, err := b.client.IsOnWhatsApp(ctx, []string{"+" + friend.PN().User, "+49301234"})
	require.NoError(t, err)
	require.Len(t, found, 2)
	require.True(t, found[0].IsIn)
	require.Equal(t, friend.LID(), found[0].JID)
	require.False(t, found[1].IsIn)
	devices, err := b.client.GetUserDevices(ctx, []types.JID{friend.LID()})
	require.NoError(t, err)
	require.Len(t, devices, 3)
	info, err := b.client.GetUserInfo(ctx, []types.JID{friend.PN()})
	require.NoError(t, err)
	require.Equal(t, friend.LID(), info[friend.PN()].LID)
	b.requireClean(t)
}
