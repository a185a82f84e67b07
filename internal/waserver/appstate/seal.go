package appstate

// Encryption and MACs of mutations, snapshots and patches:
//
//	value      IV, AES-256-CBC of index, value and padding, and the value MAC
//	value MAC  HMAC-SHA512 over operation+1, key id, IV and ciphertext, length of the first two as 8 bytes; 32 bytes of it
//	index MAC  HMAC-SHA256 over the index
//	snapshot   HMAC-SHA256 over LTHash, version as 8 bytes, name
//	patch      HMAC-SHA256 over snapshot MAC, all value MACs, version as 8 bytes, name
//
// The operation in the first MAC counts from one, and a key id's length includes it.

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/proto/waSyncAction"
	"go.mau.fi/whatsmeow/util/cbcutil"
	"google.golang.org/protobuf/proto"
)

const (
	macSize = 32
	ivSize  = 16
)

func mac(algorithm func() hash.Hash, key []byte, parts ...[]byte) []byte {
	h := hmac.New(algorithm, key)
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)[:macSize]
}

func eightBytes(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func (k *syncKey) macOfValue(operation waServerSync.SyncdMutation_SyncdOperation, sealed []byte) []byte {
	return mac(sha512.New, k.valueMAC, []byte{byte(operation) + 1}, k.id, sealed, eightBytes(uint64(len(k.id)+1)))
}

func (k *syncKey) macOfIndex(index []byte) []byte { return mac(sha256.New, k.index, index) }

func (k *syncKey) macOfSnapshot(name client.WAPatchName, version uint64, sum [128]byte) []byte {
	return mac(sha256.New, k.snapshotMAC, sum[:], eightBytes(version), []byte(name))
}

func (k *syncKey) macOfPatch(name client.WAPatchName, version uint64, snapshotMAC []byte, mutations []*waServerSync.SyncdMutation) []byte {
	parts := [][]byte{snapshotMAC}
	for _, m := range mutations {
		parts = append(parts, valueMAC(m.GetRecord()))
	}
	return mac(sha256.New, k.patchMAC, append(parts, eightBytes(version), []byte(name))...)
}

// valueMAC is the MAC at the end of a record's value.
func valueMAC(record *waServerSync.SyncdRecord) []byte {
	blob := record.GetValue().GetBlob()
	return blob[len(blob)-macSize:]
}

// seal encrypts a mutation.
func (k *syncKey) seal(operation waServerSync.SyncdMutation_SyncdOperation, data *waSyncAction.SyncActionData) (*waServerSync.SyncdMutation, error) {
	plaintext, err := proto.Marshal(data)
	if err != nil {
		return nil, err
	}
	sealed, err := cbcutil.Encrypt(k.value, nil, plaintext)
	if err != nil {
		return nil, err
	}
	return &waServerSync.SyncdMutation{
		Operation: operation.Enum(),
		Record: &waServerSync.SyncdRecord{
			Index: &waServerSync.SyncdIndex{Blob: k.macOfIndex(data.GetIndex())},
			Value: &waServerSync.SyncdValue{Blob: append(sealed, k.macOfValue(operation, sealed)...)},
			KeyID: &waServerSync.KeyId{ID: k.id},
		},
	}, nil
}

// open verifies and decrypts a mutation.
func (k *syncKey) open(m *waServerSync.SyncdMutation) (*waSyncAction.SyncActionData, error) {
	blob := m.GetRecord().GetValue().GetBlob()
	if len(blob) < ivSize+ivSize+macSize {
		return nil, errors.New("value is too short")
	}
	sealed, theirs := bytes.Clone(blob[:len(blob)-macSize]), blob[len(blob)-macSize:]
	if !hmac.Equal(theirs, k.macOfValue(m.GetOperation(), sealed)) {
		return nil, errors.New("value MAC does not match")
	}
	plaintext, err := cbcutil.Decrypt(k.value, sealed[:ivSize], sealed[ivSize:])
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	data := &waSyncAction.SyncActionData{}
	if err = proto.Unmarshal(plaintext, data); err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	if !hmac.Equal(m.GetRecord().GetIndex().GetBlob(), k.macOfIndex(data.GetIndex())) {
		return nil, errors.New("index MAC does not match")
	}
	return data, nil
}
