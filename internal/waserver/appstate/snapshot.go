package appstate

// Snapshots, with which a companion begins, and what can be done when a collection no longer verifies: the phone sends
// the whole collection unencrypted, in a message.

import (
	"bytes"
	"compress/gzip"
	"fmt"

	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/proto/waSyncdSnapshotRecovery"
	"google.golang.org/protobuf/proto"
)

// TakeSnapshot makes full syncs begin at the present version of some collections, or of all: a client that asks for a
// snapshot gets it and the patches since. Without a snapshot it gets all patches. An empty collection has none.
func (s *State) TakeSnapshot(names ...client.WAPatchName) error {
	if len(names) == 0 {
		names = client.AllPatchNames[:]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if c := s.mu.collections[name]; c.version > 0 {
			if err := s.snapshotLocked(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *State) snapshotLocked(c *collection) error {
	k := s.currentKeyLocked()
	made := &waServerSync.SyncdSnapshot{
		Version: &waServerSync.SyncdVersion{Version: &c.version},
		KeyID:   &waServerSync.KeyId{ID: k.id},
		Mac:     k.macOfSnapshot(c.name, c.version, c.sum),
	}
	if c.version == c.corrupt {
		made.Mac[0] ^= 1
	}
	for _, setting := range c.inOrder() {
		made.Records = append(made.Records, setting.record)
	}
	blob, err := proto.Marshal(made)
	if err != nil {
		return err
	}
	reference, err := s.external(blob)
	if err != nil {
		return err
	}
	if blob, err = proto.Marshal(reference); err != nil {
		return err
	}
	c.snapshot = &snapshot{version: c.version, reference: blob}
	return nil
}

// Corrupt makes the present version of a collection one that does not verify, in its patch and in its snapshot, so that a
// client which is not there yet cannot get past it. The phone has it right: recovery works, and so do later snapshots and
// patches. It is an error if the collection is empty.
func (s *State) Corrupt(name client.WAPatchName) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.mu.collections[name]
	if c == nil || c.version == 0 {
		return fmt.Errorf("appstate: nothing to corrupt in %q", name)
	}
	if c.corrupt == c.version {
		return nil
	}
	last := &waServerSync.SyncdPatch{}
	if err := proto.Unmarshal(c.patches[c.version-1], last); err != nil {
		return err
	}
	last.SnapshotMAC[0] ^= 1
	encoded, err := proto.Marshal(last)
	if err != nil {
		return err
	}
	c.patches[c.version-1], c.corrupt = encoded, c.version
	if c.snapshot != nil && c.snapshot.version == c.version {
		return s.snapshotLocked(c)
	}
	return nil
}

// Recovery is the message with which the phone answers a companion that asks for the recovery of a collection. The id is
// that of the message that asks.
func (s *State) Recovery(collectionName, id string) (*waE2E.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.mu.collections[client.WAPatchName(collectionName)]
	if c == nil {
		return nil, fmt.Errorf("appstate: request %s for recovery of unknown collection %q", id, collectionName)
	}
	plain := &waSyncdSnapshotRecovery.SyncdSnapshotRecovery{
		Version:          &waSyncdSnapshotRecovery.SyncdVersion{Version: proto.Uint64(c.version)},
		CollectionName:   &collectionName,
		CollectionLthash: c.sum[:],
	}
	for _, setting := range c.inOrder() {
		plain.MutationRecords = append(plain.MutationRecords, &waSyncdSnapshotRecovery.SyncdPlainTextRecord{
			Value: setting.data, KeyID: setting.record.GetKeyID().GetID(), Mac: valueMAC(setting.record),
		})
	}
	blob, err := proto.Marshal(plain)
	if err != nil {
		return nil, err
	}
	var compressed bytes.Buffer
	w := gzip.NewWriter(&compressed)
	if _, err = w.Write(blob); err != nil {
		return nil, err
	}
	if err = w.Close(); err != nil {
		return nil, err
	}
	kind := waE2E.PeerDataOperationRequestType_COMPANION_SYNCD_SNAPSHOT_FATAL_RECOVERY
	return &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type: waE2E.ProtocolMessage_PEER_DATA_OPERATION_REQUEST_RESPONSE_MESSAGE.Enum(),
		PeerDataOperationRequestResponseMessage: &waE2E.PeerDataOperationRequestResponseMessage{
			PeerDataOperationRequestType: &kind,
			StanzaID:                     &id,
			PeerDataOperationResult: []*waE2E.PeerDataOperationRequestResponseMessage_PeerDataOperationResult{{
				SyncdSnapshotFatalRecoveryResponse: &waE2E.PeerDataOperationRequestResponseMessage_PeerDataOperationResult_SyncDSnapshotFatalRecoveryResponse{
					CollectionSnapshot: compressed.Bytes(), IsCompressed: proto.Bool(true),
				},
			}},
		},
	}}, nil
}
