package waserver_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
)

// settings are the client's settings of a chat.
func (c *testClient) settings(ctx context.Context, t *testing.T, chat types.JID) types.LocalChatSettings {
	t.Helper()
	settings, err := c.Store.ChatSettings.GetChatSettings(ctx, chat)
	require.NoError(t, err)
	return settings
}

// requireSameAppState requires that the client has every collection in its present version.
func (b *testBundle) requireSameAppState(ctx context.Context, t *testing.T, c *testClient) {
	t.Helper()
	for _, name := range client.AllPatchNames {
		version, _, err := c.Store.AppState.GetAppStateVersion(ctx, string(name))
		require.NoError(t, err)
		require.Equal(t, b.account.AppState().Version(name), version, name)
	}
	require.Empty(t, b.account.AppState().Problems())
	require.Empty(t, all[*events.AppStateSyncError](c))
}

// TestAppStateOfThePhone begins with a snapshot. An event tells of a change only when its collection was not empty.
func TestAppStateOfThePhone(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	b := &testBundle{server: server, account: server.NewAccount("")}
	friend, other := server.NewContact(waserver.ContactConfig{}), server.NewContact(waserver.ContactConfig{})
	require.NoError(t, b.account.Apply(ctx,
		appstate.Contact(friend.PN(), "Ada", "Ada Lovelace"), appstate.Archive(friend.PN(), true), appstate.PushName("me"), appstate.NCTSalt([]byte("salt")),
	))
	require.NoError(t, b.account.AppState().TakeSnapshot())
	b.client = newClient(t, server)
	b.device = b.client.pair(t, b.account)

	info, err := b.client.Store.Contacts.GetContact(ctx, friend.PN())
	require.NoError(t, err)
	require.Equal(t, "Ada Lovelace", info.FullName)
	require.True(t, b.client.settings(ctx, t, friend.PN()).Archived)
	salt, err := b.client.Store.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.Equal(t, "salt", string(salt))
	require.Equal(t, "me", b.client.Store.PushName)
	b.requireSameAppState(ctx, t, b.client)

	until := time.Now().Add(time.Hour).Truncate(time.Second)
	require.NoError(t, b.account.Apply(ctx,
		appstate.Contact(other.PN(), "Bob", "Bob B."), appstate.Mute(other.PN(), until), appstate.Archive(friend.PN(), false),
	))
	waitFor(ctx, t, b.client, func(e *events.Contact) bool { return e.JID == other.PN() && e.Action.GetFirstName() == "Bob" })
	waitFor(ctx, t, b.client, func(e *events.Mute) bool { return e.JID == other.PN() })
	waitFor(ctx, t, b.client, func(e *events.Archive) bool { return e.JID == friend.PN() && !e.Action.GetArchived() })
	require.WithinDuration(t, until, b.client.settings(ctx, t, other.PN()).MutedUntil, 0)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireSameAppState(ctx, t, b.client)

	// What happens while the client is away waits for it.
	b.client.Disconnect()
	require.NoError(t, server.Wait(ctx, func() bool { return !b.device.Connected() }))
	require.NoError(t, b.account.Apply(ctx, appstate.Pin(friend.PN(), true)))
	require.NoError(t, b.client.Connect())
	waitFor(ctx, t, b.client, func(e *events.Pin) bool { return e.JID == friend.PN() })
	require.NoError(t, b.account.WaitSynced(ctx, b.device))
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireSameAppState(ctx, t, b.client)
	b.requireClean(t)
	require.Error(t, b.account.Apply(ctx, appstate.Mutation{Collection: "unknown"}))
}

// TestAppStateOfClients has two clients of one account change settings: the phone sees it, and so does the other client.
func TestAppStateOfClients(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	require.NoError(t, b.account.Apply(ctx, appstate.Mute(friend.PN(), time.Time{}), appstate.Archive(friend.PN(), false)))
	second := newClient(t, b.server)
	second.pair(t, b.account)

	require.NoError(t, b.client.SendAppState(ctx, client.BuildMute(friend.PN(), true, 0)))
	require.True(t, b.account.AppState().Value(client.WAPatchRegularHigh, client.IndexMute, friend.PN().String()).GetMuteAction().GetMuted())
	waitFor(ctx, t, second, func(e *events.Mute) bool { return e.JID == friend.PN() })
	require.Equal(t, store.MutedForever, second.settings(ctx, t, friend.PN()).MutedUntil)

	require.NoError(t, second.SendAppState(ctx, client.BuildArchive(friend.PN(), true, time.Time{}, nil)))
	require.True(t, b.account.AppState().Value(client.WAPatchRegularLow, client.IndexArchive, friend.PN().String()).GetArchiveChatAction().GetArchived())
	waitFor(ctx, t, b.client, func(e *events.Archive) bool { return e.JID == friend.PN() })
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireSameAppState(ctx, t, b.client)
	b.requireSameAppState(ctx, t, second)
	b.requireClean(t)
}

// TestAppStateKeyRequest has the phone use a key that the client was not given.
func TestAppStateKeyRequest(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	require.NoError(t, b.account.Apply(ctx, appstate.Contact(friend.PN(), "A", "A"))) // there are no events for a first fetch
	id := b.account.AppState().AddKey()
	require.NoError(t, b.account.Apply(ctx, appstate.Contact(friend.PN(), "Ada", "Ada Lovelace")))
	waitFor(ctx, t, b.client, func(e *events.Contact) bool { return e.JID == friend.PN() })
	latest, err := b.client.Store.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
	require.NoError(t, err)
	require.Equal(t, id, latest)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireSameAppState(ctx, t, b.client)
	b.requireClean(t)
}

func TestAppStateRecovery(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	const name = client.WAPatchCriticalUnblockLow
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.client.Disconnect()
	require.NoError(t, b.server.Wait(ctx, func() bool { return !b.device.Connected() }))
	require.NoError(t, b.account.Apply(ctx, appstate.Contact(friend.PN(), "Ada", "Ada Lovelace")))
	require.NoError(t, b.account.AppState().Corrupt(name))
	require.NoError(t, b.client.Connect())
	failed := waitFor[*events.AppStateSyncError](ctx, t, b.client)
	require.ErrorIs(t, failed.Error, client.ErrMismatchingLTHash)
	require.ErrorIs(t, b.client.FetchAppState(ctx, name, true, false), client.ErrMismatchingLTHash)

	_, err := b.client.SendPeerMessage(ctx, whatsmeow.BuildAppStateRecoveryRequest(name))
	require.NoError(t, err)
	waitFor(ctx, t, b.client, func(e *events.AppStateSyncComplete) bool { return e.Name == name && e.Recovery })
	info, err := b.client.Store.Contacts.GetContact(ctx, friend.PN())
	require.NoError(t, err)
	require.Equal(t, "Ada Lovelace", info.FullName)
	version, _, err := b.client.Store.AppState.GetAppStateVersion(ctx, string(name))
	require.NoError(t, err)
	require.Equal(t, b.account.AppState().Version(name), version)

	require.NoError(t, b.account.Apply(ctx, appstate.Contact(friend.PN(), "Ada", "Countess")))
	waitFor(ctx, t, b.client, func(e *events.Contact) bool { return e.Action.GetFullName() == "Countess" })
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Empty(t, b.account.AppState().Problems())
	b.requireClean(t)
}
