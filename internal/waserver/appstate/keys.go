package appstate

// Sync keys. The phone makes one from time to time and encrypts with the newest; companions are handed them in a message
// of their own and ask for those that they lack.

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.mau.fi/whatsmeow/proto/waE2E"
	"google.golang.org/protobuf/proto"
)

// syncKey is a sync key and what is derived from it.
type syncKey struct {
	id, data  []byte
	timestamp int64

	index, value, valueMAC, snapshotMAC, patchMAC []byte
}

// AddKey makes a new key, which is used from now on, and returns its id.
func (s *State) AddKey() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	epoch := uint32(len(s.mu.keys) + 1)
	k := &syncKey{
		id:   binary.BigEndian.AppendUint32([]byte{0, 0}, epoch), // of device 0, the phone
		data: make([]byte, 32),
		// A key with the timestamp of another is not stored in its place.
		timestamp: time.Now().UnixMilli() + int64(epoch),
	}
	_, _ = rand.Read(k.data) // never fails
	const part = 32
	all, err := hkdf.Key(sha256.New, k.data, nil, "WhatsApp Mutation Keys", 5*part)
	if err != nil {
		panic(err) // only if it were asked for too much
	}
	k.index, k.value, k.valueMAC, k.snapshotMAC, k.patchMAC = all[:part], all[part:2*part], all[2*part:3*part], all[3*part:4*part], all[4*part:]
	s.mu.keys = append(s.mu.keys, k)
	return slices.Clone(k.id)
}

func (s *State) currentKeyLocked() *syncKey { return s.mu.keys[len(s.mu.keys)-1] }

// keyLocked is nil if there is no such key.
func (s *State) keyLocked(id []byte) *syncKey {
	i := slices.IndexFunc(s.mu.keys, func(k *syncKey) bool { return bytes.Equal(k.id, id) })
	if i < 0 {
		return nil
	}
	return s.mu.keys[i]
}

// KeyShare is the message with which the phone hands keys to a companion: those that were asked for, or all. A key that
// the phone does not have comes without data, as from real phones.
func (s *State) KeyShare(ids ...[]byte) *waE2E.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(ids) == 0 {
		for _, k := range s.mu.keys {
			ids = append(ids, k.id)
		}
	}
	share := &waE2E.AppStateSyncKeyShare{}
	for _, id := range ids {
		shared := &waE2E.AppStateSyncKey{KeyID: &waE2E.AppStateSyncKeyId{KeyID: id}}
		if k := s.keyLocked(id); k != nil {
			shared.KeyData = &waE2E.AppStateSyncKeyData{
				KeyData:   k.data,
				Timestamp: &k.timestamp,
				Fingerprint: &waE2E.AppStateSyncKeyFingerprint{
					RawID: proto.Uint32(1), CurrentIndex: proto.Uint32(0), DeviceIndexes: []uint32{0},
				},
			}
		}
		share.Keys = append(share.Keys, shared)
	}
	return &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type:                 waE2E.ProtocolMessage_APP_STATE_SYNC_KEY_SHARE.Enum(),
		AppStateSyncKeyShare: share,
	}}
}

// Answer is the phone's answer to a companion that asks for keys or for the recovery of a collection. It is nil for
// other messages. The id is that of the message that asks.
func (s *State) Answer(request *waE2E.ProtocolMessage, id string) (*waE2E.Message, error) {
	if keys := request.GetAppStateSyncKeyRequest(); keys != nil {
		var ids [][]byte
		for _, k := range keys.GetKeyIDs() {
			ids = append(ids, k.GetKeyID())
		}
		if len(ids) == 0 {
			return nil, fmt.Errorf("appstate: request %s asks for no key", id)
		}
		return s.KeyShare(ids...), nil
	}
	if recovery := request.GetPeerDataOperationRequestMessage().GetSyncdCollectionFatalRecoveryRequest(); recovery != nil {
		return s.Recovery(recovery.GetCollectionName(), id)
	}
	return nil, nil
}
