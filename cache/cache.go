package cache

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"
)

// Type is a kind of key.
type Type uint8

// Key names a value of an instance.
type Key struct {
	Type Type
	ID   string
}

// Residency says how much of a type is held in memory.
type Residency uint8

const (
	// Resident types are loaded whole when the instance is opened.
	Resident Residency = iota
	// KeysOnly types have all their keys in memory, but values only while they are dirty or wanted.
	KeysOnly
	// Scoped types are loaded one scope (see [Config.Scope]) at a time.
	Scoped
	// OnDemand types are in memory only while they are dirty.
	OnDemand
	// Pinned types are loaded whole when the instance is opened and are never evicted.
	Pinned
)

// Config describes the types and the limits of a [Cache]. All functions are
// called with locks held: they must be quick and must not call the cache.
type Config[V any] struct {
	// Residency tells how a type is kept. Required.
	Residency func(Type) Residency
	// Size is the number of bytes that a value occupies. Required.
	Size func(V) int
	// Scope names the part of a [Scoped] type that a key belongs to.
	Scope func(Key) string
	// Equal says whether two values are the same, so that a write that changes nothing
	// costs nothing. Nil means never.
	Equal func(a, b V) bool
	// Keep says whether the clean value of a [KeysOnly] type stays in memory
	// until the budget wants its room. Nil means never.
	Keep func(Key, V) bool
	// Budget bounds the bytes of all instances together. Dirty values
	// may exceed it. Zero or less means no bound.
	Budget int64
}

// Fetcher gets what is not in memory from wherever it is durable. Its methods
// may be called concurrently. A key that is not in the answer does not exist.
type Fetcher[V any] interface {
	FetchKeys(ctx context.Context, keys []Key) (map[Key]V, error)
	FetchScope(ctx context.Context, t Type, scope string) (map[Key]V, error)
}

// Cache holds the instances of one process. It is safe for concurrent use.
type Cache[V any] struct {
	cfg   Config[V]
	bytes atomic.Int64
	stuck atomic.Bool // there was nothing left to evict, and nothing has become clean since
	loads singleflight.Group
	stats counters

	mu struct {
		sync.RWMutex
		instances map[string]*Instance[V]
	}
}

type counters struct{ hits, fetches, evictions atomic.Int64 }

// Stats is a snapshot of a cache's counters.
type Stats struct {
	Instances int
	Bytes     int64 // values in memory, keys and overhead included
	Hits      int64 // reads answered from memory
	Fetches   int64 // trips to the [Fetcher]
	Evictions int64
}

// New makes an empty cache.
func New[V any](cfg Config[V]) *Cache[V] {
	c := &Cache[V]{cfg: cfg}
	c.mu.instances = make(map[string]*Instance[V])
	return c
}

// Open returns the instance called id. If it is not in memory, open makes it: it
// gets a [Filler] for the keys that exist. Any number of callers at once
// cause one load, which goes on when the context of one of them ends; that
// caller gets the context's error. An instance that was forgotten before it was
// there is not opened: they get the cause.
func (c *Cache[V]) Open(ctx context.Context, id string, fetcher Fetcher[V], open func(context.Context, *Filler[V]) error) (*Instance[V], error) {
	if inst := c.Lookup(id); inst != nil {
		return inst, nil
	}
	done := c.loads.DoChan(id, func() (any, error) {
		if inst := c.Lookup(id); inst != nil {
			return inst, nil
		}
		inst := newInstance(c, id, fetcher)
		if err := open(context.WithoutCancel(ctx), &Filler[V]{inst: inst}); err != nil {
			inst.drop(err)
			return nil, err
		}
		if err := c.insert(inst); err != nil {
			return nil, err
		}
		c.stuck.Store(false)
		c.shrink()
		return inst, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case res := <-done:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*Instance[V]), nil
	}
}

// insert makes an instance known, unless it was forgotten already.
func (c *Cache[V]) insert(inst *Instance[V]) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inst.mu.RLock()
	defer inst.mu.RUnlock()
	if inst.mu.gone == nil {
		c.mu.instances[inst.id] = inst
	}
	return inst.mu.gone
}

// Lookup returns the instance called id if it is open, else nil.
func (c *Cache[V]) Lookup(id string) *Instance[V] {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mu.instances[id]
}

// Forget removes inst, so that the next [Cache.Open] loads anew. Whoever still has inst gets cause from every run that
// looks at it from now on, also from one that was under way and waited for the [Fetcher]: what
// memory no longer holds must not look as if it did not exist. It may come while inst is still being opened.
// Of two causes the first counts; there must be one.
func (c *Cache[V]) Forget(inst *Instance[V], cause error) {
	inst.drop(cause) // first: from here on it is not inserted any more
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.instances[inst.id] == inst {
		delete(c.mu.instances, inst.id)
	}
}

// Stats returns the counters as they are now.
func (c *Cache[V]) Stats() Stats {
	c.mu.RLock()
	n := len(c.mu.instances)
	c.mu.RUnlock()
	return Stats{
		Instances: n,
		Bytes:     c.bytes.Load(),
		Hits:      c.stats.hits.Load(),
		Fetches:   c.stats.fetches.Load(),
		Evictions: c.stats.evictions.Load(),
	}
}

// shrink evicts clean values until the budget holds or nothing is left to take.
// Values read since the last round get a second chance in the first one.
func (c *Cache[V]) shrink() {
	if c.cfg.Budget <= 0 || c.bytes.Load() <= c.cfg.Budget || c.stuck.Load() {
		return
	}
	c.mu.RLock()
	instances := make([]*Instance[V], 0, len(c.mu.instances))
	for _, inst := range c.mu.instances {
		instances = append(instances, inst)
	}
	c.mu.RUnlock()
	for _, secondChance := range []bool{true, false} {
		for _, inst := range instances {
			if c.bytes.Load() <= c.cfg.Budget {
				return
			}
			inst.evict(secondChance)
		}
	}
	// All that is left is dirty, or keys: looking again before something is flushed or loaded finds nothing.
	if c.bytes.Load() > c.cfg.Budget {
		c.stuck.Store(true)
	}
}
