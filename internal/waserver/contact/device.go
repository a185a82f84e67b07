package contact

// A device is an identity, a registration id, a signed pre-key and as many one-time pre-keys as are asked for. All of
// libsignal's work is done under one lock per device, since libsignal has none.

import (
	"context"
	"sync"

	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/libsignal/keys/identity"
	"go.mau.fi/libsignal/keys/prekey"
	"go.mau.fi/libsignal/serialize"
	"go.mau.fi/libsignal/session"
	"go.mau.fi/libsignal/util/optional"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
)

// serializer is the form in which messages travel.
var serializer = serialize.NewProtoBufSerializer()

// Device is one simulated device, a phone or a companion of one. It is safe for concurrent use.
type Device struct {
	pn, lid types.JID
	mu      struct {
		sync.Mutex
		*memory
	}
}

// NewDevice makes a device that has just been installed. The JIDs name the device, not only the user.
func NewDevice(pn, lid types.JID) *Device {
	d := &Device{pn: pn, lid: lid}
	d.mu.memory = newMemory(1, 1)
	return d
}

// PN is the device's JID by phone number.
func (d *Device) PN() types.JID { return d.pn }

// LID is the device's JID by LID.
func (d *Device) LID() types.JID { return d.lid }

// RegistrationID names the installation.
func (d *Device) RegistrationID() uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.registrationID
}

// IdentityKey is the identity of the installation, with its private half.
func (d *Device) IdentityKey() *keys.KeyPair {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.identity
}

// Bundle is what one needs to begin a session with a device.
type Bundle struct {
	RegistrationID uint32
	Identity       [32]byte
	SignedPreKey   *keys.PreKey // public half and signature
	PreKey         *keys.PreKey // public half; nil if the device has none left
}

// Bundle hands out the device's bundle with a one-time pre-key that nobody else has had.
func (d *Device) Bundle() Bundle {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.mu.newPreKey()
	signed := d.mu.signedPreKey
	return Bundle{
		RegistrationID: d.mu.registrationID,
		Identity:       *d.mu.identity.Pub,
		SignedPreKey:   &keys.PreKey{KeyPair: keys.KeyPair{Pub: signed.Pub}, KeyID: signed.KeyID, Signature: signed.Signature},
		PreKey:         &keys.PreKey{KeyPair: keys.KeyPair{Pub: one.Pub}, KeyID: one.KeyID},
	}
}

// HasSession reports whether messages can be encrypted for another device.
func (d *Device) HasSession(with types.JID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.sessions[with.SignalAddress().String()] != nil
}

// Process begins a session from a bundle. A session that there was is archived, as libsignal does.
func (d *Device) Process(with types.JID, b Bundle) error {
	id, one := optional.NewEmptyUint32(), ecc.ECPublicKeyable(nil)
	if b.PreKey != nil {
		id, one = optional.NewOptionalUint32(b.PreKey.KeyID), ecc.NewDjbECPublicKey(*b.PreKey.Pub)
	}
	bundle := prekey.NewBundle(b.RegistrationID, uint32(with.Device), id, b.SignedPreKey.KeyID, one,
		ecc.NewDjbECPublicKey(*b.SignedPreKey.Pub), *b.SignedPreKey.Signature, identity.NewKey(ecc.NewDjbECPublicKey(b.Identity)))
	d.mu.Lock()
	defer d.mu.Unlock()
	return session.NewBuilderFromSignal(d.mu.memory, with.SignalAddress(), serializer).ProcessBundle(context.Background(), bundle)
}

// ResetSession forgets the session with another device and which identity it had, so that a new one is taken as found.
func (d *Device) ResetSession(with types.JID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mu.sessions, with.SignalAddress().String())
	delete(d.mu.identities, with.SignalAddress().String())
}

// ChangeIdentity installs the device anew: a new identity, registration id and keys, and no sessions nor sender keys.
// Ids of pre-keys go on, so that a message for the old installation finds no key rather than a wrong one.
func (d *Device) ChangeIdentity() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.memory = newMemory(d.mu.nextPreKey, d.mu.signedPreKey.KeyID+1)
}
