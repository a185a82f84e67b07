// Package encryption encrypts the values that a [pgstore.Container] stores, before they leave the process:
//
//	keys, err := encryption.FromFile("/run/secrets/pgstore-keys")
//	store, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Encryption: encryption.New(keys)})
//
// Each instance has a data key of its own, which is in the database, wrapped by a key that is not: from a file or the environment ([FromFile],
// [FromEnvironment], [Parse]), from any AEAD that Tink has, as those of cloud key services ([FromAEADs]), or from wherever your own [Keys] get it. A key service is asked when an instance is
// taken, and when a device is paired, and never for a value.
//
// Values are compressed (zstd, with a dictionary of what records have in common), and then encrypted with XChaCha20-Poly1305, whose nonces are long enough
// to be random for ever. Compression means that the length of a row tells how well its value compresses; no row holds a secret together with anything
// that somebody else may choose again and again.
//
// What encryption does not hide, and how far it notices that a row was exchanged, is told in the repository's README and in pgstore/encryption.go.
package encryption

import (
	"bytes"
	"context"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Encryption is a [pgstore.Encryption] whose data keys are Tink keysets of one key each. It is safe for concurrent use.
type Encryption struct{ keys Keys }

var _ pgstore.Encryption = (*Encryption)(nil)

// New encrypts with data keys that keys wrap.
func New(keys Keys) *Encryption { return &Encryption{keys: keys} }

// WrappingKey implements [pgstore.Encryption].
func (e *Encryption) WrappingKey() string { return e.keys.Current() }

// NewKey implements [pgstore.Encryption].
func (e *Encryption) NewKey(context.Context) (pgstore.DataKey, error) {
	handle, err := keyset.NewHandle(aead.XChaCha20Poly1305KeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("encryption: making a data key: %w", err)
	}
	return newDataKey(handle)
}

// Wrap implements [pgstore.Encryption].
func (e *Encryption) Wrap(ctx context.Context, instance string, key pgstore.DataKey) (pgstore.WrappedKey, error) {
	k, ok := key.(*dataKey)
	if !ok {
		return pgstore.WrappedKey{}, fmt.Errorf("encryption: a data key of another implementation: %T", key)
	}
	by := e.keys.Current()
	var out bytes.Buffer
	if err := k.handle.WriteWithContext(ctx, keyset.NewBinaryWriter(&out), &wrapping{keys: e.keys, id: by}, bound(instance)); err != nil {
		return pgstore.WrappedKey{}, fmt.Errorf("encryption: wrapping a data key with %s: %w", by, err)
	}
	return pgstore.WrappedKey{ID: k.id, WrappingKey: by, Wrapped: out.Bytes()}, nil
}

// Unwrap implements [pgstore.Encryption].
func (e *Encryption) Unwrap(ctx context.Context, instance string, key pgstore.WrappedKey) (pgstore.DataKey, error) {
	by := &wrapping{keys: e.keys, id: key.WrappingKey}
	handle, err := keyset.ReadWithContext(ctx, keyset.NewBinaryReader(bytes.NewReader(key.Wrapped)), by, bound(instance))
	switch {
	case by.err != nil:
		return nil, fmt.Errorf("encryption: %w", by.err)
	case err != nil: // what was decrypted, or was to be, is no keyset
		return nil, fmt.Errorf("%w: it is not a wrapped key", pgstore.ErrDataKey)
	}
	k, err := newDataKey(handle)
	if err == nil && k.id != key.ID {
		err = fmt.Errorf("%w: it is another data key", pgstore.ErrDataKey)
	}
	return k, err
}

// bound is what a wrapped key is bound to.
func bound(instance string) []byte { return []byte("pgstore data key 1\x00" + instance) }

// wrapping is one of the wrapping keys, as Tink wants it. It keeps its error, of which Tink would keep the text only.
type wrapping struct {
	keys Keys
	id   string
	err  error
}

var _ tink.AEADWithContext = (*wrapping)(nil)

// EncryptWithContext implements [tink.AEADWithContext].
func (w *wrapping) EncryptWithContext(ctx context.Context, plain, associated []byte) ([]byte, error) {
	return w.keys.Wrap(ctx, w.id, plain, associated)
}

// DecryptWithContext implements [tink.AEADWithContext].
func (w *wrapping) DecryptWithContext(ctx context.Context, wrapped, associated []byte) (plain []byte, err error) {
	plain, w.err = w.keys.Unwrap(ctx, w.id, wrapped, associated)
	return plain, w.err
}
