package signaltest

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"sync"
	"time"

	"go.mau.fi/libsignal/state/record"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
)

// Memory is the Signal part of a device's stores in maps: the floor that no store can be faster than, and a peer
// that owes nothing to the code under test.
type Memory struct {
	*store.NoopStore
	mu         sync.Mutex
	identities map[string][32]byte
	sessions   map[string][]byte
	preKeys    map[uint32]*keys.PreKey
	senderKeys map[[2]string][]byte
	buffered   map[[32]byte]*store.BufferedEvent
	phone      bool
}

// NewMemoryDevice is a paired device on maps.
func NewMemoryDevice(fresh *store.Device) *store.Device { return newMemory(fresh, false) }

// NewMemoryPhone is one that does what phones do and Go's libsignal does not: an attempt to decrypt with a state that is not the
// right one leaves that state as it was.
func NewMemoryPhone(fresh *store.Device) *store.Device { return newMemory(fresh, true) }

func newMemory(fresh *store.Device, phone bool) *store.Device {
	FillPairing(fresh)
	m := &Memory{
		NoopStore: &store.NoopStore{}, identities: make(map[string][32]byte), sessions: make(map[string][]byte),
		preKeys: make(map[uint32]*keys.PreKey), senderKeys: make(map[[2]string][]byte), buffered: make(map[[32]byte]*store.BufferedEvent),
		phone: phone,
	}
	fresh.SetAllStores(m)
	fresh.LIDs = noLIDs{m.NoopStore}
	return fresh
}

// noLIDs is a LID map that knows nothing.
type noLIDs struct{ *store.NoopStore }

// PutIdentity implements [store.IdentityStore].
func (m *Memory) PutIdentity(_ context.Context, address string, key [32]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.identities[address] = key
	return nil
}

// IsTrustedIdentity implements [store.IdentityStore].
func (m *Memory) IsTrustedIdentity(_ context.Context, address string, key [32]byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, ok := m.identities[address]
	return !ok || old == key, nil
}

// GetSession implements [store.SessionStore].
func (m *Memory) GetSession(_ context.Context, address string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.sessions[address]), nil
}

// HasSession implements [store.SessionStore].
func (m *Memory) HasSession(_ context.Context, address string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[address] != nil, nil
}

// GetManySessions implements [store.SessionStore].
func (m *Memory) GetManySessions(_ context.Context, addresses []string) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string][]byte, len(addresses))
	for _, a := range addresses {
		out[a] = bytes.Clone(m.sessions[a])
	}
	return out, nil
}

// PutSession implements [store.SessionStore].
func (m *Memory) PutSession(_ context.Context, address string, session []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phone {
		session = withoutNeedlessSteps(m.sessions[address], session)
	}
	m.sessions[address] = bytes.Clone(session)
	return nil
}

// withoutNeedlessSteps takes back what decrypting did to archived states, which nothing else changes.
func withoutNeedlessSteps(old, session []byte) []byte {
	var before, after record.SessionStructure
	if json.Unmarshal(old, &before) != nil || json.Unmarshal(session, &after) != nil || len(after.PreviousStates) == 0 {
		return session
	}
	for i, archived := range after.PreviousStates {
		for _, was := range append([]*record.StateStructure{before.SessionState}, before.PreviousStates...) {
			if bytes.Equal(was.SenderBaseKey, archived.SenderBaseKey) {
				after.PreviousStates[i] = was
				break
			}
		}
	}
	mended, _ := json.Marshal(after) // it was JSON
	return mended
}

// PutManySessions implements [store.SessionStore].
func (m *Memory) PutManySessions(_ context.Context, sessions map[string][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(m.sessions, sessions)
	return nil
}

// GenOnePreKey implements [store.PreKeyStore].
func (m *Memory) GenOnePreKey(context.Context) (*keys.PreKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	made := keys.NewPreKey(uint32(len(m.preKeys) + 1))
	m.preKeys[made.KeyID] = made
	return made, nil
}

// GetPreKey implements [store.PreKeyStore].
func (m *Memory) GetPreKey(_ context.Context, id uint32) (*keys.PreKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.preKeys[id], nil
}

// RemovePreKey implements [store.PreKeyStore]. The id stays taken.
func (m *Memory) RemovePreKey(_ context.Context, id uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.preKeys[id] = nil
	return nil
}

// PutSenderKey implements [store.SenderKeyStore].
func (m *Memory) PutSenderKey(_ context.Context, group, user string, key []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.senderKeys[[2]string{group, user}] = bytes.Clone(key)
	return nil
}

// GetSenderKey implements [store.SenderKeyStore].
func (m *Memory) GetSenderKey(_ context.Context, group, user string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.senderKeys[[2]string{group, user}]), nil
}

// GetBufferedEvent implements [store.EventBuffer].
func (m *Memory) GetBufferedEvent(_ context.Context, hash [32]byte) (*store.BufferedEvent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.buffered[hash], nil
}

// PutBufferedEvent implements [store.EventBuffer].
func (m *Memory) PutBufferedEvent(_ context.Context, hash [32]byte, plaintext []byte, at time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buffered[hash] = &store.BufferedEvent{Plaintext: plaintext, ServerTime: at, InsertTime: time.Now()}
	return nil
}

// ClearBufferedEventPlaintext implements [store.EventBuffer]; a map has no reason to keep the hash.
func (m *Memory) ClearBufferedEventPlaintext(_ context.Context, hash [32]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.buffered, hash)
	return nil
}

// DoDecryptionTxn implements [store.EventBuffer] without any isolation.
func (m *Memory) DoDecryptionTxn(ctx context.Context, fn func(context.Context) error) error {
	return fn(ctx)
}

// GetManyLIDsForPNs implements [store.LIDStore].
func (noLIDs) GetManyLIDsForPNs(context.Context, []types.JID) (map[types.JID]types.JID, error) {
	return nil, nil
}
