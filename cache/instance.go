package cache

import (
	"context"
	"sync"
	"sync/atomic"
)

// keyOverhead is what a key costs whose value is not held and whose entry is shared: the map's slot and the string header.
const keyOverhead = 40

// entryOverhead is what an entry costs beside key and value: the map's slot, the
// string header and the entry itself (measured with runtime.MemStats on 64-bit Go).
const entryOverhead = 112

type state uint8

const (
	hasValue state = iota
	deleted
	evicted
)

type entry[V any] struct {
	value    V
	state    state
	dirty    bool
	ifAbsent bool // written by PutIfAbsent while it was unknown whether the key exists
	version  uint64
	size     int
	used     atomic.Bool
}

// Instance holds the keys of one owner. It is safe for concurrent use.
type Instance[V any] struct {
	cache   *Cache[V]
	id      string
	fetcher Fetcher[V]
	keyOnly *entry[V] // shared by all clean keys of [KeysOnly] types

	mu struct {
		sync.RWMutex
		entries map[Type]map[string]*entry[V]
		scopes  map[Key]struct{} // loaded scopes, named by (type, scope)
		fetches map[*fetch[V]]struct{}
		version uint64
		gone    error // why it was dropped, or nil
	}
}

func newInstance[V any](c *Cache[V], id string, fetcher Fetcher[V]) *Instance[V] {
	inst := &Instance[V]{cache: c, id: id, fetcher: fetcher, keyOnly: &entry[V]{state: evicted}}
	inst.mu.entries = make(map[Type]map[string]*entry[V])
	inst.mu.scopes = make(map[Key]struct{})
	inst.mu.fetches = make(map[*fetch[V]]struct{})
	return inst
}

// Filler puts what is durable into an instance that is being opened.
type Filler[V any] struct{ inst *Instance[V] }

// Add adds a key with its value.
func (f *Filler[V]) Add(k Key, v V) {
	f.inst.mu.Lock()
	defer f.inst.mu.Unlock()
	f.inst.setLocked(k, &entry[V]{value: v})
}

// Instance is the instance being opened.
func (f *Filler[V]) Instance() *Instance[V] { return f.inst }

// AddKey adds a key of a [KeysOnly] type whose value stays where it is.
func (f *Filler[V]) AddKey(k Key) {
	f.inst.mu.Lock()
	defer f.inst.mu.Unlock()
	f.inst.setLocked(k, f.inst.keyOnly)
}

// Read runs fn on a consistent view of the instance, seen through overlay if it is
// not nil. The error is fn's, or the fetcher's for a value that was not in memory.
func (inst *Instance[V]) Read(ctx context.Context, overlay *Overlay[V], fn func(*View[V]) error) error {
	return inst.run(ctx, overlay, nil, fn)
}

// Get is a Read of one key.
func (inst *Instance[V]) Get(ctx context.Context, overlay *Overlay[V], k Key) (value V, found bool, err error) {
	err = inst.Read(ctx, overlay, func(v *View[V]) error {
		value, found = v.Get(k)
		return nil
	})
	return value, found, err
}

// Update runs fn and then makes what it wrote visible: in overlay if it is not nil, else
// to everyone. In the latter case commit is called with the writes under the
// instance's lock, so commits are ordered as the writes are; if it fails,
// nothing was written. It is not called when fn wrote nothing.
func (inst *Instance[V]) Update(ctx context.Context, overlay *Overlay[V], commit Commit[V], fn func(*View[V]) error) error {
	return inst.run(ctx, overlay, commit, fn)
}

// Commit receives the writes of an update in order.
type Commit[V any] func([]Write[V]) error

func (inst *Instance[V]) run(ctx context.Context, overlay *Overlay[V], commit Commit[V], fn func(*View[V]) error) error {
	var fetched *fetch[V]
	defer func() {
		if fetched != nil {
			inst.endFetch(fetched)
		}
	}()
	for {
		view, err := inst.attempt(overlay, fetched, commit, fn)
		if view.missing == nil {
			if view.wrote {
				inst.cache.shrink()
			}
			return err
		}
		if fetched == nil {
			fetched = inst.beginFetch()
		}
		if err = inst.fetch(ctx, fetched, view.missing); err != nil {
			return err
		}
	}
}

func (inst *Instance[V]) attempt(overlay *Overlay[V], fetched *fetch[V], commit Commit[V], fn func(*View[V]) error) (*View[V], error) {
	if overlay != nil {
		overlay.mu.Lock()
		defer overlay.mu.Unlock()
	}
	if commit != nil && overlay == nil {
		inst.mu.Lock()
		defer inst.mu.Unlock()
	} else {
		inst.mu.RLock()
		defer inst.mu.RUnlock()
	}
	view := &View[V]{inst: inst, base: overlay, fetched: fetched}
	if inst.mu.gone != nil {
		return view, inst.mu.gone
	}
	err := fn(view)
	if view.missing != nil || err != nil {
		return view, err
	}
	if overlay != nil && len(view.own.list) > 0 {
		overlay.mergeLocked(&view.own)
		return view, nil
	}
	if len(view.own.list) > 0 {
		view.wrote = true
		if err = inst.applyLocked(view.own.list, commit); err != nil {
			return view, err
		}
	}
	for _, then := range view.then {
		then()
	}
	return view, nil
}

// applyLocked gives each write its version, hands them to commit and makes them visible.
func (inst *Instance[V]) applyLocked(writes []Write[V], commit Commit[V]) error {
	version := inst.mu.version
	for i := range writes {
		version++
		writes[i].Version = version
	}
	if err := commit(writes); err != nil {
		return err
	}
	inst.mu.version = version
	for _, w := range writes {
		for f := range inst.mu.fetches {
			f.touched[w.Key] = struct{}{}
		}
		old := inst.mu.entries[w.Key.Type][w.Key.ID]
		e := &entry[V]{value: w.Value, dirty: true, version: w.Version}
		switch w.Op {
		case Delete:
			e.state = deleted
		case PutIfAbsent:
			if old != nil && old.state != deleted {
				continue // the first one stays
			}
			e.ifAbsent = old == nil && !inst.absentLocked(w.Key)
		case Put:
		}
		inst.setLocked(w.Key, e)
	}
	return nil
}

// Durable reports writes that are durable now. A write that a newer one has replaced changes nothing.
func (inst *Instance[V]) Durable(writes []Write[V]) {
	inst.mu.Lock()
	for _, w := range writes {
		e := inst.mu.entries[w.Key.Type][w.Key.ID]
		if e == nil || e.version != w.Version || !e.dirty {
			continue
		}
		e.dirty = false
		// A fetch that is under way may have looked before this became durable, and memory may let go of it now.
		for f := range inst.mu.fetches {
			f.touched[w.Key] = struct{}{}
		}
		inst.settleLocked(w.Key, e)
	}
	inst.mu.Unlock()
	inst.cache.stuck.Store(false)
	inst.cache.shrink()
}

// settleLocked lets go of what a clean entry need not hold.
func (inst *Instance[V]) settleLocked(k Key, e *entry[V]) {
	if e.state == deleted {
		inst.removeLocked(k)
		return
	}
	switch inst.cache.cfg.Residency(k.Type) {
	case Resident, Pinned:
	case KeysOnly:
		if e.state == hasValue && (inst.cache.cfg.Keep == nil || !inst.cache.cfg.Keep(k, e.value)) {
			inst.setLocked(k, inst.keyOnly)
		}
	case Scoped:
		if !inst.scopeLoadedLocked(k) {
			inst.removeLocked(k)
		}
	case OnDemand:
		inst.removeLocked(k)
	}
}

// DropScope lets go of a loaded scope. Its dirty values stay until they are durable.
func (inst *Instance[V]) DropScope(t Type, scope string) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	delete(inst.mu.scopes, Key{t, scope})
	for id, e := range inst.mu.entries[t] {
		if k := (Key{t, id}); !e.dirty && inst.cache.cfg.Scope(k) == scope {
			inst.removeLocked(k)
		}
	}
}

func (inst *Instance[V]) scopeLoadedLocked(k Key) bool {
	_, ok := inst.mu.scopes[Key{k.Type, inst.cache.cfg.Scope(k)}]
	return ok
}

// absentLocked says whether a key with no entry is known not to exist.
func (inst *Instance[V]) absentLocked(k Key) bool {
	switch inst.cache.cfg.Residency(k.Type) {
	case Resident, KeysOnly, Pinned:
		return true
	case Scoped:
		return inst.scopeLoadedLocked(k)
	case OnDemand:
	}
	return false
}

func (inst *Instance[V]) setLocked(k Key, e *entry[V]) {
	if inst.mu.gone != nil {
		return
	}
	byID := inst.mu.entries[k.Type]
	if byID == nil {
		byID = make(map[string]*entry[V])
		inst.mu.entries[k.Type] = byID
	}
	if e != inst.keyOnly {
		e.size = entryOverhead + len(k.ID)
		if e.state == hasValue {
			e.size += inst.cache.cfg.Size(e.value)
		}
	}
	grown := inst.sizeOf(k.ID, e)
	if old := byID[k.ID]; old != nil {
		grown -= inst.sizeOf(k.ID, old)
	}
	byID[k.ID] = e
	inst.cache.bytes.Add(int64(grown))
}

// sizeOf is what an entry was counted as when it was set.
func (inst *Instance[V]) sizeOf(id string, e *entry[V]) int {
	if e == inst.keyOnly {
		return keyOverhead + len(id)
	}
	return e.size
}

func (inst *Instance[V]) removeLocked(k Key) {
	if e := inst.mu.entries[k.Type][k.ID]; e != nil {
		inst.cache.bytes.Add(int64(-inst.sizeOf(k.ID, e)))
		delete(inst.mu.entries[k.Type], k.ID)
	}
}

// evict takes clean values until the budget holds.
func (inst *Instance[V]) evict(secondChance bool) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	for t, byID := range inst.mu.entries {
		residency := inst.cache.cfg.Residency(t)
		for id, e := range byID {
			if inst.cache.bytes.Load() <= inst.cache.cfg.Budget {
				return
			}
			if e.dirty || e.state != hasValue || residency == OnDemand || residency == Pinned || (secondChance && e.used.Swap(false)) {
				continue
			}
			if residency == KeysOnly {
				inst.setLocked(Key{t, id}, inst.keyOnly)
			} else {
				inst.setLocked(Key{t, id}, &entry[V]{state: evicted, version: e.version})
			}
			inst.cache.stats.evictions.Add(1)
		}
	}
}

// drop lets go of all entries. The instance answers cause from now on.
func (inst *Instance[V]) drop(cause error) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	for _, byID := range inst.mu.entries {
		for id, e := range byID {
			inst.cache.bytes.Add(int64(-inst.sizeOf(id, e)))
		}
	}
	inst.mu.entries = make(map[Type]map[string]*entry[V])
	if inst.mu.gone == nil {
		inst.mu.gone = cause
	}
}
