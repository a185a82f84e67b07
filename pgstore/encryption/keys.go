package encryption

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Keys are the keys that wrap data keys. Implement it for a key service that Tink has no AEAD for. It must be safe for concurrent use. An
// error of Unwrap that matches [pgstore.ErrDataKey] is for good: there is no such key, or it is not the one. After any other error the call is repeated.
type Keys interface {
	// Current is the id of the key that wraps from now on.
	Current() string
	// Wrap encrypts a data key with the key of that id, and authenticates associated data with it.
	Wrap(ctx context.Context, id string, key, associated []byte) ([]byte, error)
	// Unwrap is the reverse of Wrap.
	Unwrap(ctx context.Context, id string, wrapped, associated []byte) ([]byte, error)
}

// keyLength is that of a wrapping key, in bytes.
const keyLength = 32

// Parse reads wrapping keys: lines, or words between commas, of an id, a colon and 32 bytes in base64, as NewKey makes them. The first one wraps; the others
// only open what they have wrapped. What is behind a # is a comment.
//
//	2027-01:6Q1S42fY58gSVxvVKRjb6+YB7fqCKFSbnkilJ030dh8=
//	2026-07:KHXSj4EdhzQ+VGvZeIoMhIR/BCoRUhy/XKAtA0KIQhQ=
//
// An error names the line, and no key.
func Parse(text string) (Keys, error) {
	out := &aeads{byID: make(map[string]tink.AEAD), local: true}
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for word := range strings.SplitSeq(line, ",") {
			word = strings.TrimSpace(word)
			if word == "" {
				continue
			}
			if err := out.parse(word); err != nil {
				return nil, fmt.Errorf("encryption: wrapping keys, line %d: %w", n+1, err)
			}
		}
	}
	if out.current == "" {
		return nil, errors.New("encryption: no wrapping key")
	}
	return out, nil
}

// parse reads one key. What stands where an id is to be may be a key all the same, so no error quotes any of it, and none passes for an id, which is stored.
func (a *aeads) parse(word string) error {
	id, encoded, ok := strings.Cut(word, ":")
	if !ok || id == "" {
		return errors.New("a key is an id, a colon and base64")
	}
	if decodeKey(id) != nil {
		return errors.New("what stands before the colon is a key, and must be its id")
	}
	key := decodeKey(encoded)
	if key == nil {
		return fmt.Errorf("the key must be %d bytes in base64", keyLength)
	}
	if a.byID[id] != nil {
		return errors.New("its id was there before")
	}
	var err error
	if a.byID[id], err = subtle.NewXChaCha20Poly1305(key); err != nil {
		return errors.New("it cannot be used") // the error may quote it
	}
	if a.current == "" {
		a.current = id
	}
	return nil
}

// decodeKey returns nil for what is no key. The decoder's error may quote it.
func decodeKey(text string) []byte {
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) != keyLength {
		return nil
	}
	return key
}

// FromFile is [Parse] of a file's content.
func FromFile(path string) (Keys, error) {
	text, err := os.ReadFile(path) //nolint:gosec // whoever configures the program names it
	if err != nil {
		return nil, fmt.Errorf("encryption: wrapping keys: %w", err)
	}
	return Parse(string(text))
}

// FromEnvironment is [Parse] of an environment variable.
func FromEnvironment(name string) (Keys, error) {
	text, ok := os.LookupEnv(name)
	if !ok {
		return nil, fmt.Errorf("encryption: wrapping keys: %s is not set", name)
	}
	return Parse(text)
}

// NewKey makes a wrapping key as [Parse] reads it. Its id must hold no comma, colon, # or blank.
func NewKey(id string) (string, error) {
	if id == "" || strings.ContainsAny(id, ",:# \t\r\n") || decodeKey(id) != nil {
		return "", errors.New("encryption: the id of a key must not be empty, hold a comma, colon, # or blank, or be a key itself")
	}
	key := make([]byte, keyLength)
	_, _ = rand.Read(key) // it never fails
	return id + ":" + base64.StdEncoding.EncodeToString(key), nil
}

// FromAEADs has Tink's AEADs for wrapping keys, by id; current is the one that wraps. Those of key services (tink-go-gcpkms, -awskms, -hcvault) ask the service at each
// call. Their errors are not told apart, so a call is repeated until its context ends; only an id that is not among them is [pgstore.ErrDataKey] at once.
func FromAEADs(current string, byID map[string]tink.AEAD) (Keys, error) {
	if byID[current] == nil {
		return nil, fmt.Errorf("encryption: there is no wrapping key %s", current)
	}
	return &aeads{current: current, byID: maps.Clone(byID)}, nil
}

// aeads are wrapping keys.
type aeads struct {
	current string
	byID    map[string]tink.AEAD
	local   bool // they fail only if it is the wrong one
}

// Current implements [Keys].
func (a *aeads) Current() string { return a.current }

// Wrap implements [Keys].
func (a *aeads) Wrap(_ context.Context, id string, key, associated []byte) ([]byte, error) {
	return a.byID[id].Encrypt(key, associated) // it is the current one
}

// Unwrap implements [Keys].
func (a *aeads) Unwrap(_ context.Context, id string, wrapped, associated []byte) ([]byte, error) {
	by := a.byID[id]
	if by == nil {
		return nil, fmt.Errorf("%w: there is no wrapping key %s", pgstore.ErrDataKey, id)
	}
	key, err := by.Decrypt(wrapped, associated)
	if err != nil && a.local {
		return nil, fmt.Errorf("%w: wrapping key %s is not the one that wrapped it, or it was changed", pgstore.ErrDataKey, id)
	} else if err != nil {
		return nil, fmt.Errorf("wrapping key %s: %w", id, err)
	}
	return key, nil
}
