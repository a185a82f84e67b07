package waserver_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
)

// requireKnows requires that the client knows before long what a history says. No event tells when it is stored.
func (c *testClient) requireKnows(ctx context.Context, t *testing.T, h *history.History) {
	t.Helper()
	for _, s := range h.Secrets {
		require.Eventually(t, func() bool {
			secret, sender, err := c.Store.MsgSecrets.GetMessageSecret(ctx, s.Chat, s.Sender, s.ID)
			return err == nil && string(secret) == string(s.Secret) && sender == s.Sender
		}, eventually, tick)
	}
	for _, want := range h.Tokens {
		require.Eventually(t, func() bool {
			token, err := c.Store.PrivacyTokens.GetPrivacyToken(ctx, want.Person.LID)
			return err == nil && token != nil && string(token.Token) == string(want.Token)
		}, eventually, tick)
	}
	for _, p := range h.People {
		require.Eventually(t, func() bool {
			lid, err := c.Store.LIDs.GetLIDForPN(ctx, p.PN)
			contact, err2 := c.Store.Contacts.GetContact(ctx, p.PN)
			return err == nil && err2 == nil && lid == p.LID && contact.PushName == p.Name
		}, eventually, tick)
	}
}

func TestInitialHistory(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	b := &testBundle{server: server, account: server.NewAccount("")}
	h := b.account.InitialHistory(history.Spec{People: history.People(1, 20), Messages: 400, PerChunk: 150, Seed: 1, NoNonce: true})
	require.Len(t, h.Chunks, 5)
	b.client = newClient(t, server)
	b.device = b.client.pair(t, b.account)
	b.client.requireKnows(ctx, t, h)
	require.NoError(t, server.Wait(ctx, func() bool { return server.Media().Stats().Deletions == len(h.Chunks) }))
	require.NoError(t, server.WaitIdle(ctx))
	require.Len(t, all[*events.HistorySync](b.client), len(h.Chunks))
	salt, err := b.client.Store.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.Equal(t, h.NCTSalt, salt)
	receipts := 0
	for _, r := range b.account.Receipts() {
		if r.Type == "hist_sync" {
			receipts++
		}
	}
	require.Equal(t, len(h.Chunks), receipts)
	b.requireClean(t)
}

// TestHistoryIsUploadedAgain has a client find a chunk gone, and say so.
func TestHistoryIsUploadedAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.ManualHistorySyncDownload = true
	h, err := b.account.SendHistory(ctx, b.device, history.Spec{People: history.People(1, 3), Messages: 10, Seed: 2, Inline: true})
	require.NoError(t, err)
	recent := func(e *events.Message) bool {
		n := e.Message.GetProtocolMessage().GetHistorySyncNotification()
		return n.GetSyncType() == waE2E.HistorySyncType_RECENT
	}
	e := waitFor(ctx, t, b.client, recent)
	announced := e.Message.GetProtocolMessage().GetHistorySyncNotification()
	b.server.Media().Delete(announced.GetDirectPath())
	_, err = b.client.DownloadHistorySync(ctx, announced, true)
	require.Error(t, err)
	require.NoError(t, b.client.SendHistorySyncServerErrorReceipt(ctx, e.Info.ID, announced.GetMediaKey()))
	waitFor(ctx, t, b.client, func(again *events.Message) bool { return recent(again) && again.Info.ID != e.Info.ID })
	for _, e := range all[*events.Message](b.client) {
		n := e.Message.GetProtocolMessage().GetHistorySyncNotification()
		if n != nil && n.GetDirectPath() != announced.GetDirectPath() {
			_, err = b.client.DownloadHistorySync(ctx, n, true)
			require.NoError(t, err)
		}
	}
	b.client.requireKnows(ctx, t, h)

	// Receipts that fit no history are ignored.
	require.NoError(t, b.client.SendHistorySyncServerErrorReceipt(ctx, "unknown", announced.GetMediaKey()))
	require.NoError(t, b.client.SendHistorySyncServerErrorReceipt(ctx, e.Info.ID, make([]byte, 32)))
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)
}

func TestHistoryForAClientThatIsAway(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	require.NoError(t, b.server.Wait(ctx, func() bool { return !b.device.Connected() }))
	h, err := b.account.SendHistory(ctx, b.device, history.Spec{People: history.People(1, 5), Messages: 300, Seed: 3, NoNonce: true})
	require.NoError(t, err)
	require.NoError(t, b.client.Connect())
	b.client.requireKnows(ctx, t, h)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)

	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = b.account.SendHistory(ended, b.device, history.Spec{People: history.People(1, 5)})
	require.ErrorIs(t, err, context.Canceled)
}
