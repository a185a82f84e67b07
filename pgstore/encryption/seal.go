package encryption

import (
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// A sealed value is text, base64 without padding, of
//
//	format   1 byte, 1
//	key      5 bytes, Tink's output prefix: 1 and the id of the key
//	nonce    24 bytes
//	the rest XChaCha20-Poly1305 of a byte that says how the value is compressed, and the value
//
// The first six bytes, eight characters, are the same for all that one key has sealed: its id.
const (
	format       = 1
	prefixLength = 5 // of Tink's ciphertexts
)

// How a value is compressed. Whatever was once written has to be read for ever: a better dictionary is another one.
const (
	compressedNot  = 0
	compressedZstd = 1 // with dictionary 1
)

// dictionary1 is what the rows of sessions, sender keys and credentials have in common.
//
//go:embed dictionary1.txt
var dictionary1 []byte

const dictionaryID = 1

// maxValue bounds what a value may be decompressed to, in bytes: PostgreSQL has no larger ones.
const maxValue = 256 << 20

var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithEncoderDictRaw(dictionaryID, dictionary1)))
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxValue), zstd.WithDecoderDictRaw(dictionaryID, dictionary1)))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var encoding = base64.RawStdEncoding

// dataKey is a pgstore.DataKey.
type dataKey struct {
	handle *keyset.Handle
	aead   tink.AEAD
	id     string
}

func newDataKey(handle *keyset.Handle) (*dataKey, error) {
	entry, err := handle.Primary()
	if err != nil {
		return nil, fmt.Errorf("encryption: data key: %w", err)
	}
	primitive, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("encryption: data key: %w", err)
	}
	id := entry.KeyID()
	prefix := []byte{format, 1, byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)} //nolint:gosec // its bytes
	return &dataKey{handle: handle, aead: primitive, id: encoding.EncodeToString(prefix)}, nil
}

// ID implements pgstore.DataKey.
func (k *dataKey) ID() string { return k.id }

// Seal implements pgstore.DataKey.
func (k *dataKey) Seal(plain, associated []byte) (string, error) {
	sealed, err := k.aead.Encrypt(compress(plain), associated)
	if err != nil {
		return "", fmt.Errorf("encryption: %w", err)
	}
	return encoding.EncodeToString(append([]byte{format}, sealed...)), nil
}

var errChanged = errors.New("encryption: it was changed, or is another one's")

// Open implements pgstore.DataKey.
func (k *dataKey) Open(sealed string, associated []byte) ([]byte, error) {
	raw, err := encoding.DecodeString(sealed)
	if err != nil || len(raw) <= 1+prefixLength || raw[0] != format {
		return nil, errChanged
	}
	compressed, err := k.aead.Decrypt(raw[1:], associated)
	if err != nil {
		return nil, errChanged
	}
	return decompress(compressed)
}

func compress(plain []byte) []byte {
	out := encoder.EncodeAll(plain, append(make([]byte, 0, len(plain)), compressedZstd))
	if len(out) <= len(plain) {
		return out
	}
	return append(append(out[:0], compressedNot), plain...)
}

func decompress(compressed []byte) ([]byte, error) {
	switch {
	case len(compressed) > 0 && compressed[0] == compressedNot:
		return compressed[1:], nil
	case len(compressed) > 0 && compressed[0] == compressedZstd:
		return decoder.DecodeAll(compressed[1:], nil)
	}
	return nil, errors.New("encryption: it is compressed in a way that this version does not know")
}
