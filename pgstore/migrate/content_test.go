package migrate_test

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// What a store answers, so that two can be compared.

const senderKeyRecord = `{"SenderKeyStates":[{"Keys":[],"KeyID":3,"SenderChainKey":{"Iteration":4,"ChainKey":"AQID"},"SigningKeyPrivate":null,"SigningKeyPublic":"AQID"}]}`

var (
	chat    = types.NewJID("4967890", types.DefaultUserServer)
	chatLID = types.NewJID("777", types.HiddenUserServer)
	oddName = "Ada \"quoted\" | back\\slash \U0001F469"
)

// fillDevice saves a device and stores something of every kind with it, and a session with a real peer, whose address it returns. With fresh, a device with new keys, that
// is made.
func fillDevice(t testing.TB, d, fresh *store.Device) (address string) {
	t.Helper()
	signaltest.FillPairing(d)
	d.PushName, d.Platform, d.BusinessName, d.LIDMigrationTimestamp, d.CompanionMetaNonce = oddName, "android", "Engines", 1700000000, "nonce"
	d.LID = types.JID{User: d.ID.User + "9", Device: d.ID.Device, Server: types.HiddenUserServer}
	require.NoError(t, d.Save(ctx))
	_, err := d.PreKeys.GetOrGenPreKeys(ctx, 5)
	require.NoError(t, err)
	for _, err := range []error{
		d.PreKeys.MarkPreKeysAsUploaded(ctx, 3),
		d.PreKeys.RemovePreKey(ctx, 2),
		d.Identities.PutIdentity(ctx, "1_1:0", [32]byte(fill(11, 32))),
		d.SenderKeys.PutSenderKey(ctx, "g@g.us", "1_1:0", []byte(senderKeyRecord)),
		d.AppStateKeys.PutAppStateSyncKey(ctx, fill(12, 6), store.AppStateSyncKey{Data: fill(13, 32), Fingerprint: fill(14, 4), Timestamp: 1700000000000}),
		d.AppStateKeys.PutAppStateSyncKey(ctx, fill(15, 6), store.AppStateSyncKey{Data: fill(16, 32), Fingerprint: fill(31, 4), Timestamp: 1700000000001}),
		d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte(fill(17, 128))),
		d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, []store.AppStateMutationMAC{{IndexMAC: fill(18, 32), ValueMAC: fill(19, 32)}, {IndexMAC: fill(20, 32), ValueMAC: fill(21, 32)}}),
		d.AppState.PutAppStateVersion(ctx, "regular", 4, [128]byte(fill(22, 128))),
		d.AppState.PutAppStateMutationMACs(ctx, "regular", 4, []store.AppStateMutationMAC{{IndexMAC: fill(18, 32), ValueMAC: fill(23, 32)}}),
		d.Contacts.PutContactName(ctx, chat, "first", "full "+oddName),
		d.Contacts.PutManyRedactedPhones(ctx, []store.RedactedPhoneEntry{{JID: chatLID, RedactedPhone: "+49∙∙∙90"}}),
		d.ChatSettings.PutMutedUntil(ctx, chat, store.MutedForever),
		d.ChatSettings.PutPinned(ctx, chatLID, true),
		d.ChatSettings.PutArchived(ctx, chatLID, true),
		d.MsgSecrets.PutMessageSecret(ctx, chat, chat, "ID|with\\odd parts", fill(24, 32)),
		d.PrivacyTokens.PutPrivacyTokens(ctx,
			store.PrivacyToken{User: chat, Token: fill(25, 8), Timestamp: time.Unix(1700000000, 0), SenderTimestamp: time.Unix(1700000001, 0)},
			store.PrivacyToken{User: types.NewJID("1", types.DefaultUserServer), Token: fill(26, 8), Timestamp: time.Unix(1700000002, 0)}),
		d.NCTSalt.PutNCTSalt(ctx, fill(27, 16)),
		d.EventBuffer.PutBufferedEvent(ctx, [32]byte(fill(28, 32)), []byte("plaintext"), time.Unix(1700000000, 0)),
		d.EventBuffer.PutBufferedEvent(ctx, [32]byte(fill(29, 32)), nil, time.Unix(1700000000, 0)),
		d.EventBuffer.AddOutgoingEvent(ctx, chat, "A", "wa", []byte("outgoing")),
		d.LIDs.PutLIDMapping(ctx, d.LID, *d.ID),
		d.LIDs.PutLIDMapping(ctx, chatLID, chat),
	} {
		require.NoError(t, err)
	}
	_, _, err = d.Contacts.PutPushName(ctx, chat, oddName)
	require.NoError(t, err)
	_, _, err = d.Contacts.PutBusinessName(ctx, chatLID, "Engines")
	require.NoError(t, err)
	peer := signaltest.NewPeer(signaltest.NewMemoryDevice(fresh))
	signaltest.Meet(t, signaltest.NewPeer(d), peer)
	return peer.Address().SignalAddress().String()
}

// answers is what a device's stores answer.
type answers struct {
	Device      store.Device
	Identity    bool
	Sessions    map[string][]byte
	SenderKey   []byte
	PreKeys     map[uint32][32]byte
	Uploaded    int
	NextPreKeys []uint32 // those that were not uploaded yet, as the next upload would have them
	Key, Newest []byte
	AllKeys     []*store.AppStateSyncKey
	Version     uint64
	Hash        [128]byte
	MACs        [][]byte
	Contacts    map[types.JID]types.ContactInfo
	Settings    []types.LocalChatSettings
	Secret      []byte
	SecretOf    types.JID
	Tokens      []*store.PrivacyToken
	Salt        []byte
	Buffered    []*store.BufferedEvent
	Format      string
	Outgoing    []byte
	LID, PN     types.JID
}

func answersOf(t testing.TB, d *store.Device, addresses []string) (a answers) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		require.NoError(t, err)
	}
	a.Device = store.Device{
		NoiseKey: d.NoiseKey, IdentityKey: d.IdentityKey, SignedPreKey: d.SignedPreKey, RegistrationID: d.RegistrationID, AdvSecretKey: d.AdvSecretKey,
		ID: d.ID, LID: d.LID, Platform: d.Platform, BusinessName: d.BusinessName, PushName: d.PushName, FacebookUUID: d.FacebookUUID,
		LIDMigrationTimestamp: d.LIDMigrationTimestamp, CompanionMetaNonce: d.CompanionMetaNonce,
	}
	var err error
	a.Identity, err = d.Identities.IsTrustedIdentity(ctx, "1_1:0", [32]byte(fill(1, 32))) // another one than is stored
	must(err)
	a.Sessions, err = d.Sessions.GetManySessions(ctx, addresses)
	must(err)
	a.SenderKey, err = d.SenderKeys.GetSenderKey(ctx, "g@g.us", "1_1:0")
	must(err)
	a.PreKeys = make(map[uint32][32]byte)
	for id := range uint32(8) {
		k, err := d.PreKeys.GetPreKey(ctx, id)
		must(err)
		if k != nil {
			a.PreKeys[id] = *k.Priv
		}
	}
	a.Uploaded, err = d.PreKeys.UploadedPreKeyCount(ctx)
	must(err)
	next, err := d.PreKeys.GetOrGenPreKeys(ctx, 2)
	must(err)
	for _, k := range next {
		a.NextPreKeys = append(a.NextPreKeys, k.KeyID)
	}
	key, err := d.AppStateKeys.GetAppStateSyncKey(ctx, fill(12, 6))
	must(err)
	a.Key = key.Data
	a.Newest, err = d.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
	must(err)
	a.AllKeys, err = d.AppStateKeys.GetAllAppStateSyncKeys(ctx)
	must(err)
	slices.SortFunc(a.AllKeys, func(x, y *store.AppStateSyncKey) int { return cmp.Compare(x.Timestamp, y.Timestamp) })
	a.Version, a.Hash, err = d.AppState.GetAppStateVersion(ctx, "regular")
	must(err)
	for _, index := range []byte{18, 20, 99} {
		mac, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", fill(index, 32))
		must(err)
		a.MACs = append(a.MACs, mac)
	}
	a.Contacts, err = d.Contacts.GetAllContacts(ctx)
	must(err)
	for _, jid := range []types.JID{chat, chatLID, types.NewJID("2", types.DefaultUserServer)} {
		s, err := d.ChatSettings.GetChatSettings(ctx, jid)
		must(err)
		a.Settings = append(a.Settings, s)
		token, err := d.PrivacyTokens.GetPrivacyToken(ctx, jid)
		must(err)
		a.Tokens = append(a.Tokens, token)
	}
	a.Secret, a.SecretOf, err = d.MsgSecrets.GetMessageSecret(ctx, chat, chat, "ID|with\\odd parts")
	must(err)
	a.Salt, err = d.NCTSalt.GetNCTSalt(ctx)
	must(err)
	for _, hash := range []byte{28, 29, 30} {
		event, err := d.EventBuffer.GetBufferedEvent(ctx, [32]byte(fill(hash, 32)))
		must(err)
		a.Buffered = append(a.Buffered, event)
	}
	a.Format, a.Outgoing, err = d.EventBuffer.GetOutgoingEvent(ctx, chat, chatLID, "A")
	must(err)
	a.LID, err = d.LIDs.GetLIDForPN(ctx, chat)
	must(err)
	a.PN, err = d.LIDs.GetPNForLID(ctx, d.LID)
	must(err)
	return a
}
