package contact

// The stores that libsignal works on, as maps. Sessions and sender keys are kept as libsignal's structures: a record
// that is loaded is built anew from its structure, so that what happens to it counts only once it is stored.

import (
	"context"
	"math/rand/v2"

	"go.mau.fi/libsignal/ecc"
	groupRecord "go.mau.fi/libsignal/groups/state/record"
	"go.mau.fi/libsignal/keys/identity"
	"go.mau.fi/libsignal/protocol"
	"go.mau.fi/libsignal/state/record"
	"go.mau.fi/libsignal/state/store"
	"go.mau.fi/whatsmeow/util/keys"
)

// memory is what one installation knows. All of it is guarded by its device's lock.
type memory struct {
	store.SignalProtocol // nil: for the methods that libsignal never calls

	registrationID uint32
	identity       *keys.KeyPair
	signedPreKey   *keys.PreKey
	preKeys        map[uint32]*keys.PreKey // those that were handed out and not yet used
	nextPreKey     uint32
	identities     map[string][32]byte
	sessions       map[string]*record.SessionStructure
	senderKeys     map[[2]string]*groupRecord.SenderKeyStructure // by group and sender
}

func newMemory(nextPreKey, signedPreKey uint32) *memory {
	pair := keys.NewKeyPair()
	return &memory{
		registrationID: 1 + rand.Uint32N(16380), // the range that phones use
		identity:       pair,
		signedPreKey:   pair.CreateSignedPreKey(signedPreKey),
		preKeys:        make(map[uint32]*keys.PreKey),
		nextPreKey:     nextPreKey,
		identities:     make(map[string][32]byte),
		sessions:       make(map[string]*record.SessionStructure),
		senderKeys:     make(map[[2]string]*groupRecord.SenderKeyStructure),
	}
}

func (m *memory) newPreKey() *keys.PreKey {
	made := keys.NewPreKey(m.nextPreKey)
	m.nextPreKey++
	m.preKeys[made.KeyID] = made
	return made
}

func pair(k keys.KeyPair) *ecc.ECKeyPair {
	return ecc.NewECKeyPair(ecc.NewDjbECPublicKey(*k.Pub), ecc.NewDjbECPrivateKey(*k.Priv))
}

// GetIdentityKeyPair implements [store.IdentityKey].
func (m *memory) GetIdentityKeyPair() *identity.KeyPair {
	p := pair(*m.identity)
	return identity.NewKeyPair(identity.NewKey(p.PublicKey()), p.PrivateKey())
}

// GetLocalRegistrationID implements [store.IdentityKey].
func (m *memory) GetLocalRegistrationID() uint32 { return m.registrationID }

// SaveIdentity implements [store.IdentityKey].
func (m *memory) SaveIdentity(_ context.Context, address *protocol.SignalAddress, key *identity.Key) error {
	m.identities[address.String()] = key.PublicKey().PublicKey()
	return nil
}

// IsTrustedIdentity implements [store.IdentityKey]: trust on first use.
func (m *memory) IsTrustedIdentity(_ context.Context, address *protocol.SignalAddress, key *identity.Key) (bool, error) {
	first, ok := m.identities[address.String()]
	return !ok || first == key.PublicKey().PublicKey(), nil
}

// LoadPreKey implements [store.PreKey].
func (m *memory) LoadPreKey(_ context.Context, id uint32) (*record.PreKey, error) {
	key := m.preKeys[id]
	if key == nil {
		return nil, nil
	}
	return record.NewPreKey(id, pair(key.KeyPair), nil), nil
}

// LoadSignedPreKey implements [store.SignedPreKey].
func (m *memory) LoadSignedPreKey(_ context.Context, id uint32) (*record.SignedPreKey, error) {
	if id != m.signedPreKey.KeyID {
		return nil, nil
	}
	return record.NewSignedPreKey(id, 0, pair(m.signedPreKey.KeyPair), *m.signedPreKey.Signature, nil), nil
}

// LoadSession implements [store.Session].
func (m *memory) LoadSession(_ context.Context, address *protocol.SignalAddress) (*record.Session, error) {
	known := m.sessions[address.String()]
	if known == nil {
		return record.NewSession(serializer.Session, serializer.State), nil
	}
	return record.NewSessionFromStructure(known, serializer.Session, serializer.State)
}

// StoreSession implements [store.Session].
func (m *memory) StoreSession(_ context.Context, address *protocol.SignalAddress, session *record.Session) error {
	m.sessions[address.String()] = session.Structure()
	return nil
}

// LoadSenderKey implements libsignal's store of sender keys.
func (m *memory) LoadSenderKey(_ context.Context, name *protocol.SenderKeyName) (*groupRecord.SenderKey, error) {
	known := m.senderKeys[[2]string{name.GroupID(), name.Sender().String()}]
	if known == nil {
		return groupRecord.NewSenderKey(serializer.SenderKeyRecord, serializer.SenderKeyState), nil
	}
	return groupRecord.NewSenderKeyFromStruct(known, serializer.SenderKeyRecord, serializer.SenderKeyState)
}

// StoreSenderKey implements libsignal's store of sender keys.
func (m *memory) StoreSenderKey(_ context.Context, name *protocol.SenderKeyName, key *groupRecord.SenderKey) error {
	m.senderKeys[[2]string{name.GroupID(), name.Sender().String()}] = key.Structure()
	return nil
}
