package cache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

const (
	resident cache.Type = iota
	keysOnly
	scoped
	onDemand
)

// disk is what is durable; fetching from it can be watched and held up.
type disk struct {
	mu      sync.Mutex
	rows    map[cache.Key]string
	pending []cache.Write[string]
	inFetch func()
	failure error // of every fetch
}

func (d *disk) FetchKeys(_ context.Context, keys []cache.Key) (map[cache.Key]string, error) {
	out := make(map[cache.Key]string)
	d.mu.Lock()
	for _, k := range keys {
		if v, ok := d.rows[k]; ok {
			out[k] = v
		}
	}
	d.mu.Unlock()
	if d.inFetch != nil {
		d.inFetch()
	}
	return out, d.failure
}

func (d *disk) FetchScope(_ context.Context, t cache.Type, scope string) (map[cache.Key]string, error) {
	out := make(map[cache.Key]string)
	d.mu.Lock()
	for k, v := range d.rows {
		if k.Type == t && scopeOf(k) == scope {
			out[k] = v
		}
	}
	d.mu.Unlock()
	if d.inFetch != nil {
		d.inFetch()
	}
	return out, d.failure
}

func (d *disk) commit(writes []cache.Write[string]) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending = append(d.pending, writes...)
	return nil
}

// flush makes what is pending durable.
func (d *disk) flush(inst *cache.Instance[string]) {
	d.mu.Lock()
	writes := d.pending
	d.pending = nil
	for _, w := range writes {
		switch _, exists := d.rows[w.Key]; {
		case w.Op == cache.Delete:
			delete(d.rows, w.Key)
		case w.Op == cache.Put || !exists:
			d.rows[w.Key] = w.Value
		}
	}
	d.mu.Unlock()
	inst.Durable(writes)
}

// scopeOf is the first byte of a key's id.
func scopeOf(k cache.Key) string { return k.ID[:min(1, len(k.ID))] }

func newCache(budget int64) *cache.Cache[string] {
	return cache.New(cache.Config[string]{
		Residency: func(t cache.Type) cache.Residency { return cache.Residency(t) },
		Size:      func(v string) int { return len(v) },
		Scope:     scopeOf,
		Equal:     func(a, b string) bool { return a == b },
		Budget:    budget,
	})
}

func open(t require.TestingT, c *cache.Cache[string], d *disk) *cache.Instance[string] {
	return openNamed(t, c, d, "i")
}

func openNamed(t require.TestingT, c *cache.Cache[string], d *disk, id string) *cache.Instance[string] {
	inst, err := c.Open(ctx, id, d, func(_ context.Context, fill *cache.Filler[string]) error {
		for k, v := range d.rows {
			switch k.Type {
			case resident:
				fill.Add(k, v)
			case keysOnly:
				fill.AddKey(k)
			}
		}
		return nil
	})
	require.NoError(t, err)
	return inst
}

func key(t cache.Type, id string) cache.Key { return cache.Key{Type: t, ID: id} }

func put(t require.TestingT, inst *cache.Instance[string], d *disk, k cache.Key, v string) {
	require.NoError(t, inst.Update(ctx, nil, d.commit, func(w *cache.View[string]) error {
		w.Put(k, v)
		return nil
	}))
}

func TestConcurrentOpeningLoadsOnce(t *testing.T) {
	t.Parallel()
	c := newCache(0)
	var loads atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_, err := c.Open(ctx, "i", &disk{}, func(context.Context, *cache.Filler[string]) error {
				loads.Add(1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, loads.Load())
}

func TestP1AFetchNeverHidesAWriteThatWasFlushedAndEvictedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, kind := range []cache.Type{resident, keysOnly, scoped, onDemand} {
		k := key(kind, "a1")
		d := &disk{rows: map[cache.Key]string{k: "old"}}
		c := newCache(1) // evicts whatever it may
		inst := open(t, c, d)
		once := sync.Once{}
		d.inFetch = func() {
			once.Do(func() {
				put(t, inst, d, k, "new")
				d.flush(inst)
			})
		}
		put(t, inst, d, key(resident, "other"), "x") // makes the cache evict
		got, found, err := inst.Get(ctx, nil, k)
		require.NoError(t, err)
		require.True(t, found)
		want := "new"
		if c.Stats().Fetches == 0 {
			want = "old" // it was in memory all the time
		}
		require.Equal(t, want, got)
	}
}

// A write that was pending when a fetch began, and became durable and was let go of while it ran, is not hidden by what the fetch saw before.
func TestP1AFetchNeverHidesAPendingWriteThatBecameDurableMeanwhile(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"a1", "a2"} {
		for _, kind := range []cache.Type{scoped, onDemand} {
			k := key(kind, "a1")
			d := &disk{rows: map[cache.Key]string{}}
			inst := open(t, newCache(0), d)
			require.NoError(t, inst.Update(ctx, nil, d.commit, func(w *cache.View[string]) error {
				w.PutIfAbsent(k, "mine")
				return nil
			}))
			once := sync.Once{}
			d.inFetch = func() { once.Do(func() { d.flush(inst) }) }
			_, _, err := inst.Get(ctx, nil, key(kind, other)) // a2 loads the scope of both
			require.NoError(t, err)
			got, found, err := inst.Get(ctx, nil, k)
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, "mine", got)
		}
	}
}

// What a fetch has read from a disk that went back meanwhile counts no more: it is asked again.
func TestP4AFetchFromBeforeARewriteDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, kind := range []cache.Type{scoped, onDemand} {
		k := key(kind, "a1")
		d := &disk{rows: map[cache.Key]string{k: "that other life's"}}
		inst := open(t, newCache(0), d)
		once := sync.Once{}
		d.inFetch = func() {
			once.Do(func() {
				d.mu.Lock()
				d.rows[k] = "ours"
				d.mu.Unlock()
				if err := inst.Rewrite(nil, d.commit, func(cache.Key, cache.Held, string) (cache.Write[string], bool) { return cache.Write[string]{}, false }); err != nil {
					t.Error(err)
				}
			})
		}
		got, found, err := inst.Get(ctx, nil, k)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, "ours", got)
	}
}

func TestP11EvictionNeverTakesAnUnflushedValue(t *testing.T) {
	t.Parallel()
	d := &disk{rows: map[cache.Key]string{}}
	c := newCache(1)
	inst := open(t, c, d)
	for i := range 50 {
		put(t, inst, d, key(resident, string(rune('a'+i))), "value")
	}
	require.Zero(t, c.Stats().Evictions)
	d.flush(inst)
	require.EqualValues(t, 50, c.Stats().Evictions)
	got, found, err := inst.Get(ctx, nil, key(resident, "b"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "value", got)
}

var errGone = errors.New("gone")

// What was forgotten while its value was fetched is not what does not exist.
func TestP8AForgottenInstanceDoesNotAnswerAbsent(t *testing.T) {
	t.Parallel()
	for _, kind := range []cache.Type{resident, keysOnly, scoped, onDemand} {
		k := key(kind, "a1")
		d := &disk{rows: map[cache.Key]string{k: "v"}}
		c := newCache(1)
		inst := open(t, c, d)
		d.inFetch = func() { c.Forget(inst, errGone) }
		_, _, err := inst.Get(ctx, nil, k)
		require.ErrorIs(t, err, errGone)
		require.EqualValues(t, 1, c.Stats().Fetches)
		for _, overlay := range []*cache.Overlay[string]{nil, new(cache.Overlay[string])} { // and from now on
			_, _, err = inst.Get(ctx, overlay, k)
			require.ErrorIs(t, err, errGone)
		}
		require.ErrorIs(t, inst.Update(ctx, nil, d.commit, func(*cache.View[string]) error { return nil }), errGone)
	}
}

// What is forgotten while it is opened, as by an owner who lost it that moment, is not there afterwards: nobody could forget it again.
func TestP8AnInstanceForgottenWhileItIsOpenedIsNotOpened(t *testing.T) {
	t.Parallel()
	d := &disk{rows: map[cache.Key]string{key(resident, "a"): "v"}}
	c := newCache(0)
	_, err := c.Open(ctx, "i", d, func(_ context.Context, fill *cache.Filler[string]) error {
		fill.Add(key(resident, "a"), "v")
		c.Forget(fill.Instance(), errGone)
		fill.Add(key(resident, "b"), "v")
		return nil
	})
	require.ErrorIs(t, err, errGone)
	require.Nil(t, c.Lookup("i"))
	require.Zero(t, c.Stats().Bytes)
	_, found, err := open(t, c, d).Get(ctx, nil, key(resident, "a"))
	require.NoError(t, err, "the next one loads anew")
	require.True(t, found)
}

func TestP8NoForgottenInstanceStays(t *testing.T) {
	t.Parallel()
	c := newCache(0)
	for range 1000 {
		var forgetting sync.WaitGroup
		_, err := c.Open(ctx, "i", &disk{}, func(_ context.Context, fill *cache.Filler[string]) error {
			now := make(chan struct{})
			forgetting.Go(func() {
				close(now)
				c.Forget(fill.Instance(), errGone)
			})
			<-now
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, errGone)
		}
		forgetting.Wait()
		require.Nil(t, c.Lookup("i"))
	}
}

func TestP8TheFirstCauseOfForgettingCounts(t *testing.T) {
	t.Parallel()
	c, d := newCache(0), &disk{}
	inst := open(t, c, d)
	c.Forget(inst, errGone)
	c.Forget(inst, errors.New("later"))
	_, _, err := inst.Get(ctx, nil, key(resident, "a"))
	require.ErrorIs(t, err, errGone)
}

func TestP11EveryByteIsGivenBack(t *testing.T) {
	t.Parallel()
	d := &disk{rows: map[cache.Key]string{key(resident, "a"): "v"}}
	c := newCache(0)
	inst := open(t, c, d)
	put(t, inst, d, key(onDemand, "b"), "w")
	put(t, inst, d, key(keysOnly, "c"), "w")
	d.flush(inst)
	put(t, inst, d, key(keysOnly, "c"), "longer")
	d.flush(inst)
	c.Forget(inst, errGone)
	require.Zero(t, c.Stats().Bytes)
}

// Each writer reads what it has just written, and readers see no value go back, while everything is flushed and evicted under them.
func TestP1ManyWriteAndReadWhileAllIsFlushedAndEvicted(t *testing.T) {
	t.Parallel()
	const rounds = 300
	d := &disk{rows: map[cache.Key]string{}}
	inst := open(t, newCache(1), d)
	get := func(k cache.Key) int {
		v, found, err := inst.Get(ctx, nil, k)
		if err != nil {
			t.Error(err)
		}
		if !found {
			return 0
		}
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Error(err)
		}
		return n
	}
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	until := func(fn func()) {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					fn()
				}
			}
		})
	}
	for _, kind := range []cache.Type{resident, keysOnly, scoped, onDemand} {
		for w := range 2 {
			k := key(kind, fmt.Sprint("a", w))
			writers.Go(func() {
				for n := 1; n <= rounds; n++ {
					put(t, inst, d, k, strconv.Itoa(n))
					if got := get(k); got != n {
						t.Errorf("%v is %d, not %d", k, got, n)
						return
					}
				}
			})
			last := 0
			until(func() {
				now := get(k)
				if now < last {
					t.Errorf("%v went back from %d to %d", k, last, now)
				}
				last = now
			})
		}
	}
	until(func() { d.flush(inst) })
	until(func() { inst.DropScope(scoped, "a") })
	writers.Wait()
	close(stop)
	others.Wait()
	d.flush(inst)
	for k, v := range d.rows {
		require.Equal(t, strconv.Itoa(rounds), v, "%v", k)
	}
	require.Len(t, d.rows, 8)
}

var errFetch = errors.New("fetch failed")

// Random writes, transactions, flushes, evictions, failing fetches and reopenings, some of them cut short, against a map.
func TestP1P2AgainstAModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := &disk{rows: map[cache.Key]string{}}
		c := newCache(rapid.SampledFrom([]int64{0, 1, 2000}).Draw(t, "budget"))
		inst := open(t, c, d)
		model := map[cache.Key]string{}
		var overlay *cache.Overlay[string]
		var inTx map[cache.Key]string
		keys := rapid.Custom(func(t *rapid.T) cache.Key {
			return key(cache.Type(rapid.IntRange(0, 3).Draw(t, "type")), rapid.SampledFrom([]string{"a1", "a2", "b1"}).Draw(t, "id"))
		})
		current := func() map[cache.Key]string {
			if overlay != nil {
				return inTx
			}
			return model
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				k, v := keys.Draw(t, "key"), rapid.StringN(1, 3, -1).Draw(t, "value")
				op := cache.Op(rapid.IntRange(0, 2).Draw(t, "op"))
				require.NoError(t, inst.Update(ctx, overlay, d.commit, func(w *cache.View[string]) error {
					switch op {
					case cache.Put:
						w.Put(k, v)
					case cache.PutIfAbsent:
						w.PutIfAbsent(k, v)
					case cache.Delete:
						w.Delete(k)
					}
					return nil
				}))
				switch _, exists := current()[k]; {
				case op == cache.Delete:
					delete(current(), k)
				case op == cache.Put || !exists:
					current()[k] = v
				}
			},
			"write what needs a fetch that fails": func(t *rapid.T) {
				k, other, v := keys.Draw(t, "key"), keys.Draw(t, "other"), rapid.StringN(1, 3, -1).Draw(t, "value")
				d.failure = errFetch
				err := inst.Update(ctx, overlay, d.commit, func(w *cache.View[string]) error {
					w.Put(other, v)
					w.Get(k)
					return nil
				})
				d.failure = nil
				if err == nil { // it needed none
					current()[other] = v
					return
				}
				require.ErrorIs(t, err, errFetch)
			},
			"begin": func(*rapid.T) {
				if overlay == nil {
					overlay, inTx = new(cache.Overlay[string]), maps.Clone(model)
				}
			},
			"commit": func(t *rapid.T) {
				if overlay == nil {
					return
				}
				require.NoError(t, inst.Update(ctx, nil, d.commit, func(w *cache.View[string]) error {
					for _, write := range overlay.Writes() {
						w.Write(write)
					}
					return nil
				}))
				overlay, model = nil, inTx
			},
			"rollback": func(*rapid.T) { overlay = nil },
			"flush":    func(*rapid.T) { d.flush(inst) },
			"drop":     func(*rapid.T) { inst.DropScope(scoped, "a") },
			"reopen": func(t *rapid.T) {
				if overlay != nil {
					return
				}
				d.flush(inst)
				c.Forget(inst, errGone)
				if rapid.Bool().Draw(t, "forgotten while opening") {
					_, err := c.Open(ctx, "i", d, func(_ context.Context, fill *cache.Filler[string]) error {
						c.Forget(fill.Instance(), errGone)
						return nil
					})
					require.ErrorIs(t, err, errGone)
				}
				require.Zero(t, c.Stats().Bytes)
				inst = open(t, c, d)
			},
			"": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				got, found, err := inst.Get(ctx, overlay, k)
				require.NoError(t, err)
				want, exists := current()[k]
				require.Equal(t, exists, found, "%v", k)
				require.Equal(t, want, got, "%v", k)
				require.NoError(t, inst.Read(ctx, overlay, func(v *cache.View[string]) error {
					if v.Has(k) != exists {
						v.Get(k)
					}
					return nil
				}))
				var ids []string
				require.NoError(t, inst.Read(ctx, overlay, func(v *cache.View[string]) error {
					ids = v.IDs(resident, "a")
					return nil
				}))
				var wantIDs []string
				for k := range current() {
					if k.Type == resident && k.ID[:1] == "a" {
						wantIDs = append(wantIDs, k.ID)
					}
				}
				slices.Sort(ids)
				slices.Sort(wantIDs)
				require.Equal(t, wantIDs, ids)
			},
		})
	})
}
