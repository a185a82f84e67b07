package cache

import "context"

// fetch is what a run has got from the fetcher so far, and which keys were written meanwhile.
type fetch[V any] struct {
	answers map[Key]answer[V]
	touched map[Key]struct{} // guarded by the instance's lock
	stale   bool             // what was read since the last round may be of no use any more; guarded likewise
}

type answer[V any] struct {
	value V
	found bool
}

// answer returns what was fetched for k, unless k was written since.
func (f *fetch[V]) answer(k Key) (answer[V], bool) {
	if f == nil || f.stale {
		return answer[V]{}, false
	}
	if _, stale := f.touched[k]; stale {
		return answer[V]{}, false
	}
	a, ok := f.answers[k]
	return a, ok
}

func (inst *Instance[V]) beginFetch() *fetch[V] {
	f := &fetch[V]{answers: make(map[Key]answer[V]), touched: make(map[Key]struct{})}
	inst.mu.Lock()
	inst.mu.fetches[f] = struct{}{}
	inst.mu.Unlock()
	return f
}

func (inst *Instance[V]) endFetch(f *fetch[V]) {
	inst.mu.Lock()
	delete(inst.mu.fetches, f)
	inst.mu.Unlock()
}

// fetch gets the missing keys, whole scopes for scoped types, and keeps what belongs in memory.
// A key that was touched during an earlier round is asked for again.
func (inst *Instance[V]) fetch(ctx context.Context, f *fetch[V], missing map[Key]struct{}) error {
	scopes := make(map[Key]struct{})
	var keys []Key
	inst.mu.Lock()
	if f.stale {
		f.stale = false
		clear(f.answers)
	}
	for k := range missing {
		delete(f.touched, k)
		if inst.cache.cfg.Residency(k.Type) == Scoped && !inst.scopeLoadedLocked(k) {
			scopes[Key{k.Type, inst.cache.cfg.Scope(k)}] = struct{}{}
		} else {
			keys = append(keys, k)
		}
	}
	for k := range f.touched {
		if inst.cache.cfg.Residency(k.Type) == Scoped {
			if _, again := scopes[Key{k.Type, inst.cache.cfg.Scope(k)}]; again {
				delete(f.touched, k)
			}
		}
	}
	inst.mu.Unlock()

	for s := range scopes {
		inst.cache.stats.fetches.Add(1)
		values, err := inst.fetcher.FetchScope(ctx, s.Type, s.ID)
		if err != nil {
			return err
		}
		inst.keepScope(f, s, values)
	}
	if len(keys) > 0 {
		inst.cache.stats.fetches.Add(1)
		values, err := inst.fetcher.FetchKeys(ctx, keys)
		if err != nil {
			return err
		}
		inst.keepKeys(f, keys, values)
	}
	return nil
}

func (inst *Instance[V]) keepScope(f *fetch[V], scope Key, values map[Key]V) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if f.stale {
		return
	}
	// A write that became durable while the scope was read may be missing
	// from what was read: then the scope does not count as loaded, and is asked for again.
	for k := range f.touched {
		if k.Type == scope.Type && inst.cache.cfg.Scope(k) == scope.ID && inst.mu.entries[k.Type][k.ID] == nil {
			return
		}
	}
	inst.mu.scopes[scope] = struct{}{}
	for k, v := range values {
		if inst.mu.entries[k.Type][k.ID] == nil {
			inst.setLocked(k, &entry[V]{value: v})
		}
	}
}

func (inst *Instance[V]) keepKeys(f *fetch[V], keys []Key, values map[Key]V) {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if f.stale {
		return
	}
	for _, k := range keys {
		v, found := values[k]
		f.answers[k] = answer[V]{value: v, found: found}
		e := inst.mu.entries[k.Type][k.ID]
		if _, stale := f.touched[k]; stale || e == nil || e.state != evicted {
			continue
		}
		switch {
		case !found:
			inst.removeLocked(k) // someone set it aside, or the row never existed
		case inst.cache.cfg.Residency(k.Type) != KeysOnly || (inst.cache.cfg.Keep != nil && inst.cache.cfg.Keep(k, v)):
			inst.setLocked(k, &entry[V]{value: v, version: e.version})
		}
	}
}
