package encryption_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

var ctx = context.Background()

func newKey(t testing.TB, id string) string {
	t.Helper()
	key, err := encryption.NewKey(id)
	require.NoError(t, err)
	return key
}

func parse(t testing.TB, text string) encryption.Keys {
	t.Helper()
	keys, err := encryption.Parse(text)
	require.NoError(t, err)
	return keys
}

func dataKey(t testing.TB) pgstore.DataKey {
	t.Helper()
	key, err := encryption.New(parse(t, newKey(t, "a"))).NewKey(ctx)
	require.NoError(t, err)
	return key
}

func TestWrappingKeysAreRead(t *testing.T) {
	t.Parallel()
	a, b := newKey(t, "a"), newKey(t, "b")
	for name, text := range map[string]string{
		"lines": a + "\n" + b, "words": a + "," + b, "with comments and blanks": "# which\n\n  " + a + " # the newest\r\n\t" + b + "\n",
	} {
		keys := parse(t, text)
		require.Equal(t, "a", keys.Current(), name)
		for _, id := range []string{"a", "b"} {
			wrapped, err := keys.Wrap(ctx, id, []byte("key"), []byte("bound"))
			require.NoError(t, err)
			plain, err := keys.Unwrap(ctx, id, wrapped, []byte("bound"))
			require.NoError(t, err)
			require.Equal(t, "key", string(plain))
			_, err = keys.Unwrap(ctx, id, wrapped, []byte("elsewhere"))
			require.ErrorIs(t, err, pgstore.ErrDataKey)
		}
	}
	path := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(path, []byte(a+"\n"), 0o600))
	keys, err := encryption.FromFile(path)
	require.NoError(t, err)
	require.Equal(t, "a", keys.Current())
	_, err = encryption.FromFile(path + "x")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestWrappingKeysOfTheEnvironment(t *testing.T) {
	t.Setenv("PGSTORE_TEST_KEYS", newKey(t, "a"))
	keys, err := encryption.FromEnvironment("PGSTORE_TEST_KEYS")
	require.NoError(t, err)
	require.Equal(t, "a", keys.Current())
	_, err = encryption.FromEnvironment("PGSTORE_TEST_NO_KEYS")
	require.ErrorContains(t, err, "PGSTORE_TEST_NO_KEYS")
}

// What is wrong with wrapping keys is told, and no key with it.
func TestP12WrongWrappingKeysAreToldWithoutThem(t *testing.T) {
	t.Parallel()
	a := newKey(t, "a")
	_, secret, _ := strings.Cut(a, ":")
	for text, says := range map[string]string{
		"": "no wrapping key", "# nothing": "no wrapping key", secret: "line 1", ":" + secret: "line 1", a + "\na:" + secret: "line 2", "a:" + secret[:40]: "32 bytes", "a:" + secret + "!": "32 bytes",
		secret + ":a": "line 1", a + "\n" + secret[:40] + ":b": "line 2", secret + ":" + secret: "before the colon", secret[:30] + ":" + secret + "," + secret[:30] + ":" + secret: "before",
	} {
		_, err := encryption.Parse(text)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), secret[:20])
	}
	for _, id := range []string{"", "a:b", "a,b", "a b", "a#", secret, a} {
		_, err := encryption.NewKey(id)
		require.ErrorContains(t, err, "the id of a key")
		require.NotContains(t, err.Error(), secret[:20])
	}
}

func TestADataKeyIsItsInstances(t *testing.T) {
	t.Parallel()
	both := parse(t, newKey(t, "a")+"\n"+newKey(t, "b"))
	e := encryption.New(both)
	require.Equal(t, "a", e.WrappingKey())
	key, err := e.NewKey(ctx)
	require.NoError(t, err)
	wrapped, err := e.Wrap(ctx, "shop-42", key)
	require.NoError(t, err)
	require.Equal(t, key.ID(), wrapped.ID)
	require.Equal(t, "a", wrapped.WrappingKey)
	again, err := e.Unwrap(ctx, "shop-42", wrapped)
	require.NoError(t, err)
	sealed, err := key.Seal([]byte("value"), []byte("bound"))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(sealed, again.ID()))
	plain, err := again.Open(sealed, []byte("bound"))
	require.NoError(t, err)
	require.Equal(t, "value", string(plain))

	changed := bytes.Clone(wrapped.Wrapped)
	changed[len(changed)/2] ^= 1
	for name, w := range map[string]struct {
		instance string
		key      pgstore.WrappedKey
	}{
		"another instance":     {"shop-43", wrapped},
		"another wrapping key": {"shop-42", pgstore.WrappedKey{ID: wrapped.ID, WrappingKey: "b", Wrapped: wrapped.Wrapped}},
		"no such wrapping key": {"shop-42", pgstore.WrappedKey{ID: wrapped.ID, WrappingKey: "c", Wrapped: wrapped.Wrapped}},
		"another id":           {"shop-42", pgstore.WrappedKey{ID: "AQAAAAAA", WrappingKey: "a", Wrapped: wrapped.Wrapped}},
		"changed":              {"shop-42", pgstore.WrappedKey{ID: wrapped.ID, WrappingKey: "a", Wrapped: changed}},
		"truncated":            {"shop-42", pgstore.WrappedKey{ID: wrapped.ID, WrappingKey: "a", Wrapped: changed[:20]}},
		"nothing":              {"shop-42", pgstore.WrappedKey{ID: wrapped.ID, WrappingKey: "a"}},
	} {
		_, err := e.Unwrap(ctx, w.instance, w.key)
		require.ErrorIs(t, err, pgstore.ErrDataKey, name)
	}
}

// kms is an AEAD of a key service that may be away.
type kms struct {
	tink.AEAD
	away bool
}

func (k *kms) Decrypt(ciphertext, associated []byte) ([]byte, error) {
	if k.away {
		return nil, errors.New("no route to host")
	}
	return k.AEAD.Decrypt(ciphertext, associated)
}

func TestAKeyServiceWraps(t *testing.T) {
	t.Parallel()
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	require.NoError(t, err)
	primitive, err := aead.New(handle)
	require.NoError(t, err)
	service := &kms{AEAD: primitive}
	keys, err := encryption.FromAEADs("kms/1", map[string]tink.AEAD{"kms/1": service})
	require.NoError(t, err)
	e := encryption.New(keys)
	key, err := e.NewKey(ctx)
	require.NoError(t, err)
	wrapped, err := e.Wrap(ctx, "shop-42", key)
	require.NoError(t, err)
	_, err = e.Unwrap(ctx, "shop-42", wrapped)
	require.NoError(t, err)
	service.away = true
	_, err = e.Unwrap(ctx, "shop-42", wrapped)
	require.ErrorContains(t, err, "no route to host")
	require.NotErrorIs(t, err, pgstore.ErrDataKey, "it may be back in a moment")
	_, err = encryption.FromAEADs("kms/2", map[string]tink.AEAD{"kms/1": service})
	require.ErrorContains(t, err, "kms/2")
}

// What a key has sealed holds nothing that can be read, and differs each time.
func TestP12SealedTextsHoldNothing(t *testing.T) {
	t.Parallel()
	key := dataKey(t)
	secret := []byte("0123456789abcdef0123456789abcdef")
	var secrets secrettest.Secrets
	secrets.Add("session", secret)
	one, err := key.Seal(secret, nil)
	require.NoError(t, err)
	other, err := key.Seal(secret, nil)
	require.NoError(t, err)
	require.NotEqual(t, one, other)
	secrets.RequireNoneIn(t, "what was sealed", one+other)
	require.NotContains(t, one, `"`)
	require.NotContains(t, one, `\`)
}

// FuzzP10WhatIsSealedComesOutAsItWentIn also opens what nobody has sealed: an error, and no panic.
func FuzzP10WhatIsSealedComesOutAsItWentIn(f *testing.F) {
	key := dataKey(f)
	session := `{"record":"{\"SessionState\":{\"LocalIdentityPublic\":\"B` + strings.Repeat("x", 3000) + `\"}}","ceiling":64}`
	for _, s := range []string{"", "{}", `{"value":"KHXSj4EdhzQ+VGvZeIoMhIR/BCoRUhy/XKAtA0KIQhQ="}`, session, strings.Repeat("\x00", 100_000), "AQ", key.ID(), key.ID() + "AAAA"} {
		f.Add([]byte(s), []byte("bound"), uint16(len(s)))
	}
	f.Fuzz(func(t *testing.T, plain, associated []byte, at uint16) {
		sealed, err := key.Seal(plain, associated)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(sealed, key.ID()))
		opened, err := key.Open(sealed, associated)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, opened))
		_, err = key.Open(sealed, append(associated, 0))
		require.Error(t, err)
		_, err = key.Open(sealed[:int(at)%len(sealed)], associated)
		require.Error(t, err)
		changed := []byte(sealed)
		if changed[int(at)%len(changed)] ^= 1; string(changed) != sealed && int(at)%len(changed) < len(changed)-1 { // of the last character some bits count for nothing
			_, err = key.Open(string(changed), associated)
			require.Error(t, err)
		}
		_, err = key.Open(string(plain), associated)
		require.Error(t, err)
	})
}

// Rows of every later version are read: what the first one has sealed opens.
func TestWhatTheFirstVersionSealedOpens(t *testing.T) {
	t.Parallel()
	golden, err := os.ReadFile("../../testdata/sealed.golden.txt")
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(golden)), "\n")
	e := encryption.New(parse(t, lines[0]))
	wrapped, err := hex.DecodeString(lines[2])
	require.NoError(t, err)
	key, err := e.Unwrap(ctx, "shop-42", pgstore.WrappedKey{ID: lines[1], WrappingKey: "golden", Wrapped: wrapped})
	require.NoError(t, err)
	for _, pair := range [][]string{lines[3:5], lines[5:7]} {
		plain, err := key.Open(pair[1], []byte("bound"))
		require.NoError(t, err)
		require.Equal(t, pair[0], string(plain))
	}
}
