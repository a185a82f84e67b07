package pgstore

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// The closed set of key types; typeName gives the key_type column.
const (
	typeCreds cache.Type = iota
	typeIdentity
	typeSession
	typePreKey
	typeSenderKey
	typeAppStateKey
	typeAppStateVersion
	typeAppStateMAC
	typeContact
	typeChatSettings
	typeMessageSecret
	typePrivacyToken
	typeNCTSalt
	typeBufferedEvent
	typeOutgoingEvent
	typeCount
)

// keyTypes describes each type: its name in the table, what of it is held in memory, an empty value to decode into, and the
// fields without which a row was not written by this library.
var keyTypes = [typeCount]struct {
	name      string
	residency cache.Residency
	empty     func() value
	fields    []string
}{
	typeCreds:           {"creds", cache.Pinned, func() value { return new(credsValue) }, nil},
	typeIdentity:        {"identity", cache.Resident, func() value { return new(bytesValue) }, []string{"value"}},
	typeSession:         {"session", cache.Resident, func() value { return new(recordValue) }, nil},
	typePreKey:          {"pre_key", cache.Resident, func() value { return new(preKeyValue) }, []string{"private", "uploaded"}},
	typeSenderKey:       {"sender_key", cache.Resident, func() value { return new(recordValue) }, nil},
	typeAppStateKey:     {"app_state_key", cache.Resident, func() value { return new(appStateKeyValue) }, []string{"id", "data", "fingerprint", "timestamp"}},
	typeAppStateVersion: {"app_state_version", cache.Resident, func() value { return new(appStateVersionValue) }, []string{"version", "hash"}},
	typeAppStateMAC:     {"app_state_mac", cache.Scoped, func() value { return new(macValue) }, []string{"version", "value_mac"}},
	typeContact:         {"contact", cache.Resident, func() value { return new(contactValue) }, []string{"jid"}},
	typeChatSettings:    {"chat_settings", cache.Resident, func() value { return new(chatSettingsValue) }, nil},
	typeMessageSecret:   {"message_secret", cache.OnDemand, func() value { return new(messageSecretValue) }, []string{"sender", "secret"}},
	typePrivacyToken:    {"privacy_token", cache.Resident, func() value { return new(privacyTokenValue) }, []string{"token", "timestamp"}},
	typeNCTSalt:         {"nct_salt", cache.Resident, func() value { return new(bytesValue) }, []string{"value"}},
	typeBufferedEvent:   {"buffered_event", cache.KeysOnly, func() value { return new(bufferedEventValue) }, []string{"plaintext", "server_s", "insert_ms"}},
	typeOutgoingEvent:   {"outgoing_event", cache.OnDemand, func() value { return new(outgoingEventValue) }, []string{"format", "plaintext", "insert_ms"}},
}

var typesByName = func() map[string]cache.Type {
	m := make(map[string]cache.Type, len(keyTypes))
	for t, d := range keyTypes {
		m[d.name] = cache.Type(t)
	}
	return m
}()

func typeName(t cache.Type) string { return keyTypes[t].name }

// loadedTypes lists the key_type of all types that are loaded whole.
func loadedTypes() []string {
	var names []string
	for _, d := range keyTypes {
		if d.residency == cache.Resident || d.residency == cache.Pinned {
			names = append(names, d.name)
		}
	}
	return names
}

// A key id is text under one injective escape, parts joined by '|':
//
//	\   →  \\        |  →  \p        NUL  →  \0        a byte that is not UTF-8  →  \xHH
//
// An id longer than maxIDBytes is cut, and "\h" and the SHA-256 of the whole follow.
const (
	maxIDBytes  = 1000
	idSeparator = "|"
)

func newKey(t cache.Type, parts ...string) cache.Key {
	return cache.Key{Type: t, ID: keyID(parts...)}
}

func keyID(parts ...string) string {
	var id string
	if len(parts) == 1 {
		id = escapeID(parts[0])
	} else {
		escaped := make([]string, len(parts))
		for i, p := range parts {
			escaped[i] = escapeID(p)
		}
		id = strings.Join(escaped, idSeparator)
	}
	if len(id) <= maxIDBytes {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	cut := maxIDBytes
	for !utf8.RuneStart(id[cut]) {
		cut--
	}
	return id[:cut] + `\h` + hex.EncodeToString(sum[:])
}

func escapeID(s string) string {
	if !strings.ContainsAny(s, "\\|\x00") && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == '|':
			b.WriteString(`\p`)
		case r == 0:
			b.WriteString(`\0`)
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x` + hex.EncodeToString([]byte{s[i]}))
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unescapeID reverses escapeID.
func unescapeID(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case 'p':
			b.WriteByte('|')
		case '0':
			b.WriteByte(0)
		case 'x':
			if raw, err := hex.DecodeString(s[i+1 : min(i+3, len(s))]); err == nil {
				b.Write(raw)
			}
			i += 2
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// binaryID is the id of a key that is named by bytes.
func binaryID(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func preKeyID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// macScope is the part of a MAC's id that names its collection.
func macScope(k cache.Key) string {
	scope, _, _ := strings.Cut(k.ID, idSeparator)
	return scope
}
