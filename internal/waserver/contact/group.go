package contact

// Messages to groups. What the recipient derives for a message is taken from the chain of the sender's key before the
// message is read: forward along the chain to the message's iteration, or out of the keys that were skipped.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"go.mau.fi/libsignal/groups"
	"go.mau.fi/libsignal/groups/ratchet"
	groupRecord "go.mau.fi/libsignal/groups/state/record"
	"go.mau.fi/libsignal/protocol"
	"go.mau.fi/libsignal/signalerror"
	"go.mau.fi/whatsmeow/types"
)

// EncryptGroup encrypts a protobuf message with the device's own sender key, which is made if there is none.
func (d *Device) EncryptGroup(group types.JID, plaintext []byte) (body []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	builder, name := d.senderKeyLocked(group, d.pn)
	if _, err = builder.Create(context.Background(), name); err != nil {
		return nil, err
	}
	sealed, err := groups.NewGroupCipher(builder, name, d.mu.memory).Encrypt(context.Background(), pad(plaintext))
	if err != nil {
		return nil, err
	}
	return sealed.SignedSerialize(), nil
}

// DistributionMessage is what others need to read the device's next messages to a group.
func (d *Device) DistributionMessage(group types.JID) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	builder, name := d.senderKeyLocked(group, d.pn)
	distribution, err := builder.Create(context.Background(), name)
	if err != nil {
		return nil, err
	}
	return distribution.Serialize(), nil
}

// ProcessDistribution takes in somebody else's distribution message. One for a key that is known changes nothing, as on
// phones: it would make messages readable again that were read before.
func (d *Device) ProcessDistribution(group, from types.JID, skdm []byte) (err error) {
	defer malformed(&err)
	distribution, err := protocol.NewSenderKeyDistributionMessageFromBytes(skdm, serializer.SenderKeyDistributionMessage)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	builder, name := d.senderKeyLocked(group, from)
	known, err := d.mu.LoadSenderKey(context.Background(), name)
	if err != nil {
		return err
	}
	state, err := known.GetSenderKeyStateByID(distribution.ID())
	if err == nil && state.SigningKey().PublicKey().PublicKey() == distribution.SignatureKey().PublicKey() {
		return nil
	}
	return builder.Process(context.Background(), name, distribution)
}

// DecryptGroup decrypts a message to a group and takes the padding off. When a message cannot be read, used still names
// the chain and the counter that it claims, if the sender's key is known.
func (d *Device) DecryptGroup(group, from types.JID, body []byte) (plaintext []byte, used Used, err error) {
	defer malformed(&err)
	sealed, err := protocol.NewSenderKeyMessageFromBytes(body, serializer.SenderKeyMessage)
	if err != nil {
		return nil, used, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	builder, name := d.senderKeyLocked(group, from)
	known, err := d.mu.LoadSenderKey(context.Background(), name)
	if err != nil {
		return nil, used, err
	}
	state, err := known.GetSenderKeyStateByID(sealed.KeyID())
	if errors.Is(err, signalerror.ErrNoSenderKeyStateForID) {
		return nil, used, fmt.Errorf("%w for %s in %s: %w", ErrNoSenderKey, name.Sender(), group, err)
	} else if err != nil {
		return nil, used, err
	}
	signing := state.SigningKey().PublicKey().PublicKey()
	used.Chain = append(binary.BigEndian.AppendUint32(nil, state.KeyID()), signing[:]...)
	used.Counter = sealed.Iteration()
	key, err := messageKey(state, sealed.Iteration())
	if err != nil {
		return nil, used, err
	}
	if plaintext, err = groups.NewGroupCipher(builder, name, d.mu.memory).Decrypt(context.Background(), sealed); err != nil {
		return nil, used, err
	}
	if key != nil {
		used.CipherKey, used.IV = key.CipherKey(), key.Iv()
	}
	plaintext, err = unpad(plaintext)
	return plaintext, used, err
}

// messageKey derives the key of an iteration, or nil if it was used or is too far away, which is for libsignal to say.
// The state is a copy; it loses a skipped key here.
func messageKey(state *groupRecord.SenderKeyState, iteration uint32) (*ratchet.SenderMessageKey, error) {
	const furthest = 2000 // libsignal's limit
	chain := state.SenderChainKey()
	if iteration < chain.Iteration() {
		return state.RemoveSenderMessageKey(iteration), nil
	}
	if iteration-chain.Iteration() > furthest {
		return nil, nil
	}
	for chain.Iteration() < iteration {
		chain = chain.Next()
	}
	return chain.SenderMessageKey()
}

// senderKeyLocked names a sender's key for a group. The device's lock must be held.
func (d *Device) senderKeyLocked(group, sender types.JID) (*groups.SessionBuilder, *protocol.SenderKeyName) {
	return groups.NewGroupSessionBuilder(d.mu.memory, serializer), protocol.NewSenderKeyName(group.String(), sender.SignalAddress())
}
