package contact

// Messages from one device to another. A message is tried on the session's current state and then on the archived
// ones, each time on a copy, and only the state that could read it is kept and becomes the current one. libsignal's
// own loop does the same on the states themselves, and its failed attempts leave steps in them that make later
// messages unreadable when both sides began a session at once.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"go.mau.fi/libsignal/keys/message"
	"go.mau.fi/libsignal/protocol"
	"go.mau.fi/libsignal/session"
	"go.mau.fi/libsignal/signalerror"
	"go.mau.fi/libsignal/state/record"
	"go.mau.fi/whatsmeow/types"
)

// The types of messages between two devices.
const (
	typeMessage       = "msg"
	typePreKeyMessage = "pkmsg"
)

// Used is what the recipient derived for a ciphertext. A pair of CipherKey and IV must never encrypt two messages.
type Used struct {
	Chain     []byte // the sender's ratchet public key; of a sender key, its id (big endian) and its signing public key
	Counter   uint32
	CipherKey []byte
	IV        []byte
	MacKey    []byte // nil for sender keys, whose messages are signed
}

// Encrypt encrypts a protobuf message for another device, with the padding that clients expect.
func (d *Device) Encrypt(to types.JID, plaintext []byte) (typ string, body []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	address := to.SignalAddress()
	if d.mu.sessions[address.String()] == nil {
		return "", nil, fmt.Errorf("%w %s", ErrNoSession, address)
	}
	cipher := session.NewCipher(session.NewBuilderFromSignal(d.mu.memory, address, serializer), address)
	sealed, err := cipher.Encrypt(context.Background(), pad(plaintext))
	if err != nil {
		return "", nil, err
	}
	typ = typeMessage
	if sealed.Type() == protocol.PREKEY_TYPE {
		typ = typePreKeyMessage
	}
	return typ, sealed.Serialize(), nil
}

// Decrypt decrypts a message of another device and takes the padding off. When a message cannot be read, used still
// names the chain and the counter that it claims, if it could be parsed so far.
func (d *Device) Decrypt(from types.JID, typ string, body []byte) (plaintext []byte, used Used, err error) {
	defer malformed(&err)
	d.mu.Lock()
	defer d.mu.Unlock()
	address := from.SignalAddress()
	switch typ {
	case typeMessage:
		var sealed *protocol.SignalMessage
		if sealed, err = protocol.NewSignalMessageFromBytes(body, serializer.SignalMessage); err != nil {
			return nil, used, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		claim(&used, sealed)
		known := d.mu.sessions[address.String()]
		if known == nil {
			return nil, used, fmt.Errorf("%w %s", ErrNoSession, address)
		}
		plaintext, err = d.read(address, known, sealed, &used)
	case typePreKeyMessage:
		var sealed *protocol.PreKeySignalMessage
		sealed, err = protocol.NewPreKeySignalMessageFromBytes(body, serializer.PreKeySignalMessage, serializer.SignalMessage)
		if err != nil {
			return nil, used, fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		claim(&used, sealed.WhisperMessage())
		plaintext, err = d.readFirst(address, sealed, &used)
	default:
		return nil, used, fmt.Errorf("%w: type %q", ErrMalformed, typ)
	}
	if err != nil {
		return nil, used, err
	}
	plaintext, err = unpad(plaintext)
	return plaintext, used, err
}

// readFirst reads a message that brings its session with it, and forgets the one-time pre-key that made the session.
func (d *Device) readFirst(address *protocol.SignalAddress, sealed *protocol.PreKeySignalMessage, used *Used) ([]byte, error) {
	ctx := context.Background()
	known, err := d.mu.LoadSession(ctx, address)
	if err != nil {
		return nil, err
	}
	preKey, err := session.NewBuilderFromSignal(d.mu.memory, address, serializer).Process(ctx, known, sealed)
	if err != nil {
		return nil, err
	}
	plaintext, err := d.read(address, known.Structure(), sealed.WhisperMessage(), used)
	if err == nil && !preKey.IsEmpty {
		delete(d.mu.preKeys, preKey.Value)
	}
	return plaintext, err
}

// read reads a message with whichever state of a session can, and stores the session with that state in front.
func (d *Device) read(address *protocol.SignalAddress, known *record.SessionStructure, sealed *protocol.SignalMessage, used *Used) ([]byte, error) {
	cipher := session.NewCipher(session.NewBuilderFromSignal(d.mu.memory, address, serializer), address)
	states := append([]*record.StateStructure{known.SessionState}, known.PreviousStates...)
	failures := []error{signalerror.ErrNoValidSessions}
	for i, structure := range states {
		state, err := record.NewStateFromStructure(structure, serializer.State)
		if err != nil {
			return nil, err
		}
		plaintext, key, err := cipher.DecryptWithState(context.Background(), state, sealed)
		if errors.Is(err, ErrDuplicate) {
			return nil, err
		}
		if err != nil {
			failures = append(failures, err)
			continue
		}
		use(used, key)
		return plaintext, d.keep(address, state, slices.Delete(states, i, i+1))
	}
	return nil, errors.Join(failures...)
}

// keep stores a session whose current state has just read a message, unless that state is of another identity.
func (d *Device) keep(address *protocol.SignalAddress, current *record.State, archived []*record.StateStructure) error {
	trusted, err := d.mu.IsTrustedIdentity(context.Background(), address, current.RemoteIdentityKey())
	if err != nil {
		return err
	}
	if !trusted {
		return ErrUntrusted
	}
	session := record.NewSessionFromState(current, serializer.Session).Structure()
	session.PreviousStates = archived
	d.mu.sessions[address.String()] = session
	return nil
}

func claim(used *Used, sealed *protocol.SignalMessage) {
	chain := sealed.SenderRatchetKey().PublicKey()
	used.Chain, used.Counter = chain[:], sealed.Counter()
}

func use(used *Used, key *message.Keys) {
	used.CipherKey, used.IV, used.MacKey = key.CipherKey(), key.Iv(), key.MacKey()
}

// malformed turns libsignal's panics over bytes that it cannot parse into an error.
func malformed(err *error) {
	if cause := recover(); cause != nil {
		*err = fmt.Errorf("%w: %v", ErrMalformed, cause)
	}
}

// pad appends 1 to 15 bytes that say how many they are.
func pad(plaintext []byte) []byte {
	n := 1 + rand.IntN(15)
	return append(slices.Clone(plaintext), slices.Repeat([]byte{byte(n)}, n)...)
}

func unpad(padded []byte) ([]byte, error) {
	if len(padded) == 0 {
		return nil, fmt.Errorf("%w: no padding", ErrMalformed)
	}
	n := int(padded[len(padded)-1])
	if n == 0 || n > len(padded) {
		return nil, fmt.Errorf("%w: padding of %d bytes", ErrMalformed, n)
	}
	return padded[:len(padded)-n], nil
}
