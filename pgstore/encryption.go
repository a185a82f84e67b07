package pgstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// Values are encrypted before they leave the process, if [Config].Encryption says with what: by the flush, outside of any lock that a Put waits for, and
// decrypted when they are read from the database. Memory holds them plain, so nothing that is answered from memory costs more.
//
//	wrapping key   in a file, the environment or a KMS; never in the database          wraps
//	data key       one for each instance, in the table data_keys, wrapped              encrypts
//	row            {"enc": text}: the id of its data key, and the value's JSON, encrypted
//
// What a row's text is bound to (associatedData): instance, key type, key id, and the row's seq. The flush knows which seq its rows will have, since its fence
// lets it happen at that one only, and a flush that is tried again, or after the database went back, encrypts anew for the seq that it then has. So a row is
// refused that was
//
//	swapped      with another key's, or another instance's (whose data key is another one, too)
//	truncated    or changed in any other way
//	put back     older, into its own place with the seq that the row has now
//
// An instance whose own seq was put back, and not its rows, is refused as a whole.
//
// What is not noticed by that: an older row that is put back together with the seq that it had. The row's seq says that it has not been written since, and nothing else
// in the database is bound to it. It is noticed by what stands outside of it:
//
//	memory       the owner reads a row when it takes the instance, and again only what it has evicted: of the rest its memory counts, and overwrites the row
//	audit trail  the trigger tells of a change that is not the library's; with [AuditAll] audit.Verify finds a row that is not what was written last
//	witness      a database that was put back whole, the instance's seq included, is noticed by [Config].Witness
//
// Nor is it noticed that a row was deleted, but by the audit trail. Key types and ids, sizes, times and seqs stay readable, and who has an instance.
//
// # No row without its key
//
// A row whose data key is lost is lost, so a flush writes under a key only if the database has that key at that moment: it is a part of its fence ({keyed}). One that
// has gone back to before the key was made gets it again before the flush is repeated (ensureDataKey). Older keys of an instance are deleted when no row is under them,
// by its owner (reencrypt.go).

// Encryption makes and opens the data keys of instances. Package encryption implements it; whoever writes one of their own has to be safe for concurrent use. An error that
// matches [ErrDataKey] is for good; after any other one the call is repeated until the caller's context ends, as when a key service is away.
type Encryption interface {
	// NewKey makes a data key.
	NewKey(ctx context.Context) (DataKey, error)
	// Wrap wraps a data key for an instance with the wrapping key of today.
	Wrap(ctx context.Context, instance string, key DataKey) (WrappedKey, error)
	// Unwrap opens a data key that Wrap has wrapped for that instance. It must refuse one of another.
	Unwrap(ctx context.Context, instance string, key WrappedKey) (DataKey, error)
	// WrappingKey is the id of the wrapping key of today.
	WrappingKey() string
}

// DataKey encrypts the values of one instance. It is safe for concurrent use.
type DataKey interface {
	// ID names the key: every text that Seal returns begins with it, and all ids are of one length.
	ID() string
	// Seal encrypts and authenticates, and authenticates associated data with it. The answer needs no escaping in JSON.
	Seal(plain, associated []byte) (string, error)
	// Open is the reverse of Seal.
	Open(sealed string, associated []byte) ([]byte, error)
}

// WrappedKey is a data key as it is stored.
type WrappedKey struct {
	ID          string // of the data key
	WrappingKey string // the id of the key that wraps it
	Wrapped     []byte
}

// EncryptionMode says what is written, and what is read, with [Config].Encryption.
type EncryptionMode int

const (
	// Encrypting writes rows encrypted and reads plain ones as well. Of an instance that has plain ones these are encrypted in the background, once it is taken. This is
	// the default.
	Encrypting EncryptionMode = iota
	// Encrypted is Encrypting, but a plain row is refused, so that nobody can put one in the place of an encrypted one: an instance that has one fails with
	// [ErrNotEncrypted]. For when the view instance_sizes shows nothing plain any more.
	Encrypted
	// Decrypting writes rows plain and reads encrypted ones as well, to switch encryption off: what is encrypted is decrypted in the background, once an instance is taken.
	Decrypting
)

// sealedText is the encrypted text of a row, as PostgreSQL writes JSONB; false for a plain row.
func sealedText(data []byte) (string, bool) {
	text, ok := bytes.CutPrefix(data, []byte(`{"enc": "`))
	if !ok {
		return "", false
	}
	text, ok = bytes.CutSuffix(text, []byte(`"}`))
	return string(text), ok
}

// associatedData is what a row's text is bound to, each part with its length before it.
func associatedData(instance string, k cache.Key, seq int64) []byte {
	kind := typeName(k.Type)
	out := make([]byte, 0, 24+len(instance)+len(kind)+len(k.ID))
	for _, part := range []string{"pgstore row 1", instance, kind, k.ID} {
		out = binary.AppendUvarint(out, uint64(len(part)))
		out = append(out, part...)
	}
	return binary.AppendVarint(out, seq)
}

// keyring is the data keys of an instance. It does not change.
type keyring struct {
	current  DataKey // what is written with, nil for nothing
	keys     map[string]DataKey
	complete bool // all rows are as they are written now
}

// find is the key whose id a text begins with.
func (r *keyring) find(sealed string) DataKey {
	if r == nil {
		return nil
	}
	for id, key := range r.keys {
		if strings.HasPrefix(sealed, id) {
			return key
		}
	}
	return nil
}

// seal is the data column of a value's JSON.
func (r *keyring) seal(instance string, k cache.Key, seq int64, plain string) (string, error) {
	if r == nil || r.current == nil {
		return plain, nil
	}
	sealed, err := r.current.Seal([]byte(plain), associatedData(instance, k, seq))
	if err != nil {
		return "", fmt.Errorf("pgstore: encrypting %s: %w", typeName(k.Type), err)
	}
	return `{"enc":"` + sealed + `"}`, nil
}

// errForeignKey is of a row under a data key that its instance does not have.
var errForeignKey = fmt.Errorf("%w: its data key is not the instance's", ErrCorrupt)

// unseal is a value's JSON, of the data column. A row that was changed or is another one's is [ErrCorrupt].
func (c *Container) unseal(r *keyring, instance string, k cache.Key, seq int64, data []byte) ([]byte, error) {
	sealed, ok := sealedText(data)
	switch {
	case !ok && c.cfg.Encryption != nil && c.cfg.EncryptionMode == Encrypted:
		return nil, fmt.Errorf("%w: %s of instance %s", ErrNotEncrypted, typeName(k.Type), instance)
	case !ok:
		return data, nil
	case c.cfg.Encryption == nil:
		return nil, fmt.Errorf("%w: %s of instance %s is encrypted, and Config.Encryption is not set", ErrDataKey, typeName(k.Type), instance)
	}
	key := r.find(sealed)
	if key == nil {
		return nil, errForeignKey
	}
	plain, err := key.Open(sealed, associatedData(instance, k, seq))
	if err != nil {
		return nil, fmt.Errorf("%w: it does not decrypt", ErrCorrupt)
	}
	return plain, nil
}
