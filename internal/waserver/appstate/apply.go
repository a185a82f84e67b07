package appstate

// The phone's changes. Mutations become one patch per collection. A setting that was made under an older key is removed
// under that key first, for under another key it has another index MAC and would be set twice.

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.mau.fi/whatsmeow"
	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/proto/waSyncAction"
	"google.golang.org/protobuf/proto"
)

// Apply changes settings on the phone and uploads the patches. It returns the collections that changed, of which the
// companions have to be notified.
func (s *State) Apply(mutations ...Mutation) ([]client.WAPatchName, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var changed []client.WAPatchName
	for _, m := range mutations {
		if s.mu.collections[m.Collection] == nil {
			return nil, fmt.Errorf("appstate: unknown collection %q", m.Collection)
		}
		if !slices.Contains(changed, m.Collection) {
			changed = append(changed, m.Collection)
		}
	}
	for _, name := range changed {
		c := s.mu.collections[name]
		var changes []change
		for _, m := range mutations {
			if m.Collection != name {
				continue
			}
			sealed, err := s.sealLocked(c, m)
			if err != nil {
				return nil, err
			}
			changes = append(changes, sealed...)
		}
		if err := s.commitLocked(c, s.patchLocked(c, changes), changes); err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// sealLocked encrypts a mutation, and what has to be removed for it.
func (s *State) sealLocked(c *collection, m Mutation) ([]change, error) {
	index, err := json.Marshal(m.Index)
	if err != nil {
		return nil, err
	}
	current := s.currentKeyLocked()
	var changes []change
	add := func(k *syncKey, operation waServerSync.SyncdMutation_SyncdOperation, data *waSyncAction.SyncActionData) error {
		sealed, err := k.seal(operation, data)
		changes = append(changes, change{sealed, data})
		return err
	}
	for _, old := range c.withIndex(index) {
		k := s.keyLocked(old.record.GetKeyID().GetID())
		if k == current && m.Value != nil {
			continue // the new value takes its place
		}
		if err = add(k, waServerSync.SyncdMutation_REMOVE, old.data); err != nil {
			return nil, err
		}
	}
	if m.Value == nil {
		if len(changes) > 0 {
			return changes, nil
		}
		// Phones remove settings that were never made, too.
		err = add(current, waServerSync.SyncdMutation_REMOVE, &waSyncAction.SyncActionData{Index: index, Version: &m.Version})
		return changes, err
	}
	value := proto.CloneOf(m.Value)
	value.Timestamp = proto.Int64(time.Now().UnixMilli())
	err = add(current, waServerSync.SyncdMutation_SET, &waSyncAction.SyncActionData{
		Index: index, Value: value, Padding: []byte{}, Version: &m.Version,
	})
	return changes, err
}

// patchLocked makes the patch that leads to the next version of a collection.
func (s *State) patchLocked(c *collection, changes []change) *waServerSync.SyncdPatch {
	k := s.currentKeyLocked()
	_, sum := c.after(changes)
	patch := &waServerSync.SyncdPatch{
		KeyID: &waServerSync.KeyId{ID: k.id}, SnapshotMAC: k.macOfSnapshot(c.name, c.version+1, sum), DeviceIndex: proto.Uint32(0),
	}
	for _, m := range changes {
		patch.Mutations = append(patch.Mutations, m.SyncdMutation)
	}
	patch.PatchMAC = k.macOfPatch(c.name, c.version+1, patch.GetSnapshotMAC(), patch.GetMutations())
	return patch
}

// commitLocked takes in a patch that is known to be right. The server gives it its version.
func (s *State) commitLocked(c *collection, patch *waServerSync.SyncdPatch, changes []change) error {
	patch.Version = &waServerSync.SyncdVersion{Version: proto.Uint64(c.version + 1)}
	if len(patch.GetMutations()) > s.cfg.ExternalAbove {
		blob, err := proto.Marshal(&waServerSync.SyncdMutations{Mutations: patch.GetMutations()})
		if err != nil {
			return err
		}
		if patch.ExternalMutations, err = s.external(blob); err != nil {
			return err
		}
		patch.Mutations = nil
	}
	encoded, err := proto.Marshal(patch)
	if err != nil {
		return err
	}
	c.settings, c.sum = c.after(changes)
	c.version++
	c.patches = append(c.patches, encoded)
	return nil
}

// external puts a blob where clients can fetch it.
func (s *State) external(blob []byte) (*waServerSync.ExternalBlobReference, error) {
	ref, err := s.cfg.Media.Put(blob, whatsmeow.MediaAppState)
	if err != nil {
		return nil, err
	}
	return &waServerSync.ExternalBlobReference{
		MediaKey: ref.MediaKey, DirectPath: &ref.DirectPath, Handle: &ref.Handle, FileSizeBytes: &ref.FileLength,
		FileSHA256: ref.FileSHA256, FileEncSHA256: ref.FileEncSHA256,
	}, nil
}

// Value is a setting as the phone sees it, or nil.
func (s *State) Value(name client.WAPatchName, index ...string) *waSyncAction.SyncActionValue {
	encoded, err := json.Marshal(index)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.mu.collections[name]
	if err != nil || c == nil {
		return nil
	}
	set := c.withIndex(encoded)
	if len(set) == 0 {
		return nil
	}
	return proto.CloneOf(set[len(set)-1].data.GetValue())
}
