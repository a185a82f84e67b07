package storetest

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
)

// method is one call of a store with fixed arguments.
type method struct {
	name string
	call func(ctx context.Context, d *store.Device) (any, error)
}

func write(name string, call func(ctx context.Context, d *store.Device) error) method {
	return method{name, func(ctx context.Context, d *store.Device) (any, error) { return nil, call(ctx, d) }}
}

// puts store something under every method's key, in an order that sqlstore's foreign keys allow.
var puts = []method{
	write("PutIdentity", func(ctx context.Context, d *store.Device) error {
		return d.Identities.PutIdentity(ctx, "m:0", [32]byte{1})
	}),
	write("PutSession", func(ctx context.Context, d *store.Device) error {
		return d.Sessions.PutSession(ctx, "m:0", session(1))
	}),
	write("PutManySessions", func(ctx context.Context, d *store.Device) error {
		return d.Sessions.PutManySessions(ctx, map[string][]byte{"m:1": session(1), "m:2": session(1)})
	}),
	{"GenOnePreKey", func(ctx context.Context, d *store.Device) (any, error) { return d.PreKeys.GenOnePreKey(ctx) }},
	{"GetOrGenPreKeys", func(ctx context.Context, d *store.Device) (any, error) { return d.PreKeys.GetOrGenPreKeys(ctx, 1) }},
	write("MarkPreKeysAsUploaded", func(ctx context.Context, d *store.Device) error {
		return d.PreKeys.MarkPreKeysAsUploaded(ctx, 2)
	}),
	write("PutSenderKey", func(ctx context.Context, d *store.Device) error {
		return d.SenderKeys.PutSenderKey(ctx, "m", "m:0", senderKey(1))
	}),
	write("PutAppStateSyncKey", func(ctx context.Context, d *store.Device) error {
		return d.AppStateKeys.PutAppStateSyncKey(ctx, []byte("m"), store.AppStateSyncKey{Data: []byte{1}, Fingerprint: []byte{2}, Timestamp: 3})
	}),
	write("PutAppStateVersion", func(ctx context.Context, d *store.Device) error {
		return d.AppState.PutAppStateVersion(ctx, "m", 1, [128]byte{1})
	}),
	write("PutAppStateMutationMACs", func(ctx context.Context, d *store.Device) error {
		return d.AppState.PutAppStateMutationMACs(ctx, "m", 1, []store.AppStateMutationMAC{{IndexMAC: mac(1), ValueMAC: mac(2)}})
	}),
	write("PutPushName", func(ctx context.Context, d *store.Device) error {
		_, _, err := d.Contacts.PutPushName(ctx, person("m"), "push")
		return err
	}),
	write("PutBusinessName", func(ctx context.Context, d *store.Device) error {
		_, _, err := d.Contacts.PutBusinessName(ctx, person("m"), "business")
		return err
	}),
	write("PutContactName", func(ctx context.Context, d *store.Device) error {
		return d.Contacts.PutContactName(ctx, person("m"), "first", "full")
	}),
	write("PutAllContactNames", func(ctx context.Context, d *store.Device) error {
		return d.Contacts.PutAllContactNames(ctx, []store.ContactEntry{{JID: person("n"), FirstName: "first"}})
	}),
	write("PutManyRedactedPhones", func(ctx context.Context, d *store.Device) error {
		return d.Contacts.PutManyRedactedPhones(ctx, []store.RedactedPhoneEntry{{JID: person("o"), RedactedPhone: "+1"}})
	}),
	write("PutMutedUntil", func(ctx context.Context, d *store.Device) error {
		return d.ChatSettings.PutMutedUntil(ctx, person("m"), store.MutedForever)
	}),
	write("PutPinned", func(ctx context.Context, d *store.Device) error {
		return d.ChatSettings.PutPinned(ctx, person("m"), true)
	}),
	write("PutArchived", func(ctx context.Context, d *store.Device) error {
		return d.ChatSettings.PutArchived(ctx, person("m"), true)
	}),
	write("PutMessageSecrets", func(ctx context.Context, d *store.Device) error {
		return d.MsgSecrets.PutMessageSecrets(ctx, []store.MessageSecretInsert{{Chat: person("m"), Sender: person("m"), ID: "M", Secret: []byte("s")}})
	}),
	write("PutMessageSecret", func(ctx context.Context, d *store.Device) error {
		return d.MsgSecrets.PutMessageSecret(ctx, person("m"), person("n"), "M", []byte("s"))
	}),
	write("PutPrivacyTokens", func(ctx context.Context, d *store.Device) error {
		return d.PrivacyTokens.PutPrivacyTokens(ctx, token(person("m"), "t", 1, time.Unix(2, 0)))
	}),
	write("PutNCTSalt", func(ctx context.Context, d *store.Device) error { return d.NCTSalt.PutNCTSalt(ctx, []byte("salt")) }),
	write("PutBufferedEvent", func(ctx context.Context, d *store.Device) error {
		return d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("p"), time.Unix(1000, 0))
	}),
	write("AddOutgoingEvent", func(ctx context.Context, d *store.Device) error {
		return d.EventBuffer.AddOutgoingEvent(ctx, person("m"), "M", "wa", []byte("p"))
	}),
}

// removals take away or change what puts stored.
var removals = []method{
	write("DeleteIdentity", func(ctx context.Context, d *store.Device) error { return d.Identities.DeleteIdentity(ctx, "m:0") }),
	write("DeleteAllIdentities", func(ctx context.Context, d *store.Device) error { return d.Identities.DeleteAllIdentities(ctx, "m") }),
	write("DeleteSession", func(ctx context.Context, d *store.Device) error { return d.Sessions.DeleteSession(ctx, "m:1") }),
	write("MigratePNToLID", func(ctx context.Context, d *store.Device) error {
		return d.Sessions.MigratePNToLID(ctx, person("m"), lid("l"))
	}),
	write("DeleteAllSessions", func(ctx context.Context, d *store.Device) error { return d.Sessions.DeleteAllSessions(ctx, "l_1") }),
	write("RemovePreKey", func(ctx context.Context, d *store.Device) error { return d.PreKeys.RemovePreKey(ctx, 1) }),
	write("DeleteAppStateMutationMACs", func(ctx context.Context, d *store.Device) error {
		return d.AppState.DeleteAppStateMutationMACs(ctx, "m", [][]byte{mac(1)})
	}),
	write("DeleteAppStateVersion", func(ctx context.Context, d *store.Device) error { return d.AppState.DeleteAppStateVersion(ctx, "m") }),
	{"DeleteExpiredPrivacyTokens", func(ctx context.Context, d *store.Device) (any, error) {
		return d.PrivacyTokens.DeleteExpiredPrivacyTokens(ctx, time.Unix(100, 0))
	}},
	write("DeleteNCTSalt", func(ctx context.Context, d *store.Device) error { return d.NCTSalt.DeleteNCTSalt(ctx) }),
	write("ClearBufferedEventPlaintext", func(ctx context.Context, d *store.Device) error {
		return d.EventBuffer.ClearBufferedEventPlaintext(ctx, [32]byte{1})
	}),
	write("DeleteOldBufferedHashes", func(ctx context.Context, d *store.Device) error { return d.EventBuffer.DeleteOldBufferedHashes(ctx) }),
	write("DeleteOldOutgoingEvents", func(ctx context.Context, d *store.Device) error { return d.EventBuffer.DeleteOldOutgoingEvents(ctx) }),
	write("DoDecryptionTxn", func(ctx context.Context, d *store.Device) error {
		return d.EventBuffer.DoDecryptionTxn(ctx, func(context.Context) error { return nil })
	}),
}

// reads look at all that puts store.
var reads = []method{
	{"IsTrustedIdentity", func(ctx context.Context, d *store.Device) (any, error) {
		return d.Identities.IsTrustedIdentity(ctx, "m:0", [32]byte{9})
	}},
	{"GetSession", func(ctx context.Context, d *store.Device) (any, error) { return d.Sessions.GetSession(ctx, "m:0") }},
	{"HasSession", func(ctx context.Context, d *store.Device) (any, error) { return d.Sessions.HasSession(ctx, "m:0") }},
	{"GetManySessions", func(ctx context.Context, d *store.Device) (any, error) {
		return d.Sessions.GetManySessions(ctx, []string{"m:1", "m:2", "l_1:0"})
	}},
	{"GetPreKey", func(ctx context.Context, d *store.Device) (any, error) { return d.PreKeys.GetPreKey(ctx, 1) }},
	{"UploadedPreKeyCount", func(ctx context.Context, d *store.Device) (any, error) { return d.PreKeys.UploadedPreKeyCount(ctx) }},
	{"GetSenderKey", func(ctx context.Context, d *store.Device) (any, error) {
		return d.SenderKeys.GetSenderKey(ctx, "m", "m:0")
	}},
	{"GetAppStateSyncKey", func(ctx context.Context, d *store.Device) (any, error) {
		return d.AppStateKeys.GetAppStateSyncKey(ctx, []byte("m"))
	}},
	{"GetLatestAppStateSyncKeyID", func(ctx context.Context, d *store.Device) (any, error) {
		return d.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
	}},
	{"GetAllAppStateSyncKeys", func(ctx context.Context, d *store.Device) (any, error) {
		all, err := d.AppStateKeys.GetAllAppStateSyncKeys(ctx)
		return len(all), err
	}},
	{"GetAppStateVersion", func(ctx context.Context, d *store.Device) (any, error) {
		version, _, err := d.AppState.GetAppStateVersion(ctx, "m")
		return version, err
	}},
	{"GetAppStateMutationMAC", func(ctx context.Context, d *store.Device) (any, error) {
		return d.AppState.GetAppStateMutationMAC(ctx, "m", mac(1))
	}},
	{"GetContact", func(ctx context.Context, d *store.Device) (any, error) {
		return d.Contacts.GetContact(ctx, person("m"))
	}},
	{"GetAllContacts", func(ctx context.Context, d *store.Device) (any, error) { return d.Contacts.GetAllContacts(ctx) }},
	{"GetChatSettings", func(ctx context.Context, d *store.Device) (any, error) {
		return d.ChatSettings.GetChatSettings(ctx, person("m"))
	}},
	{"GetMessageSecret", func(ctx context.Context, d *store.Device) (any, error) {
		secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, person("m"), person("m"), "M")
		return secret, err
	}},
	{"GetPrivacyToken", func(ctx context.Context, d *store.Device) (any, error) {
		return d.PrivacyTokens.GetPrivacyToken(ctx, person("m"))
	}},
	{"GetNCTSalt", func(ctx context.Context, d *store.Device) (any, error) { return d.NCTSalt.GetNCTSalt(ctx) }},
	{"GetBufferedEvent", func(ctx context.Context, d *store.Device) (any, error) {
		return d.EventBuffer.GetBufferedEvent(ctx, [32]byte{1})
	}},
	{"GetOutgoingEvent", func(ctx context.Context, d *store.Device) (any, error) {
		_, plaintext, err := d.EventBuffer.GetOutgoingEvent(ctx, person("m"), lid("l"), "M")
		return plaintext, err
	}},
}

// all makes the calls in turn; none may fail.
func all(t *testing.T, ctx context.Context, d *store.Device, methods []method) {
	t.Helper()
	for _, m := range methods {
		_, err := m.call(ctx, d)
		require.NoError(t, err, m.name)
	}
}

// snapshot is what all reads answer.
func snapshot(t *testing.T, d *store.Device) map[string]any {
	t.Helper()
	answers := make(map[string]any, len(reads))
	for _, m := range reads {
		answer, err := m.call(ctx, d)
		if !errors.Is(err, sql.ErrNoRows) {
			require.NoError(t, err, m.name)
		}
		answers[m.name] = answer
	}
	return answers
}
