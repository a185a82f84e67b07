package pgstore_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
)

var updateGolden = flag.Bool("update", false, "write testdata/auth_keys.golden.json anew")

// The rows are read by later versions and by other programs, so their shape is held: one row of every type.
func TestGoldenRows(t *testing.T) {
	t.Parallel()
	const golden = "../testdata/auth_keys.golden.json"
	c, dsn := open(t)
	d := c.NewDevice()
	jid := types.JID{User: "4912345", Device: 7, Server: types.DefaultUserServer}
	chat := types.NewJID("4967890", types.DefaultUserServer)
	fill := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	d.ID, d.LID = &jid, types.JID{User: "99", Device: 7, Server: types.HiddenUserServer}
	d.NoiseKey = keys.NewKeyPairFromPrivateKey([32]byte(fill(1, 32)))
	d.IdentityKey = keys.NewKeyPairFromPrivateKey([32]byte(fill(2, 32)))
	signature := [64]byte(fill(4, 64))
	d.SignedPreKey = &keys.PreKey{KeyPair: *keys.NewKeyPairFromPrivateKey([32]byte(fill(3, 32))), KeyID: 1, Signature: &signature}
	d.RegistrationID, d.AdvSecretKey = 5, fill(6, 32)
	d.Account = &waAdv.ADVSignedDeviceIdentity{Details: fill(7, 4), AccountSignature: fill(8, 64), AccountSignatureKey: fill(9, 32), DeviceSignature: fill(10, 64)}
	d.PushName, d.Platform, d.BusinessName = "Ada \x00", "android", "Engines"
	require.NoError(t, d.Save(ctx))
	steps := []error{
		d.Identities.PutIdentity(ctx, "1_1:0", [32]byte(fill(11, 32))),
		d.Sessions.PutSession(ctx, "1:0", []byte(`{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"a","ChainKey":{"Key":"b","Index":7}}}}`)),
		d.Sessions.PutSession(ctx, "2:0", []byte("\x00 not a record \xff")),
		d.SenderKeys.PutSenderKey(ctx, "g@g.us", "1:0", []byte(`{"SenderKeyStates":[{"Keys":[],"KeyID":3,"SenderChainKey":{"Iteration":4}}]}`)),
		d.AppStateKeys.PutAppStateSyncKey(ctx, fill(12, 6), store.AppStateSyncKey{Data: fill(13, 32), Fingerprint: fill(14, 4), Timestamp: 1700000000000}),
		d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte(fill(15, 128))),
		d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, []store.AppStateMutationMAC{{IndexMAC: fill(16, 32), ValueMAC: fill(17, 32)}}),
		d.Contacts.PutContactName(ctx, chat, "first", `full "name"`),
		d.ChatSettings.PutMutedUntil(ctx, chat, store.MutedForever),
		d.ChatSettings.PutPinned(ctx, chat, true),
		d.MsgSecrets.PutMessageSecret(ctx, chat, chat, "ID|with\\odd\x00parts\xff", fill(18, 32)),
		d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: chat, Token: fill(19, 8), Timestamp: time.Unix(1700000000, 0), SenderTimestamp: time.Unix(0, 0)}),
		d.NCTSalt.PutNCTSalt(ctx, fill(20, 16)),
		d.EventBuffer.PutBufferedEvent(ctx, [32]byte(fill(21, 32)), []byte("plaintext"), time.Unix(1700000000, 0)),
		d.EventBuffer.PutBufferedEvent(ctx, [32]byte(fill(22, 32)), nil, time.Unix(1700000000, 0)),
		d.EventBuffer.AddOutgoingEvent(ctx, chat, "A", "wa", []byte("plaintext")),
		d.PreKeys.RemovePreKey(ctx, 1),
	}
	for _, err := range steps {
		require.NoError(t, err)
	}
	_, err := d.PreKeys.GenOnePreKey(ctx)
	require.NoError(t, err)
	require.NoError(t, c.Flush(ctx))
	// What no two runs share: the time of insertion and the generated pre-key.
	require.NoError(t, execSQL(t, dsn,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', '1') WHERE data ? 'insert_ms'`,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{private}', '"…"') WHERE key_type = 'pre_key'`))
	var rows, want any
	require.NoError(t, json.Unmarshal([]byte(scalar[string](t, dsn,
		`SELECT jsonb_agg(jsonb_build_object('key_type', key_type, 'key_id', key_id, 'data', data) ORDER BY key_type, key_id)::text FROM whatsmeow.auth_keys`)), &rows))
	if *updateGolden {
		text, err := json.MarshalIndent(rows, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(golden, append(text, '\n'), 0o644))
	}
	text, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &want))
	require.Equal(t, want, rows)
}
