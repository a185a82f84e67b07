package pgstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/wataki/whatsmeow-pgstore/cache"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// value is what the cache holds. A value never changes after it was put.
// Its JSON is the data column; the shape of each type is documented at the type.
type value interface {
	size() int
}

// decode reads the data column. A row that lacks a field, or has one that is not what it should be, is [ErrCorrupt]: it must not look
// as if something had been put that never was.
func decode(t cache.Type, data []byte) (value, error) {
	v := keyTypes[t].empty()
	if rec, ok := v.(*recordValue); ok {
		rec.load(data)
		return rec, nil
	}
	for _, field := range keyTypes[t].fields {
		// In JSON text a quoted name is a name, or a string that is nothing else.
		if !bytes.Contains(data, []byte(`"`+field+`"`)) {
			return nil, fmt.Errorf("%w: %s: a field is missing", ErrCorrupt, typeName(t))
		}
	}
	if err := json.Unmarshal(data, v); err != nil {
		// The decoder's own text may quote the data.
		return nil, fmt.Errorf("%w: %s", ErrCorrupt, typeName(t))
	}
	if c, ok := v.(interface{ valid(t cache.Type) bool }); ok && !c.valid(t) {
		return nil, fmt.Errorf("%w: %s: a field has the wrong length", ErrCorrupt, typeName(t))
	}
	return v, nil
}

// decodeKey is decode for a row whose id says more about its shape than its type.
func decodeKey(k cache.Key, data []byte) (value, error) {
	v, err := decode(k.Type, data)
	if creds, ok := v.(*credsValue); err == nil && ok && !creds.fits(k) {
		return nil, fmt.Errorf("%w: %s: a field is missing", ErrCorrupt, typeName(k.Type))
	}
	return v, err
}

func encode(v value) (string, error) {
	marshal := func() ([]byte, error) { return json.Marshal(v) }
	if rec, ok := v.(*recordValue); ok {
		marshal = rec.MarshalJSON // json.Marshal would read it all again
	}
	b, err := marshal()
	return string(b), err
}

// equal says whether a write of b over a would change nothing. A record that was not used since it was loaded counts as
// another: looking would mean decoding it.
func equal(a, b value) bool {
	if x, ok := a.(*recordValue); ok {
		y, ok := b.(*recordValue)
		return ok && x.same(y)
	}
	return reflect.DeepEqual(a, b)
}

// text is a string that a stranger may have sent.
type text = portable.Text

// bytesValue is {"value": base64}: identities, the NCT salt.
type bytesValue struct {
	Value []byte `json:"value"`
}

func (v *bytesValue) size() int { return 24 + len(v.Value) }

func (v *bytesValue) valid(t cache.Type) bool {
	return v.Value != nil && (t != typeIdentity || len(v.Value) == keyLength)
}

// preKeyValue is {"private": base64 (32 bytes), "uploaded": bool}, and "stale": true if it was made before the database went back: peers may still
// use it, but it counts as none.
type preKeyValue struct {
	Private  []byte `json:"private"`
	Uploaded bool   `json:"uploaded"`
	Stale    bool   `json:"stale,omitempty"`
}

func (v *preKeyValue) size() int             { return 32 + len(v.Private) }
func (v *preKeyValue) valid(cache.Type) bool { return len(v.Private) == keyLength }

// appStateKeyValue is {"id", "data", "fingerprint": base64, "timestamp": milliseconds as the phone gave them}.
type appStateKeyValue struct {
	ID          []byte `json:"id"`
	Data        []byte `json:"data"`
	Fingerprint []byte `json:"fingerprint"`
	Timestamp   int64  `json:"timestamp"`
}

func (v *appStateKeyValue) size() int { return 80 + len(v.ID) + len(v.Data) + len(v.Fingerprint) }
func (v *appStateKeyValue) valid(cache.Type) bool {
	return len(v.Data) > 0 && v.Fingerprint != nil // as at the Put: keys.go would expand an empty key
}

// appStateVersionValue is {"version": number, "hash": base64 (128 bytes)}.
type appStateVersionValue struct {
	Version uint64 `json:"version"`
	Hash    []byte `json:"hash"`
}

func (v *appStateVersionValue) size() int             { return 160 }
func (v *appStateVersionValue) valid(cache.Type) bool { return len(v.Hash) == 128 }

// macValue is {"version": number, "value_mac": base64 (32 bytes)}: of one index MAC the highest version.
type macValue struct {
	Version  uint64 `json:"version"`
	ValueMAC []byte `json:"value_mac"`
}

func (v *macValue) size() int             { return 64 }
func (v *macValue) valid(cache.Type) bool { return len(v.ValueMAC) == keyLength }

// contactValue is {"jid", "first_name", "full_name", "push_name", "business_name", "redacted_phone"}.
type contactValue struct {
	JID           text `json:"jid"`
	FirstName     text `json:"first_name,omitempty"`
	FullName      text `json:"full_name,omitempty"`
	PushName      text `json:"push_name,omitempty"`
	BusinessName  text `json:"business_name,omitempty"`
	RedactedPhone text `json:"redacted_phone,omitempty"`
}

func (v *contactValue) size() int {
	return 96 + len(v.JID) + len(v.FirstName) + len(v.FullName) + len(v.PushName) + len(v.BusinessName) + len(v.RedactedPhone)
}

// chatSettingsValue is {"muted_until": Unix seconds (-1 for ever, 0 not), "pinned", "archived"}.
type chatSettingsValue struct {
	MutedUntil int64 `json:"muted_until,omitempty"`
	Pinned     bool  `json:"pinned,omitempty"`
	Archived   bool  `json:"archived,omitempty"`
}

func (v *chatSettingsValue) size() int { return 16 }

// messageSecretValue is {"sender": JID, "secret": base64}.
type messageSecretValue struct {
	Sender text   `json:"sender"`
	Secret []byte `json:"secret"`
}

func (v *messageSecretValue) size() int             { return 40 + len(v.Sender) + len(v.Secret) }
func (v *messageSecretValue) valid(cache.Type) bool { return v.Secret != nil }

// privacyTokenValue is {"token": base64, "timestamp", "sender_timestamp": Unix seconds}.
type privacyTokenValue struct {
	Token           []byte `json:"token"`
	Timestamp       int64  `json:"timestamp"`
	SenderTimestamp *int64 `json:"sender_timestamp,omitempty"`
}

func (v *privacyTokenValue) size() int             { return 48 + len(v.Token) }
func (v *privacyTokenValue) valid(cache.Type) bool { return v.Token != nil }

// bufferedEventValue is {"plaintext": base64 or null once processed, "server_s": Unix seconds, "insert_ms": Unix milliseconds}.
type bufferedEventValue struct {
	Plaintext []byte `json:"plaintext"`
	ServerS   int64  `json:"server_s"`
	InsertMS  int64  `json:"insert_ms"`
}

func (v *bufferedEventValue) size() int             { return 48 + len(v.Plaintext) }
func (v *bufferedEventValue) valid(cache.Type) bool { return v.InsertMS > 0 }
func (v *bufferedEventValue) inserted() int64       { return v.InsertMS }

// outgoingEventValue is {"format": text, "plaintext": base64, "insert_ms": Unix milliseconds}.
type outgoingEventValue struct {
	Format    text   `json:"format"`
	Plaintext []byte `json:"plaintext"`
	InsertMS  int64  `json:"insert_ms"`
}

func (v *outgoingEventValue) size() int             { return 56 + len(v.Format) + len(v.Plaintext) }
func (v *outgoingEventValue) valid(cache.Type) bool { return v.Plaintext != nil && v.InsertMS > 0 }
func (v *outgoingEventValue) inserted() int64       { return v.InsertMS }

// credsValue has two shapes: the device's credentials under the id "device" and
// {"next_pre_key_id"} under "pre_keys".
type credsValue struct {
	Device       *deviceJSON `json:"device,omitempty"`
	NextPreKeyID uint32      `json:"next_pre_key_id,omitempty"`
	// HealedThrough stands beside the counter: the abandon_through for which the instance was healed (replay.go).
	HealedThrough int64 `json:"healed_through,omitempty"`
}

func (v *credsValue) size() int { return 2048 }

func (v *credsValue) fits(k cache.Key) bool {
	switch k {
	case deviceKey:
		return v.Device.whole()
	case counterKey:
		return v.NextPreKeyID > 0
	}
	return true // of a later version
}
