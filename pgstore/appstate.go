package pgstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// PutAppStateSyncKey implements [store.AppStateSyncKeyStore]: a key replaces one that is older. Durable
// when it returns, since the phone sends it once.
func (s *deviceStore) PutAppStateSyncKey(ctx context.Context, id []byte, key store.AppStateSyncKey) error {
	if len(key.Data) == 0 {
		return invalid("app state sync key has no data")
	}
	if key.Fingerprint == nil {
		return invalid("app state sync key has no fingerprint")
	}
	k := newKey(typeAppStateKey, binaryID(id))
	next := &appStateKeyValue{ID: bytes.Clone(id), Data: bytes.Clone(key.Data), Fingerprint: bytes.Clone(key.Fingerprint), Timestamp: key.Timestamp}
	return s.write(ctx, patienceOutage, func(v *view) error {
		stored, ok := v.Get(k)
		if old, ok := found[*appStateKeyValue](stored, ok); !ok || next.Timestamp > old.Timestamp {
			v.Put(k, next)
		}
		return nil
	})
}

// GetAppStateSyncKey implements [store.AppStateSyncKeyStore].
func (s *deviceStore) GetAppStateSyncKey(ctx context.Context, id []byte) (*store.AppStateSyncKey, error) {
	v, ok, err := s.get(ctx, newKey(typeAppStateKey, binaryID(id)))
	k, ok := found[*appStateKeyValue](v, ok)
	if err != nil || !ok {
		return nil, err
	}
	return k.export(), nil
}

func (v *appStateKeyValue) export() *store.AppStateSyncKey {
	return &store.AppStateSyncKey{Data: bytes.Clone(v.Data), Fingerprint: bytes.Clone(v.Fingerprint), Timestamp: v.Timestamp}
}

func (s *deviceStore) appStateKeys(ctx context.Context) (all []*appStateKeyValue, err error) {
	err = s.readAll(ctx, typeAppStateKey, func(v *view) error {
		all = nil
		for _, id := range v.IDs(typeAppStateKey, "") {
			stored, ok := v.Get(cache.Key{Type: typeAppStateKey, ID: id})
			if k, ok := found[*appStateKeyValue](stored, ok); ok {
				all = append(all, k)
			}
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *appStateKeyValue) int {
		return cmp.Or(cmp.Compare(b.Timestamp, a.Timestamp), bytes.Compare(a.ID, b.ID))
	})
	return all, err
}

// GetLatestAppStateSyncKeyID implements [store.AppStateSyncKeyStore].
func (s *deviceStore) GetLatestAppStateSyncKeyID(ctx context.Context) ([]byte, error) {
	all, err := s.appStateKeys(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return bytes.Clone(all[0].ID), nil
}

// GetAllAppStateSyncKeys implements [store.AppStateSyncKeyStore]: newest first.
func (s *deviceStore) GetAllAppStateSyncKeys(ctx context.Context) ([]*store.AppStateSyncKey, error) {
	all, err := s.appStateKeys(ctx)
	if len(all) == 0 {
		return nil, err // not an empty slice: as sqlstore answers
	}
	out := make([]*store.AppStateSyncKey, 0, len(all))
	for _, k := range all {
		out = append(out, k.export())
	}
	return out, err
}

// An app-state patch is three calls: PutAppStateVersion, DeleteAppStateMutationMACs, PutAppStateMutationMACs. They become
// durable together: the first opens a group, an overlay that every reader of the collection
// sees, and the last ends it. A version that is deleted drops an open group, and so does a call that fails: the client
// gives up that patch and gets it again.
//
// Where the database went back, versions are dropped with their MACs (replay.go). A patch that was decoded on a version from before that is refused: it
// would be there without the MACs that it builds on. The client then finds no version, and fetches the collection whole.

// group returns the open group of a collection, or nil.
func (in *instance) group(name string) *cache.Overlay[value] {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.groups[name]
}

// openGroup returns the open group of a collection, a new one if there is none.
func (in *instance) openGroup(name string) (*cache.Overlay[value], error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.versionDroppedLocked(name); err != nil {
		return nil, err
	}
	group := in.mu.groups[name]
	if group == nil {
		group = new(cache.Overlay[value])
		if in.mu.groups == nil {
			in.mu.groups = make(map[string]*cache.Overlay[value])
		}
		in.mu.groups[name] = group
	}
	in.versionReadLocked(name) // what is decoded next builds on it
	return group, nil
}

// dropGroup ends a group of a collection; nil is none.
func (in *instance) dropGroup(name string, group *cache.Overlay[value]) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if group != nil && in.mu.groups[name] == group {
		delete(in.mu.groups, name)
	}
}

// versionRead notes that the version of a collection was read as it is now. It runs under the lock of the keys.
func (in *instance) versionRead(name string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.versionReadLocked(name)
}

func (in *instance) versionReadLocked(name string) {
	if in.mu.versions == nil {
		in.mu.versions = make(map[string]bool)
	}
	in.mu.versions[name] = true
}

// versionDropped is an error if the version of a collection was dropped since it was read.
func (in *instance) versionDropped(name string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.versionDroppedLocked(name)
}

func (in *instance) versionDroppedLocked(name string) error {
	if current, read := in.mu.versions[name]; read && !current {
		return fmt.Errorf("%w: app state version of %s was dropped, fetch it again", ErrDatabaseRewound, name)
	}
	return nil
}

// inCollection gives fn a view of a collection that includes its open group.
func (s *deviceStore) inCollection(ctx context.Context, name string, fn func(*view) error) error {
	if s.looks(typeAppStateVersion) {
		return s.look(ctx, typeAppStateVersion, cache.OnDemand, fn)
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	if err = in.failure(); err != nil {
		return err
	}
	if group := in.group(name); group != nil {
		return in.keys.Read(ctx, group, fn)
	}
	return in.read(ctx, fn)
}

// PutAppStateVersion implements [store.AppStateStore] and opens the group of its collection.
func (s *deviceStore) PutAppStateVersion(ctx context.Context, name string, version uint64, hash [128]byte) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	if err = in.failure(); err != nil {
		return err
	}
	group, err := in.openGroup(name)
	if err != nil {
		return err
	}
	return in.keys.Update(ctx, group, nil, func(v *view) error {
		v.Put(newKey(typeAppStateVersion, name), &appStateVersionValue{Version: version, Hash: hash[:]})
		return nil
	})
}

// GetAppStateVersion implements [store.AppStateStore]. A stored version 0 is an error, as it stands for "none".
func (s *deviceStore) GetAppStateVersion(ctx context.Context, name string) (version uint64, hash [128]byte, err error) {
	err = s.inCollection(ctx, name, func(v *view) error {
		version, hash = 0, [128]byte{}
		if in := s.in.Load(); in != nil {
			v.Then(func() { in.versionRead(name) })
		}
		stored, ok := v.Get(newKey(typeAppStateVersion, name))
		state, ok := found[*appStateVersionValue](stored, ok)
		if !ok {
			return nil
		}
		if state.Version == 0 {
			return fmt.Errorf("%w: stored app state version of %s is 0", ErrCorrupt, name)
		}
		version, hash = state.Version, [128]byte(state.Hash)
		return nil
	})
	return version, hash, err
}

// DeleteAppStateVersion implements [store.AppStateStore]; the collection's MACs go with it.
func (s *deviceStore) DeleteAppStateVersion(ctx context.Context, name string) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	in.mu.Lock()
	delete(in.mu.groups, name)
	in.mu.Unlock()
	return in.write(ctx, patienceNone, func(v *view) error {
		k := newKey(typeAppStateVersion, name)
		if v.Has(k) {
			v.Delete(k)
		}
		v.Get(macKey(name, nil)) // the collection has to be in memory to be listed
		for _, id := range v.IDs(typeAppStateMAC, escapeID(name)+idSeparator) {
			v.Delete(cache.Key{Type: typeAppStateMAC, ID: id})
		}
		return nil
	})
}

func macKey(name string, indexMAC []byte) cache.Key {
	return newKey(typeAppStateMAC, name, binaryID(indexMAC))
}

// PutAppStateMutationMACs implements [store.AppStateStore] and ends the group of its collection. Of one index MAC the
// highest version counts, and in one call the last.
func (s *deviceStore) PutAppStateMutationMACs(ctx context.Context, name string, version uint64, mutations []store.AppStateMutationMAC) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	group := in.group(name)
	defer in.dropGroup(name, group)
	for _, m := range mutations {
		if len(m.IndexMAC) != keyLength || len(m.ValueMAC) != keyLength {
			return invalid("index and value MAC must have 32 bytes")
		}
	}
	var opened []cache.Write[value]
	if group != nil {
		opened = group.Writes() // now: inside the view its lock would come after the instance's
	}
	err = in.writeMany(ctx, patienceNone, len(opened)+len(mutations), func(v *view) error {
		if err := in.versionDropped(name); err != nil {
			return err
		}
		for _, w := range opened {
			v.Write(w)
		}
		for _, m := range mutations {
			k := macKey(name, m.IndexMAC)
			stored, ok := v.Get(k)
			if old, ok := found[*macValue](stored, ok); !ok || version >= old.Version {
				v.Put(k, &macValue{Version: version, ValueMAC: bytes.Clone(m.ValueMAC)})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	in.keys.DropScope(typeAppStateMAC, escapeID(name))
	return nil
}

// DeleteAppStateMutationMACs implements [store.AppStateStore], as part of the collection's open group if there is one.
func (s *deviceStore) DeleteAppStateMutationMACs(ctx context.Context, name string, indexMACs [][]byte) error {
	if len(indexMACs) == 0 {
		return nil
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	remove := func(v *view) error {
		for _, index := range indexMACs {
			if k := macKey(name, index); v.Has(k) {
				v.Delete(k)
			}
		}
		return nil
	}
	group := in.group(name)
	if group == nil {
		return in.write(ctx, patienceNone, remove)
	}
	if err = in.keys.Update(ctx, group, nil, remove); err != nil {
		in.dropGroup(name, group)
	}
	return err
}

// GetAppStateMutationMAC implements [store.AppStateStore]. The first question loads the collection.
func (s *deviceStore) GetAppStateMutationMAC(ctx context.Context, name string, indexMAC []byte) (mac []byte, err error) {
	err = s.inCollection(ctx, name, func(v *view) error {
		mac = nil
		stored, ok := v.Get(macKey(name, indexMAC))
		if m, ok := found[*macValue](stored, ok); ok {
			mac = bytes.Clone(m.ValueMAC)
		}
		return nil
	})
	return mac, err
}
