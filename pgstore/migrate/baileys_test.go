package migrate_test

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// written is the folder that the real Baileys wrote, see testdata/baileys.
func written(t testing.TB) fstest.MapFS {
	t.Helper()
	folder := make(fstest.MapFS)
	of := os.DirFS("../../testdata/baileys/paired")
	files, err := fs.ReadDir(of, ".")
	require.NoError(t, err)
	for _, f := range files {
		data, err := fs.ReadFile(of, f.Name())
		require.NoError(t, err)
		folder[f.Name()] = &fstest.MapFile{Data: data}
	}
	return folder
}

// buffer is how Baileys writes bytes.
func buffer(b []byte) map[string]any {
	return map[string]any{"type": "Buffer", "data": base64.StdEncoding.EncodeToString(b)}
}

func set(t testing.TB, folder fstest.MapFS, file string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	folder[file] = &fstest.MapFile{Data: data}
}

// What the real Baileys has written is read, and what cannot be carried is told.
func TestABaileysFolderIsImported(t *testing.T) {
	t.Parallel()
	c := open(t, pgtest.Open(t))
	folder := written(t)
	result, err := migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{Instance: "shop", Exact: true})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"creds": 2, "pre_key": 24, "app_state_key": 1, "identity": 1, "privacy_token": 1}, result.Counts)
	require.EqualValues(t, 26, result.NextPreKeyID)
	require.Equal(t, 2, result.LIDPairs)
	var left []string
	for _, s := range result.Skipped {
		left = append(left, s.Kind+" "+s.Name)
	}
	require.ElementsMatch(t, []string{
		"app-state-sync-version regular", "device-list 100000000000002", "sender-key 120363000000000001@g.us--100000000000001_1--7",
		"sender-key 120363000000000001@g.us--100000000000002_1--0", "sender-key-memory 120363000000000001@g.us", "session 100000000000002_1.0",
	}, left)

	d, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	require.Equal(t, "491700000001:7@s.whatsapp.net", d.ID.String())
	require.Equal(t, "100000000000001:7@lid", d.LID.String())
	require.Equal(t, "Ada Lovelace", d.PushName)
	require.Equal(t, "android", d.Platform)
	var public struct {
		NoiseKey          struct{ Public struct{ Data []byte } }
		SignedIdentityKey struct{ Public struct{ Data []byte } }
		SignedPreKey      struct {
			KeyPair struct{ Public struct{ Data []byte } }
		}
	}
	require.NoError(t, json.Unmarshal(folder["creds.json"].Data, &public))
	require.Equal(t, public.NoiseKey.Public.Data, d.NoiseKey.Pub[:])
	require.Equal(t, public.SignedIdentityKey.Public.Data, d.IdentityKey.Pub[:])
	require.Equal(t, public.SignedPreKey.KeyPair.Public.Data, d.SignedPreKey.Pub[:])
	uploaded, err := d.PreKeys.UploadedPreKeyCount(ctx)
	require.NoError(t, err)
	require.Equal(t, 19, uploaded, "of twenty one is used up")
	next, err := d.PreKeys.GetOrGenPreKeys(ctx, 6)
	require.NoError(t, err)
	require.EqualValues(t, 21, next[0].KeyID)
	require.EqualValues(t, 26, next[5].KeyID)
	var preKey struct{ Public struct{ Data []byte } }
	require.NoError(t, json.Unmarshal(folder["pre-key-21.json"].Data, &preKey))
	require.Equal(t, preKey.Public.Data, next[0].Pub[:])
	key, err := d.AppStateKeys.GetAppStateSyncKey(ctx, []byte{0, 0, 0xff, 0xff, 0xfe, 1})
	require.NoError(t, err)
	require.Len(t, key.Data, 32)
	require.EqualValues(t, 1700000000123, key.Timestamp)
	var fingerprint waE2E.AppStateSyncKeyFingerprint
	require.NoError(t, proto.Unmarshal(key.Fingerprint, &fingerprint))
	require.EqualValues(t, 77, fingerprint.GetRawID())
	require.Equal(t, []uint32{0, 1}, fingerprint.GetDeviceIndexes())
	token, err := d.PrivacyTokens.GetPrivacyToken(ctx, types.NewJID("100000000000002", types.HiddenUserServer))
	require.NoError(t, err)
	require.EqualValues(t, 1700000001, token.Timestamp.Unix())
	require.EqualValues(t, 1700000002, token.SenderTimestamp.Unix())
	lid, err := d.LIDs.GetLIDForPN(ctx, types.NewJID("491700000002", types.DefaultUserServer))
	require.NoError(t, err)
	require.Equal(t, "100000000000002", lid.User)
	trusted, err := d.Identities.IsTrustedIdentity(ctx, "100000000000002_1:0", [32]byte{1})
	require.NoError(t, err)
	require.False(t, trusted, "another one is known")
}

// A device whose keys are in such a folder logs in without a QR code, and goes on talking with the same people: sessions are begun anew.
func TestADeviceFromABaileysFolderGoesOnTalking(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	of := backends[0].open(t)
	k.login(container(of))
	k.converse()
	k.logout()
	begun := k.chains()
	folder := asBaileys(t, k.client.Store, of)

	c := open(t, pgtest.Open(t))
	result, err := migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{Exact: true})
	require.NoError(t, err)
	require.Zero(t, result.Counts["session"])
	// Somebody writes on a session that is not there any more.
	_, err = k.friend.SendText(k.account.LID(), "are you there?")
	require.NoError(t, err)
	k.login(c)
	for receive(k, k.heard) != "are you there?" {
	}
	k.converse()
	k.converse()
	require.Len(t, k.chains(), len(begun)+2)
	k.judge()
}

// asBaileys puts the keys of a device into the folder that Baileys has written, in its own form.
func asBaileys(t testing.TB, d *store.Device, of migrate.Sqlstore) fstest.MapFS {
	t.Helper()
	folder := written(t)
	var creds map[string]any
	require.NoError(t, json.Unmarshal(folder["creds.json"].Data, &creds))
	for name := range folder {
		if strings.HasPrefix(name, "pre-key-") || strings.HasPrefix(name, "app-state-sync-") {
			delete(folder, name)
		}
	}
	encode := base64.StdEncoding.EncodeToString
	pair := func(private, public []byte) map[string]any {
		return map[string]any{"private": buffer(private), "public": buffer(public)}
	}
	creds["noiseKey"] = pair(d.NoiseKey.Priv[:], d.NoiseKey.Pub[:])
	creds["signedIdentityKey"] = pair(d.IdentityKey.Priv[:], d.IdentityKey.Pub[:])
	creds["signedPreKey"] = map[string]any{"keyPair": pair(d.SignedPreKey.Priv[:], d.SignedPreKey.Pub[:]), "signature": buffer(d.SignedPreKey.Signature[:]), "keyId": d.SignedPreKey.KeyID}
	creds["registrationId"], creds["advSecretKey"] = d.RegistrationID, encode(d.AdvSecretKey)
	creds["me"] = map[string]any{"id": d.ID.String(), "lid": d.LID.String(), "name": d.PushName}
	creds["account"] = map[string]any{
		"details": encode(d.Account.Details), "accountSignatureKey": encode(d.Account.AccountSignatureKey),
		"accountSignature": encode(d.Account.AccountSignature), "deviceSignature": encode(d.Account.DeviceSignature),
	}
	highest := uint32(0)
	rows, err := of.DB.QueryContext(ctx, `SELECT key_id, key FROM whatsmeow_pre_keys`)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	for rows.Next() {
		var id uint32
		var private []byte
		require.NoError(t, rows.Scan(&id, &private))
		highest = max(highest, id)
		set(t, folder, "pre-key-"+strconv.Itoa(int(id))+".json", pair(private, nil))
	}
	require.NoError(t, rows.Err())
	creds["nextPreKeyId"], creds["firstUnuploadedPreKeyId"] = highest+1, highest+1
	set(t, folder, "creds.json", creds)
	keys, err := of.DB.QueryContext(ctx, `SELECT key_id, key_data, timestamp FROM whatsmeow_app_state_sync_keys`)
	require.NoError(t, err)
	defer func() { require.NoError(t, keys.Close()) }()
	for keys.Next() {
		var id, data []byte
		var timestamp int64
		require.NoError(t, keys.Scan(&id, &data, &timestamp))
		set(t, folder, "app-state-sync-key-"+strings.ReplaceAll(encode(id), "/", "__")+".json",
			map[string]any{"keyData": encode(data), "fingerprint": map[string]any{"rawId": 1}, "timestamp": strconv.FormatInt(timestamp, 10)})
	}
	require.NoError(t, keys.Err())
	return folder
}

// A folder that is none is refused; of a file in it that cannot be read it is told.
func TestBaileysFoldersThatAreBroken(t *testing.T) {
	t.Parallel()
	c := open(t, pgtest.Open(t))
	for name, creds := range map[string]string{
		"missing": "", "malformed": "{", "another type": `[]`, "not paired": `{"noiseKey":{}}`, "no keys": `{"me":{"id":"1:2@s.whatsapp.net"}}`,
	} {
		folder := fstest.MapFS{}
		if creds != "" {
			folder["creds.json"] = &fstest.MapFile{Data: []byte(creds)}
		}
		_, err := migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{})
		require.Error(t, err, name)
		if name == "no keys" {
			require.ErrorIs(t, err, pgstore.ErrInvalidInput)
		} else {
			require.ErrorIs(t, err, migrate.ErrBaileys, name)
		}
	}
	folder := written(t)
	broken := []string{"pre-key-2.json", "app-state-sync-key-AAD______4B.json", "identity-key-100000000000002_1.0.json", "lid-mapping-491700000002.json", "tctoken-100000000000002@lid.json"}
	for _, name := range broken {
		folder[name] = &fstest.MapFile{Data: []byte(`{"private":{"type":"Buffer","data":[256]}`)}
	}
	folder["notes.txt"], folder["other.json"] = &fstest.MapFile{}, &fstest.MapFile{}
	folder["pre-key-007.json"] = folder["pre-key-3.json"]
	result, err := migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{})
	require.NoError(t, err)
	require.Equal(t, 23, result.Counts["pre_key"])
	require.Len(t, result.Skipped, 6+len(broken)+3)
	require.False(t, result.Exact)
	_, err = c.GetFirstDevice(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, c.Stats().Healed)
}
