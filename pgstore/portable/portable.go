// Package portable is what an instance consists of, in whatsmeow's words and apart from how any store keeps it: what is read of one store is written to
// another as a sequence of entries.
//
// Entries hold keys: whoever writes them anywhere writes secrets. They are not checked here; who stores them does.
package portable

import (
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Entry is one key of an instance, or a pair of the LID map. The types of this package are all there are.
type Entry interface {
	// Kind names the type, as the key_type column of pgstore does.
	Kind() string
	// Name tells the entry from others of its kind, for people. It is never a secret, but may be a phone number.
	Name() string
}

// The kinds of entries.
const (
	KindCredentials     = "creds"
	KindPreKeyCounter   = "pre_key_counter"
	KindIdentity        = "identity"
	KindSession         = "session"
	KindPreKey          = "pre_key"
	KindSenderKey       = "sender_key"
	KindAppStateKey     = "app_state_key"
	KindAppStateVersion = "app_state_version"
	KindAppStateMAC     = "app_state_mac"
	KindContact         = "contact"
	KindChatSettings    = "chat_settings"
	KindMessageSecret   = "message_secret"
	KindPrivacyToken    = "privacy_token"
	KindNCTSalt         = "nct_salt"
	KindBufferedEvent   = "buffered_event"
	KindOutgoingEvent   = "outgoing_event"
	KindLIDPair         = "lid_pair"
)

// Credentials are what a device was paired with. Key pairs are their private keys.
type Credentials struct {
	JID                   Text       `json:"jid"`
	LID                   Text       `json:"lid"`
	RegistrationID        uint32     `json:"registration_id"`
	NoiseKey              []byte     `json:"noise_key"`
	IdentityKey           []byte     `json:"identity_key"`
	SignedPreKey          []byte     `json:"signed_pre_key"`
	SignedPreKeyID        uint32     `json:"signed_pre_key_id"`
	SignedPreKeySignature []byte     `json:"signed_pre_key_sig"`
	AdvKey                []byte     `json:"adv_key"`
	AdvDetails            []byte     `json:"adv_details"`
	AdvAccountSig         []byte     `json:"adv_account_sig"`
	AdvAccountSigKey      []byte     `json:"adv_account_sig_key"`
	AdvDeviceSig          []byte     `json:"adv_device_sig"`
	Platform              Text       `json:"platform"`
	BusinessName          Text       `json:"business_name"`
	PushName              Text       `json:"push_name"`
	FacebookUUID          *uuid.UUID `json:"facebook_uuid,omitempty"`
	LIDMigrationTimestamp int64      `json:"lid_migration_ts"`
	CompanionMetaNonce    Text       `json:"companion_meta_nonce"`
}

// PreKeyCounter is the id of the pre-key that is made next.
type PreKeyCounter struct {
	Next uint32 `json:"next"`
}

// Identity is the identity key of a remote device.
type Identity struct {
	Address Text   `json:"address"`
	Key     []byte `json:"key"`
}

// Session is a Signal session, as libsignal's JSON serializer writes it.
type Session struct {
	Address Text   `json:"address"`
	Record  []byte `json:"record"`
	// Abandoned names sending chains in the record that must not be sent on any more, by the base64 of their public ratchet keys.
	Abandoned []string `json:"abandoned,omitempty"`
}

// PreKey is a one-time pre-key.
type PreKey struct {
	ID       uint32 `json:"id"`
	Private  []byte `json:"private"`
	Uploaded bool   `json:"uploaded"`
	// Stale is one that counts as not uploaded although peers may use it: it was made before a database went back.
	Stale bool `json:"stale,omitempty"`
}

// SenderKey is a sender key of a group, as libsignal's JSON serializer writes it.
type SenderKey struct {
	Group     Text     `json:"group"`
	Sender    Text     `json:"sender"`
	Record    []byte   `json:"record"`
	Abandoned []string `json:"abandoned,omitempty"` // as of a session
}

// AppStateKey is an app-state sync key. Timestamp is in milliseconds, as the phone gives it.
type AppStateKey struct {
	ID          []byte `json:"id"`
	Data        []byte `json:"data"`
	Fingerprint []byte `json:"fingerprint"`
	Timestamp   int64  `json:"timestamp"`
}

// AppStateVersion is how far a collection of the app state has got.
type AppStateVersion struct {
	Collection Text   `json:"collection"`
	Version    uint64 `json:"version"`
	Hash       []byte `json:"hash"`
}

// AppStateMAC is the MAC of a value in a collection of the app state.
type AppStateMAC struct {
	Collection Text   `json:"collection"`
	Version    uint64 `json:"version"`
	IndexMAC   []byte `json:"index_mac"`
	ValueMAC   []byte `json:"value_mac"`
}

// Contact is what is known of a person.
type Contact struct {
	JID           Text `json:"jid"`
	FirstName     Text `json:"first_name,omitempty"`
	FullName      Text `json:"full_name,omitempty"`
	PushName      Text `json:"push_name,omitempty"`
	BusinessName  Text `json:"business_name,omitempty"`
	RedactedPhone Text `json:"redacted_phone,omitempty"`
}

// ChatSettings are those of a chat. MutedUntil is in Unix seconds: -1 for ever, 0 not muted.
type ChatSettings struct {
	Chat       Text  `json:"chat"`
	MutedUntil int64 `json:"muted_until,omitempty"`
	Pinned     bool  `json:"pinned,omitempty"`
	Archived   bool  `json:"archived,omitempty"`
}

// MessageSecret is the secret of a message, by which later ones refer to it.
type MessageSecret struct {
	Chat   Text   `json:"chat"`
	Sender Text   `json:"sender"`
	ID     Text   `json:"id"`
	Secret []byte `json:"secret"`
}

// PrivacyToken is a token that somebody has issued. Times are in Unix seconds.
type PrivacyToken struct {
	JID             Text   `json:"jid"`
	Token           []byte `json:"token"`
	Timestamp       int64  `json:"timestamp"`
	SenderTimestamp *int64 `json:"sender_timestamp,omitempty"`
}

// NCTSalt is the salt of tokens for new chats.
type NCTSalt struct {
	Salt []byte `json:"salt"`
}

// BufferedEvent is a message that was decrypted. Plaintext is nil once the message was handled.
type BufferedEvent struct {
	CiphertextHash []byte `json:"ciphertext_hash"`
	Plaintext      []byte `json:"plaintext"`
	ServerSeconds  int64  `json:"server_s"`
	InsertMillis   int64  `json:"insert_ms"`
}

// OutgoingEvent is a message that was sent, kept for those who cannot read it and ask again.
type OutgoingEvent struct {
	Chat         Text   `json:"chat"`
	ID           Text   `json:"id"`
	Format       Text   `json:"format"`
	Plaintext    []byte `json:"plaintext"`
	InsertMillis int64  `json:"insert_ms"`
}

// LIDPair says which LID belongs to a phone number, by the user parts of their JIDs. It belongs to no instance.
type LIDPair struct {
	LID Text `json:"lid"`
	PN  Text `json:"pn"`
}

// Kind implements [Entry].
func (*Credentials) Kind() string { return KindCredentials }

// Kind implements [Entry].
func (*PreKeyCounter) Kind() string { return KindPreKeyCounter }

// Kind implements [Entry].
func (*Identity) Kind() string { return KindIdentity }

// Kind implements [Entry].
func (*Session) Kind() string { return KindSession }

// Kind implements [Entry].
func (*PreKey) Kind() string { return KindPreKey }

// Kind implements [Entry].
func (*SenderKey) Kind() string { return KindSenderKey }

// Kind implements [Entry].
func (*AppStateKey) Kind() string { return KindAppStateKey }

// Kind implements [Entry].
func (*AppStateVersion) Kind() string { return KindAppStateVersion }

// Kind implements [Entry].
func (*AppStateMAC) Kind() string { return KindAppStateMAC }

// Kind implements [Entry].
func (*Contact) Kind() string { return KindContact }

// Kind implements [Entry].
func (*ChatSettings) Kind() string { return KindChatSettings }

// Kind implements [Entry].
func (*MessageSecret) Kind() string { return KindMessageSecret }

// Kind implements [Entry].
func (*PrivacyToken) Kind() string { return KindPrivacyToken }

// Kind implements [Entry].
func (*NCTSalt) Kind() string { return KindNCTSalt }

// Kind implements [Entry].
func (*BufferedEvent) Kind() string { return KindBufferedEvent }

// Kind implements [Entry].
func (*OutgoingEvent) Kind() string { return KindOutgoingEvent }

// Kind implements [Entry].
func (*LIDPair) Kind() string { return KindLIDPair }

// Name implements [Entry].
func (e *Credentials) Name() string { return string(e.JID) }

// Name implements [Entry].
func (*PreKeyCounter) Name() string { return "" }

// Name implements [Entry].
func (e *Identity) Name() string { return string(e.Address) }

// Name implements [Entry].
func (e *Session) Name() string { return string(e.Address) }

// Name implements [Entry].
func (e *PreKey) Name() string { return strconv.FormatUint(uint64(e.ID), 10) }

// Name implements [Entry].
func (e *SenderKey) Name() string { return string(e.Group + " " + e.Sender) }

// Name implements [Entry].
func (*AppStateKey) Name() string { return "" }

// Name implements [Entry].
func (e *AppStateVersion) Name() string { return string(e.Collection) }

// Name implements [Entry].
func (e *AppStateMAC) Name() string { return string(e.Collection) }

// Name implements [Entry].
func (e *Contact) Name() string { return string(e.JID) }

// Name implements [Entry].
func (e *ChatSettings) Name() string { return string(e.Chat) }

// Name implements [Entry].
func (e *MessageSecret) Name() string { return string(e.Chat + " " + e.ID) }

// Name implements [Entry].
func (e *PrivacyToken) Name() string { return string(e.JID) }

// Name implements [Entry].
func (*NCTSalt) Name() string { return "" }

// Name implements [Entry].
func (*BufferedEvent) Name() string { return "" }

// Name implements [Entry].
func (e *OutgoingEvent) Name() string { return string(e.Chat + " " + e.ID) }

// Name implements [Entry].
func (e *LIDPair) Name() string { return string(e.PN) }

// New returns an empty entry of a kind, nil for a kind that this version does not know.
func New(kind string) Entry {
	for _, e := range []Entry{
		new(Credentials), new(PreKeyCounter), new(Identity), new(Session), new(PreKey), new(SenderKey), new(AppStateKey), new(AppStateVersion),
		new(AppStateMAC), new(Contact), new(ChatSettings), new(MessageSecret), new(PrivacyToken), new(NCTSalt), new(BufferedEvent), new(OutgoingEvent), new(LIDPair),
	} {
		if e.Kind() == kind {
			return e
		}
	}
	return nil
}

// Text is a string that a stranger may have sent. Neither JSON nor JSONB knows broken UTF-8, nor JSONB NUL, so such a
// string is written as {"b64": …}; every other one as itself.
type Text string

// Storable says whether a text is written as itself: UTF-8 without NUL, which is also what a PostgreSQL column of type text takes.
func (t Text) Storable() bool {
	return utf8.ValidString(string(t)) && !strings.ContainsRune(string(t), 0)
}

// MarshalJSON implements [json.Marshaler].
func (t Text) MarshalJSON() ([]byte, error) {
	if t.Storable() {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string][]byte{"b64": []byte(t)})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (t *Text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var boxed struct {
			B64 []byte `json:"b64"`
		}
		err := json.Unmarshal(b, &boxed)
		*t = Text(boxed.B64)
		return err
	}
	return json.Unmarshal(b, (*string)(t))
}
