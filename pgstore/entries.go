package pgstore

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// What an import makes rows of, and an export makes of rows. Every shape has one entry, and back, but for what a row says about ceilings: import.go and
// export.go say what becomes of these.

// rowOf is an entry as it is stored. A pair of the LID map has no row. An entry that its own Put would refuse, or that could not be used, is
// [ErrInvalidInput].
func rowOf(e portable.Entry) (k cache.Key, v value, err error) {
	refused := func(what string) (cache.Key, value, error) { return k, nil, invalid(what) }
	switch e := e.(type) {
	case *portable.Credentials:
		d := deviceJSON(*e)
		return deviceKey, &credsValue{Device: &d}, d.check()
	case *portable.Identity:
		if len(e.Key) != keyLength {
			return refused("an identity must have 32 bytes")
		}
		return newKey(typeIdentity, string(e.Address)), &bytesValue{Value: e.Key}, nil
	case *portable.Session:
		if !looksLikeRecord(e.Record) {
			return refused("no session that libsignal could read")
		}
		if _, err = parseSession(e.Record); err != nil {
			return refused("no session that libsignal could read")
		}
		return newKey(typeSession, string(e.Address)), recordOf(e.Record, e.Abandoned), nil
	case *portable.SenderKey:
		if !looksLikeRecord(e.Record) {
			return refused("no sender key that libsignal could read")
		}
		if _, err = parseSenderKey(e.Record); err != nil {
			return refused("no sender key that libsignal could read")
		}
		return senderKeyKey(string(e.Group), string(e.Sender)), recordOf(e.Record, e.Abandoned), nil
	case *portable.PreKey:
		if e.ID == 0 || e.ID > maxPreKeyID || len(e.Private) != keyLength {
			return refused("a pre-key must have an id from 1 to 2^24-2 and 32 bytes")
		}
		return newKey(typePreKey, preKeyID(e.ID)), &preKeyValue{Private: e.Private, Uploaded: e.Uploaded, Stale: e.Stale}, nil
	case *portable.AppStateKey:
		v := &appStateKeyValue{ID: e.ID, Data: e.Data, Fingerprint: notNil(e.Fingerprint), Timestamp: e.Timestamp}
		if !v.valid(typeAppStateKey) || len(e.ID) == 0 {
			return refused("an app-state key has no id or no data")
		}
		return newKey(typeAppStateKey, binaryID(e.ID)), v, nil
	case *portable.AppStateVersion:
		v := &appStateVersionValue{Version: e.Version, Hash: e.Hash}
		if e.Version == 0 || !v.valid(typeAppStateVersion) {
			return refused("an app-state version must not be 0, and its hash must have 128 bytes")
		}
		return newKey(typeAppStateVersion, string(e.Collection)), v, nil
	case *portable.AppStateMAC:
		if len(e.IndexMAC) != keyLength || len(e.ValueMAC) != keyLength {
			return refused("the MACs of an app state must have 32 bytes")
		}
		return macKey(string(e.Collection), e.IndexMAC), &macValue{Version: e.Version, ValueMAC: e.ValueMAC}, nil
	}
	return rowOfPlain(e)
}

// rowOfPlain is rowOf for what holds no keys of the protocol.
func rowOfPlain(e portable.Entry) (k cache.Key, v value, err error) {
	switch e := e.(type) {
	case *portable.Contact:
		c := contactValue(*e)
		return newKey(typeContact, string(e.JID)), &c, nil
	case *portable.ChatSettings:
		return newKey(typeChatSettings, string(e.Chat)), &chatSettingsValue{MutedUntil: e.MutedUntil, Pinned: e.Pinned, Archived: e.Archived}, nil
	case *portable.MessageSecret:
		return newKey(typeMessageSecret, string(e.Chat), string(e.Sender), string(e.ID)), &messageSecretValue{Sender: e.Sender, Secret: notNil(e.Secret)}, nil
	case *portable.PrivacyToken:
		return newKey(typePrivacyToken, string(e.JID)), &privacyTokenValue{Token: notNil(e.Token), Timestamp: e.Timestamp, SenderTimestamp: e.SenderTimestamp}, nil
	case *portable.NCTSalt:
		return saltKey, &bytesValue{Value: notNil(e.Salt)}, nil
	case *portable.BufferedEvent:
		v := &bufferedEventValue{Plaintext: e.Plaintext, ServerS: e.ServerSeconds, InsertMS: e.InsertMillis}
		if len(e.CiphertextHash) != keyLength || !v.valid(typeBufferedEvent) {
			return k, nil, invalid("a buffered event must have a hash of 32 bytes and a time")
		}
		return newKey(typeBufferedEvent, binaryID(e.CiphertextHash)), v, nil
	case *portable.OutgoingEvent:
		v := &outgoingEventValue{Format: e.Format, Plaintext: notNil(e.Plaintext), InsertMS: e.InsertMillis}
		if !v.valid(typeOutgoingEvent) {
			return k, nil, invalid("an outgoing event has no time")
		}
		return newKey(typeOutgoingEvent, string(e.Chat), string(e.ID)), v, nil
	}
	return k, nil, invalid("an entry of a kind that is not stored with an instance")
}

// notNil is what a column that is empty and not null holds.
func notNil(b []byte) []byte { return append([]byte{}, b...) }

// recordOf is a record of which nothing was sent by this library yet.
func recordOf(record []byte, abandoned []string) *recordValue {
	v := newRecord(record)
	v.form.Load().sends = &reservation{abandoned: abandoned}
	return v
}

// check refuses credentials with which no device could log in, naming the field.
func (j *deviceJSON) check() error {
	jid, err := types.ParseJID(string(j.JID))
	if err != nil || jid.User == "" {
		return invalid("credentials: no JID")
	}
	if _, err = types.ParseJID(string(j.LID)); err != nil && j.LID != "" {
		return invalid("credentials: no LID")
	}
	switch {
	case !j.JID.Storable() || !j.LID.Storable() || !storableUser(string(j.JID)) || !storableUser(string(j.LID)):
		return invalid("credentials: JID or LID is too long")
	case len(j.NoiseKey) != keyLength || len(j.IdentityKey) != keyLength || len(j.SignedPreKey) != keyLength:
		return invalid("credentials: a private key must have 32 bytes")
	case len(j.SignedPreKeySignature) != signatureLength || len(j.AdvAccountSig) != signatureLength || len(j.AdvDeviceSig) != signatureLength:
		return invalid("credentials: a signature must have 64 bytes")
	case len(j.AdvAccountSigKey) != keyLength:
		return invalid("credentials: the account's key must have 32 bytes")
	case j.SignedPreKeyID >= preKeyIDLimit:
		return invalid("credentials: the signed pre-key's id is not below 2^24")
	case len(j.AdvDetails) == 0:
		return invalid("credentials: the account's details are missing")
	}
	return nil
}

// ownPair is the pair of the device's own phone number and LID.
func (j *deviceJSON) ownPair() map[string]string {
	pn, err1 := types.ParseJID(string(j.JID))
	lid, err2 := types.ParseJID(string(j.LID))
	if err1 != nil || err2 != nil {
		return nil
	}
	return pairOf(pn, lid)
}

// entryOf is a row as an entry. A record is as it is in the row; export.go says what it is made into. It fails on a row whose key does not say what it
// was made of.
func entryOf(k cache.Key, v value) (portable.Entry, error) {
	parts := strings.Split(k.ID, idSeparator)
	for i := range parts {
		parts[i] = unescapeID(parts[i])
	}
	cut := func(of int) error {
		if len(k.ID) > maxIDBytes || len(parts) != of {
			return fmt.Errorf("%w: %s: its name was too long to be kept whole", ErrInvalidInput, typeName(k.Type))
		}
		return nil
	}
	switch v := v.(type) {
	case *credsValue:
		switch {
		case k == deviceKey && v.Device.whole():
			d := portable.Credentials(*v.Device)
			return &d, nil
		case k == counterKey && v.NextPreKeyID > 0:
			return &portable.PreKeyCounter{Next: v.NextPreKeyID}, nil
		}
		return nil, fmt.Errorf("%w: credentials of a later version", ErrInvalidInput)
	case *recordValue:
		record, err := v.bytes()
		if err != nil {
			return nil, err
		}
		abandoned := v.form.Load().sends.abandoned
		if k.Type == typeSession {
			return &portable.Session{Address: text(parts[0]), Record: record, Abandoned: abandoned}, cut(1)
		}
		if err = cut(2); err != nil {
			return nil, err
		}
		return &portable.SenderKey{Sender: text(parts[0]), Group: text(parts[1]), Record: record, Abandoned: abandoned}, nil
	case *preKeyValue:
		id, err := strconv.ParseUint(k.ID, 10, 24)
		return &portable.PreKey{ID: uint32(id), Private: v.Private, Uploaded: v.Uploaded, Stale: v.Stale}, err
	case *appStateKeyValue:
		return &portable.AppStateKey{ID: v.ID, Data: v.Data, Fingerprint: v.Fingerprint, Timestamp: v.Timestamp}, nil
	case *appStateVersionValue:
		return &portable.AppStateVersion{Collection: text(parts[0]), Version: v.Version, Hash: v.Hash}, cut(1)
	case *macValue:
		if err := cut(2); err != nil {
			return nil, err
		}
		index, err := base64.RawURLEncoding.DecodeString(parts[1])
		return &portable.AppStateMAC{Collection: text(parts[0]), Version: v.Version, IndexMAC: index, ValueMAC: v.ValueMAC}, err
	case *bytesValue:
		if k.Type == typeNCTSalt {
			return &portable.NCTSalt{Salt: v.Value}, nil
		}
		return &portable.Identity{Address: text(parts[0]), Key: v.Value}, cut(1)
	case *contactValue:
		c := portable.Contact(*v)
		return &c, nil
	case *chatSettingsValue:
		return &portable.ChatSettings{Chat: text(parts[0]), MutedUntil: v.MutedUntil, Pinned: v.Pinned, Archived: v.Archived}, cut(1)
	case *messageSecretValue:
		if err := cut(3); err != nil {
			return nil, err
		}
		return &portable.MessageSecret{Chat: text(parts[0]), Sender: v.Sender, ID: text(parts[2]), Secret: v.Secret}, nil
	case *privacyTokenValue:
		return &portable.PrivacyToken{JID: text(parts[0]), Token: v.Token, Timestamp: v.Timestamp, SenderTimestamp: v.SenderTimestamp}, cut(1)
	case *bufferedEventValue:
		hash, err := base64.RawURLEncoding.DecodeString(parts[0])
		return &portable.BufferedEvent{CiphertextHash: hash, Plaintext: v.Plaintext, ServerSeconds: v.ServerS, InsertMillis: v.InsertMS}, err
	case *outgoingEventValue:
		if err := cut(2); err != nil {
			return nil, err
		}
		return &portable.OutgoingEvent{Chat: text(parts[0]), ID: text(parts[1]), Format: v.Format, Plaintext: v.Plaintext, InsertMillis: v.InsertMS}, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrInvalidInput, typeName(k.Type))
}
