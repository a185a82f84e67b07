package pgstore_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// spoilable is a key of one type, what may be wrong with its row, and what the contract says of one that is absent.
type spoilable struct {
	keyType string
	spoils  []string                           // SQL of what data becomes
	put     func(d *store.Device) error        // anew, as the client would
	get     func(d *store.Device) (any, error) // what it asks
	absent  any                                // the answer if there is none
	present any                                // the answer after put
}

// emptied, mistyped and without say what is wrong with a row.
const emptied = `'{}'`

func mistyped(field string) string { return fmt.Sprintf(`jsonb_set(data, '{%s}', '7')`, field) }
func nulled(field string) string   { return fmt.Sprintf(`jsonb_set(data, '{%s}', 'null')`, field) }
func without(field string) string  { return fmt.Sprintf(`data - '%s'`, field) }
func shortened(field string) string {
	return fmt.Sprintf(`jsonb_set(data, '{%s}', '"AAAA"')`, field)
}

var (
	spoiledChat = types.NewJID("1", types.DefaultUserServer)
	spoiledMAC  = bytes.Repeat([]byte{1}, 32)

	spoiledSession   = sessionAt(1)
	spoiledSenderKey = []byte(`{"SenderKeyStates":[{"Keys":null,"KeyID":1,"SenderChainKey":{"Iteration":1}}]}`)
)

var spoilables = []spoilable{
	{
		keyType: "identity", spoils: []string{emptied, mistyped("value"), nulled("value"), shortened("value")},
		put: func(d *store.Device) error { return d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}) },
		get: func(d *store.Device) (any, error) {
			return d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{2})
		},
		absent: true, present: false,
	},
	{
		keyType: "session", spoils: []string{emptied, mistyped("record"), nulled("record"), `jsonb_set(data, '{record}', '"{}"')`},
		put: func(d *store.Device) error { return d.Sessions.PutSession(ctx, "1:0", spoiledSession) },
		get: func(d *store.Device) (any, error) {
			session, err := d.Sessions.GetSession(ctx, "1:0")
			return string(session), err
		},
		absent: "", present: string(spoiledSession),
	},
	{
		keyType: "sender_key", spoils: []string{emptied, mistyped("record"), nulled("record"), `jsonb_set(data, '{record}', '"{}"')`},
		put: func(d *store.Device) error { return d.SenderKeys.PutSenderKey(ctx, "g", "1:0", spoiledSenderKey) },
		get: func(d *store.Device) (any, error) {
			key, err := d.SenderKeys.GetSenderKey(ctx, "g", "1:0")
			return string(key), err
		},
		absent: "", present: string(spoiledSenderKey),
	},
	{
		keyType: "pre_key", spoils: []string{emptied, mistyped("private"), shortened("private"), without("uploaded")},
		put:    func(d *store.Device) error { _, err := d.PreKeys.GenOnePreKey(ctx); return err },
		get:    func(d *store.Device) (any, error) { return d.PreKeys.UploadedPreKeyCount(ctx) },
		absent: 0, present: 1,
	},
	{
		keyType: "app_state_key", spoils: []string{emptied, mistyped("data"), `jsonb_set(data, '{data}', '""')`, without("timestamp")},
		put: func(d *store.Device) error {
			return d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte{1}, Fingerprint: []byte{}, Timestamp: 1})
		},
		get: func(d *store.Device) (any, error) {
			key, err := d.AppStateKeys.GetAppStateSyncKey(ctx, []byte{1})
			return key != nil, err
		},
		absent: false, present: true,
	},
	{
		keyType: "app_state_version", spoils: []string{emptied, mistyped("hash"), shortened("hash"), without("version")},
		put: func(d *store.Device) error {
			if err := d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte{}); err != nil {
				return err
			}
			return d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, nil)
		},
		get: func(d *store.Device) (any, error) {
			version, _, err := d.AppState.GetAppStateVersion(ctx, "regular")
			return version, err
		},
		absent: uint64(0), present: uint64(3),
	},
	{
		keyType: "app_state_mac", spoils: []string{emptied, mistyped("value_mac"), shortened("value_mac"), without("version")},
		put: func(d *store.Device) error {
			return d.AppState.PutAppStateMutationMACs(ctx, "critical", 3, []store.AppStateMutationMAC{{IndexMAC: spoiledMAC, ValueMAC: spoiledMAC}})
		},
		get: func(d *store.Device) (any, error) {
			mac, err := d.AppState.GetAppStateMutationMAC(ctx, "critical", spoiledMAC)
			return string(mac), err
		},
		absent: "", present: string(spoiledMAC),
	},
	{
		keyType: "contact", spoils: []string{emptied, mistyped("jid"), mistyped("full_name"), without("jid")},
		put: func(d *store.Device) error { return d.Contacts.PutContactName(ctx, spoiledChat, "first", "full") },
		get: func(d *store.Device) (any, error) {
			contact, err := d.Contacts.GetContact(ctx, spoiledChat)
			return contact, err
		},
		absent: types.ContactInfo{}, present: types.ContactInfo{Found: true, FirstName: "first", FullName: "full"},
	},
	{
		keyType: "chat_settings", spoils: []string{mistyped("pinned")}, // every field may be missing
		put: func(d *store.Device) error { return d.ChatSettings.PutPinned(ctx, spoiledChat, true) },
		get: func(d *store.Device) (any, error) {
			return d.ChatSettings.GetChatSettings(ctx, spoiledChat)
		},
		absent: types.LocalChatSettings{}, present: types.LocalChatSettings{Found: true, Pinned: true},
	},
	{
		keyType: "message_secret", spoils: []string{emptied, mistyped("secret"), nulled("secret"), without("sender")},
		put: func(d *store.Device) error {
			return d.MsgSecrets.PutMessageSecret(ctx, spoiledChat, spoiledChat, "A", []byte("secret"))
		},
		get: func(d *store.Device) (any, error) {
			secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, spoiledChat, spoiledChat, "A")
			return string(secret), err
		},
		absent: "", present: "secret",
	},
	{
		keyType: "privacy_token", spoils: []string{emptied, mistyped("token"), nulled("token"), without("timestamp")},
		put: func(d *store.Device) error {
			return d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: spoiledChat, Token: []byte("token"), Timestamp: time.Unix(1, 0)})
		},
		get: func(d *store.Device) (any, error) {
			token, err := d.PrivacyTokens.GetPrivacyToken(ctx, spoiledChat)
			return token != nil, err
		},
		absent: false, present: true,
	},
	{
		keyType: "nct_salt", spoils: []string{emptied, mistyped("value"), nulled("value")},
		put: func(d *store.Device) error { return d.NCTSalt.PutNCTSalt(ctx, []byte("salt")) },
		get: func(d *store.Device) (any, error) {
			salt, err := d.NCTSalt.GetNCTSalt(ctx)
			return string(salt), err
		},
		absent: "", present: "salt",
	},
	{
		keyType: "buffered_event", spoils: []string{emptied, mistyped("plaintext"), without("plaintext"), without("insert_ms"), `jsonb_set(data, '{insert_ms}', '"soon"')`},
		put: func(d *store.Device) error {
			return d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("plaintext"), time.Unix(1, 0))
		},
		get: func(d *store.Device) (any, error) {
			event, err := d.EventBuffer.GetBufferedEvent(ctx, [32]byte{1})
			if event == nil {
				return nil, err
			}
			return string(event.Plaintext), err
		},
		absent: nil, present: "plaintext",
	},
	{
		keyType: "outgoing_event", spoils: []string{emptied, mistyped("plaintext"), nulled("plaintext"), without("insert_ms")},
		put: func(d *store.Device) error {
			return d.EventBuffer.AddOutgoingEvent(ctx, spoiledChat, "A", "wa", []byte("plaintext"))
		},
		get: func(d *store.Device) (any, error) {
			_, plaintext, err := d.EventBuffer.GetOutgoingEvent(ctx, spoiledChat, types.EmptyJID, "A")
			if err == sql.ErrNoRows { //nolint:errorlint // exactly this is what the client expects
				return nil, nil
			}
			return string(plaintext), err
		},
		absent: nil, present: "plaintext",
	},
}

// A row of any type that does not parse is found when it is loaded or first used, reported with its type, set aside where it can be looked at,
// and answers absent; what is put in its place is there, and stays.
func TestP1P8ARowThatDoesNotParseIsSetAsideAndItsPlaceIsFree(t *testing.T) {
	t.Parallel()
	for _, s := range spoilables {
		for _, spoil := range s.spoils {
			t.Run(s.keyType+" "+spoil, func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Open(t)
				var logged lockedBuffer
				again := func() (*pgstore.Container, *store.Device) {
					c := reopen(t, dsn, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&logged) })
					d, err := c.GetFirstDevice(ctx)
					require.NoError(t, err)
					return c, d
				}
				c, d := again()
				require.NoError(t, s.put(pair(t, d)))
				require.NoError(t, c.Close())
				require.NoError(t, execSQL(t, dsn, fmt.Sprintf(`UPDATE whatsmeow.auth_keys SET data = %s WHERE key_type = '%s'`, spoil, s.keyType)))
				spoiled := scalar[string](t, dsn, `SELECT data::text FROM whatsmeow.auth_keys WHERE key_type = $1`, s.keyType)

				c, d = again()
				got, err := s.get(d)
				require.NoError(t, err)
				require.Equal(t, s.absent, got)
				require.Eventually(t, func() bool {
					return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside WHERE key_type = $1 AND data::text = $2`, s.keyType, spoiled) == 1
				}, 10*time.Second, 10*time.Millisecond)
				require.Contains(t, logged.String(), "key_type="+s.keyType)
				require.NoError(t, s.put(d))
				for range 2 {
					got, err = s.get(d)
					require.NoError(t, err)
					require.Equal(t, s.present, got)
					require.NoError(t, c.Flush(ctx))
				}
				require.NoError(t, c.Close())
				_, d = again()
				got, err = s.get(d)
				require.NoError(t, err)
				require.Equal(t, s.present, got)
				require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
			})
		}
	}
}

// A secret is put without asking whether there is one: a row in its way that has none gives way.
func TestP1ASecretThatIsPutOverARowThatDoesNotParseStays(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	put := func(secret string) {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, spoiledChat, spoiledChat, "A", []byte(secret)))
		require.NoError(t, c.Flush(ctx))
	}
	put("first")
	put("second")
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = data - 'secret' WHERE key_type = 'message_secret' AND data->>'secret' = 'Zmlyc3Q='`))
	put("third")
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, spoiledChat, spoiledChat, "A")
	require.NoError(t, err)
	require.Equal(t, "third", string(secret))
}

// An encrypted one likewise, as far as the database can tell: its data key is not there.
func TestP1ASecretThatIsPutOverAnEncryptedRowWithoutADataKeyStays(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	put := func(id types.MessageID, secret string) {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, spoiledChat, spoiledChat, id, []byte(secret)))
		require.NoError(t, c.Flush(ctx))
	}
	put("A", "first")
	put("B", "first")
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = '{"enc": "garbage"}' WHERE key_type = 'message_secret' AND key_id LIKE '%A'`))
	put("A", "second")
	put("B", "second")
	require.NoError(t, c.Close())
	d = mustDevice(t, reopen(t, dsn, with), *d.ID)
	for id, want := range map[string]string{"A": "second", "B": "first"} {
		secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, spoiledChat, spoiledChat, id)
		require.NoError(t, err)
		require.Equal(t, want, string(secret), id)
	}
}

func TestP1SettingARowAsideTakesNothingThatWasWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, w := openWatched(t, dsn)
	d := pair(t, c.NewDevice())
	put := func(plaintext string) {
		require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, spoiledChat, "A", "wa", []byte(plaintext)))
		require.NoError(t, c.Flush(ctx))
	}
	put("first")
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_type = 'outgoing_event'`))
	moving, release := w.hold("set_aside")
	defer release()
	read := make(chan error, 1)
	go func() {
		_, _, err := d.EventBuffer.GetOutgoingEvent(ctx, spoiledChat, types.EmptyJID, "A")
		read <- err
	}()
	require.Eventually(t, func() bool { return moving.held.Load() == 1 }, 10*time.Second, time.Millisecond)
	put("second")
	release()
	require.NoError(t, <-read, "it asked again")
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'outgoing_event'`))
}

// One row whose time cannot be read does not stop the others from being pruned.
func TestHousekeepingPassesOverARowThatDoesNotParse(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	for i := range byte(3) {
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{i}, nil, time.Now()))
	}
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, dsn,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', '1') WHERE key_type = 'buffered_event'`,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', '"soon"') WHERE ctid = (
			SELECT min(ctid) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event')`))
	require.NoError(t, d.EventBuffer.DeleteOldBufferedHashes(ctx))
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
}

// Credentials that cannot be read are an error of every call that needs them, never a device that does not exist, and no panic.
func TestP8CredentialsThatDoNotParseAreAnError(t *testing.T) {
	t.Parallel()
	for _, spoil := range []string{
		`SET data = '{}' WHERE key_id = 'device'`,
		`SET data = '{"device": {}}' WHERE key_id = 'device'`,
		`SET data = '{"device": null}' WHERE key_id = 'device'`,
		`SET data = '{"next_pre_key_id": 7}' WHERE key_id = 'device'`,
		`SET data = jsonb_set(data, '{device,noise_key}', '"AAAA"') WHERE key_id = 'device'`,
		`SET data = '{}' WHERE key_id = 'pre_keys'`,
		`SET data = '{"next_pre_key_id": "7"}' WHERE key_id = 'pre_keys'`,
	} {
		t.Run(spoil, func(t *testing.T) {
			t.Parallel()
			c, dsn := open(t)
			d := pair(t, c.NewDevice())
			_, err := d.PreKeys.GenOnePreKey(ctx)
			require.NoError(t, err)
			require.NoError(t, c.Close())
			c = reopen(t, dsn)
			held, err := c.GetAllDevices(ctx)
			require.NoError(t, err)
			require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys `+spoil+` AND key_type = 'creds'`))
			for name, call := range map[string]func() error{
				"GetDevice":      func() error { _, err := c.GetDevice(ctx, *d.ID); return err },
				"GetFirstDevice": func() error { _, err := c.GetFirstDevice(ctx); return err },
				"Instance":       func() error { _, err := c.Instance(ctx, d.ID.String()); return err },
				"Save":           func() error { return held[0].Save(ctx) },
				"GetSession":     func() error { _, err := held[0].Sessions.GetSession(ctx, "1:0"); return err },
				"PutSenderKey":   func() error { return held[0].SenderKeys.PutSenderKey(ctx, "g", "1:0", spoiledSenderKey) },
				"a decrypt": func() error {
					return held[0].EventBuffer.DoDecryptionTxn(ctx, func(context.Context) error { return nil })
				},
				"Delete": func() error { return held[0].Delete(ctx) },
			} {
				err := call()
				require.ErrorIs(t, err, pgstore.ErrCorrupt, name)
				require.ErrorIs(t, err, context.Canceled, "%s: the message is not at fault", name)
			}
			_, err = held[0].Contacts.GetContact(ctx, spoiledChat) // looks, and needs no counter of pre-keys
			if strings.Contains(spoil, "'device'") {
				require.ErrorIs(t, err, pgstore.ErrCorrupt)
			}
			require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'creds'`), "they stay where they are")
		})
	}
}
