package history_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/proto/waHistorySync"
	"go.mau.fi/whatsmeow/types"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/clienttest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The client reads a history and knows what it should.
func TestClientReads(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	device := storetest.New(t, storetest.SqlstoreSQLite()).Device
	files := media.New()
	client := clienttest.Connect(t, device, files.Handle, files)
	h := history.Make(history.Spec{
		Own: device.ID.ToNonAD(), People: history.People(1, 20), Messages: 1000, PerChunk: 300, Seed: 7, Inline: true,
		Groups: []types.JID{types.NewJID("120363000000000001", types.GroupServer), types.NewJID("120363000000000002", types.GroupServer)},
	})
	require.Len(t, h.Chunks, 6)
	require.Len(t, h.Secrets, 1000)
	messages, err := h.Messages(files)
	require.NoError(t, err)
	for i, m := range messages {
		require.Equal(t, waE2E.ProtocolMessage_HISTORY_SYNC_NOTIFICATION, m.GetProtocolMessage().GetType())
		read, err := client.DownloadHistorySync(ctx, m.GetProtocolMessage().GetHistorySyncNotification(), true)
		require.NoError(t, err)
		require.True(t, proto.Equal(h.Chunks[i], read))
	}
	require.Equal(t, 5, files.Stats().Downloads)

	for _, s := range h.Secrets {
		secret, sender, err := device.MsgSecrets.GetMessageSecret(ctx, s.Chat, s.Sender, s.ID)
		require.NoError(t, err)
		require.Equal(t, s.Secret, secret)
		require.Equal(t, s.Sender, sender)
	}
	for _, want := range h.Tokens {
		for _, jid := range []types.JID{want.Person.PN, want.Person.LID} {
			token, err := device.PrivacyTokens.GetPrivacyToken(ctx, jid)
			require.NoError(t, err)
			require.Equal(t, want.Token, token.Token)
			require.WithinDuration(t, want.Timestamp, token.Timestamp, 0)
		}
	}
	for _, p := range h.People {
		lid, err := device.LIDs.GetLIDForPN(ctx, p.PN)
		require.NoError(t, err)
		require.Equal(t, p.LID, lid)
		contact, err := device.Contacts.GetContact(ctx, p.PN)
		require.NoError(t, err)
		require.Equal(t, p.Name, contact.PushName)
	}
	salt, err := device.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.Equal(t, h.NCTSalt, salt)
	require.Equal(t, h.MetaNonce, device.CompanionMetaNonce)
	require.Equal(t, h.Migrated.Unix(), device.LIDMigrationTimestamp)
}

func TestClientReadsMigration(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	device := storetest.New(t, storetest.SqlstoreSQLite()).Device
	files := media.New()
	client := clienttest.Connect(t, device, files.Handle, files)
	people := history.People(100, 3)
	at := time.Now()
	m, err := history.Migration(people, at)
	require.NoError(t, err)
	internals := client.DangerousInternals() //nolint:staticcheck // deprecated to warn off bots; this is what it is for
	internals.StoreLIDSyncMessage(ctx, m.GetProtocolMessage().GetLidMigrationMappingSyncMessage().GetEncodedMappingPayload())
	for _, p := range people {
		pn, err := device.LIDs.GetPNForLID(ctx, p.LID)
		require.NoError(t, err)
		require.Equal(t, p.PN, pn)
	}
	require.Equal(t, at.Unix(), device.LIDMigrationTimestamp)

	people[0].LID.User = "not a number"
	_, err = history.Migration(people, at)
	require.Error(t, err)
	people[0].PN.User = "not a number"
	_, err = history.Migration(people, at)
	require.Error(t, err)
}

func TestSize(t *testing.T) {
	t.Parallel()
	spec := history.Spec{Own: types.NewJID("4915", types.DefaultUserServer), People: history.People(1, 500), Messages: 20_000, Seed: 1}
	h := history.Make(spec)
	require.Len(t, h.Chunks, 6)
	require.Len(t, h.Secrets, 20_000)
	require.Len(t, h.Tokens, 500)
	seen := make(map[string]bool)
	for _, s := range h.Secrets {
		seen[string(s.Secret)] = true
	}
	require.Len(t, seen, 20_000)
	again := history.Make(spec)
	require.Equal(t, h.Secrets, again.Secrets)
	require.EqualValues(t, 100, h.Chunks[5].GetProgress())

	empty := history.Make(history.Spec{Messages: 10})
	require.Len(t, empty.Chunks, 2)
	require.Equal(t, waHistorySync.HistorySync_PUSH_NAME, empty.Chunks[1].GetSyncType())
	alone := history.Make(history.Spec{Messages: 10, Groups: []types.JID{types.NewJID("1", types.GroupServer)}})
	require.Len(t, alone.Secrets, 10)
}
