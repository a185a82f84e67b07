package cache

import (
	"slices"
	"strings"
	"sync"
)

// Op is what a write does.
type Op uint8

const (
	// Put sets the value.
	Put Op = iota
	// PutIfAbsent sets the value if there is none.
	PutIfAbsent
	// Delete removes the key.
	Delete
)

// Write is one change. Version is set when it becomes visible and grows with every write of the instance.
type Write[V any] struct {
	Key     Key
	Op      Op
	Value   V
	Version uint64
}

// changes is an ordered set of writes, the last one of a key wins. Nearly always it is small, and then it is searched.
type changes[V any] struct {
	list  []Write[V]
	index map[Key]int // of a large one
}

const smallChanges = 8

// find returns the write of a key, nil if there is none. It is valid until the next set.
func (c *changes[V]) find(k Key) *Write[V] {
	if c.index != nil {
		if i, ok := c.index[k]; ok {
			return &c.list[i]
		}
		return nil
	}
	for i := range c.list {
		if c.list[i].Key == k {
			return &c.list[i]
		}
	}
	return nil
}

func (c *changes[V]) set(w Write[V]) {
	if old := c.find(w.Key); old != nil {
		if w.Op == PutIfAbsent {
			if old.Op != Delete {
				return
			}
			w.Op = Put
		}
		*old = w
		return
	}
	c.list = append(c.list, w)
	switch {
	case c.index != nil:
		c.index[w.Key] = len(c.list) - 1
	case len(c.list) > smallChanges:
		c.index = make(map[Key]int)
		for i := range c.list {
			c.index[c.list[i].Key] = i
		}
	}
}

// Overlay is a private layer of writes over an instance: an open transaction. Its zero value
// is empty. It is safe for concurrent use.
type Overlay[V any] struct {
	mu      sync.Mutex
	changes changes[V]
}

func (o *Overlay[V]) mergeLocked(own *changes[V]) {
	for _, w := range own.list {
		o.changes.set(w)
	}
}

// Len is the number of keys that the overlay changes.
func (o *Overlay[V]) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.changes.list)
}

// Writes returns what the overlay holds, in order.
func (o *Overlay[V]) Writes() []Write[V] {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.changes.list)
}

// View is the state of an instance during one run of a function given to [Instance.Read] or
// [Instance.Update]. It must not be used after that.
type View[V any] struct {
	inst    *Instance[V]
	base    *Overlay[V]
	own     changes[V]
	fetched *fetch[V]
	missing map[Key]struct{}
	then    []func()
	wrote   bool
}

// Then has fn run, still under the instance's lock, if this run is the one that counts: its writes are visible, or it wrote
// nothing. It does not run for writes into an [Overlay].
func (v *View[V]) Then(fn func()) { v.then = append(v.then, fn) }

// Get returns the value of k. The value is shared: do not change it. When the
// value is not in memory it answers absent for now and the function will be run again.
func (v *View[V]) Get(k Key) (value V, found bool) {
	for _, c := range v.layers() {
		if w := c.find(k); w != nil && w.Op == Delete {
			return value, false
		} else if w != nil && w.Op == Put {
			return w.Value, true
		}
	}
	value, found = v.below(k)
	if found {
		return value, true
	}
	for _, c := range v.layers() {
		if w := c.find(k); w != nil {
			return w.Value, true
		}
	}
	return value, false
}

func (v *View[V]) layers() []*changes[V] {
	if v.base == nil {
		return []*changes[V]{&v.own}
	}
	return []*changes[V]{&v.own, &v.base.changes}
}

// below is Get without the layers of this view.
func (v *View[V]) below(k Key) (value V, found bool) {
	e := v.inst.mu.entries[k.Type][k.ID]
	if e != nil && e.state != evicted && !e.ifAbsent {
		e.used.Store(true)
		v.inst.cache.stats.hits.Add(1)
		if e.state == deleted {
			return value, false
		}
		return e.value, true
	}
	if e == nil && v.inst.absentLocked(k) {
		v.inst.cache.stats.hits.Add(1)
		return value, false
	}
	if answer, ok := v.fetched.answer(k); ok {
		if !answer.found && e != nil && e.ifAbsent {
			return e.value, true
		}
		return answer.value, answer.found
	}
	v.miss(k)
	return value, false
}

func (v *View[V]) miss(k Key) {
	if v.missing == nil {
		v.missing = make(map[Key]struct{})
	}
	v.missing[k] = struct{}{}
}

// Has says whether k exists, without fetching the value of a type whose keys are in memory.
func (v *View[V]) Has(k Key) bool {
	for _, c := range v.layers() {
		if w := c.find(k); w != nil && w.Op != PutIfAbsent {
			return w.Op == Put
		}
	}
	if e := v.inst.mu.entries[k.Type][k.ID]; e != nil && !e.ifAbsent {
		v.inst.cache.stats.hits.Add(1)
		return e.state != deleted
	}
	_, found := v.Get(k)
	return found
}

// IDs returns the ids of all existing keys of a type that begin with prefix, in no order. The
// keys of the type must be in memory: [Resident], [KeysOnly], or [Scoped] after a Get in that scope.
func (v *View[V]) IDs(t Type, prefix string) []string {
	var ids []string
	for id, e := range v.inst.mu.entries[t] {
		if e.state != deleted && strings.HasPrefix(id, prefix) && !v.changed(Key{t, id}) {
			ids = append(ids, id)
		}
	}
	seen := make(map[Key]struct{})
	for _, c := range v.layers() {
		for _, w := range c.list {
			if w.Key.Type != t || !strings.HasPrefix(w.Key.ID, prefix) {
				continue
			}
			if _, dup := seen[w.Key]; dup {
				continue
			}
			seen[w.Key] = struct{}{}
			if w.Op != Delete {
				ids = append(ids, w.Key.ID)
			}
		}
	}
	return ids
}

func (v *View[V]) changed(k Key) bool {
	for _, c := range v.layers() {
		if c.find(k) != nil {
			return true
		}
	}
	return false
}

// Write repeats a write, as one of an [Overlay].
func (v *View[V]) Write(w Write[V]) { v.own.set(w) }

// Put sets the value of k. The value belongs to the cache from now on. If memory holds an equal one, nothing is written.
func (v *View[V]) Put(k Key, value V) {
	if !v.unchanged(k, value) {
		v.own.set(Write[V]{Key: k, Op: Put, Value: value})
	}
}

// unchanged says whether k is known to have the value already.
func (v *View[V]) unchanged(k Key, value V) bool {
	if v.inst.cache.cfg.Equal == nil || v.changed(k) {
		return false
	}
	e := v.inst.mu.entries[k.Type][k.ID]
	return e != nil && e.state == hasValue && !e.ifAbsent && v.inst.cache.cfg.Equal(e.value, value)
}

// PutIfAbsent sets the value of k if there is none, without asking for it.
func (v *View[V]) PutIfAbsent(k Key, value V) {
	if v.base != nil {
		if w := v.base.changes.find(k); w != nil && w.Op != Delete {
			return
		}
	}
	v.own.set(Write[V]{Key: k, Op: PutIfAbsent, Value: value})
}

// Delete removes k. If memory knows that there is none, nothing is written.
func (v *View[V]) Delete(k Key) {
	e := v.inst.mu.entries[k.Type][k.ID]
	if v.changed(k) || (e == nil && !v.inst.absentLocked(k)) || (e != nil && e.state != deleted) {
		v.own.set(Write[V]{Key: k, Op: Delete})
	}
}
