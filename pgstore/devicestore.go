package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// deviceStore is what a device's twelve stores are. It keeps to the instance that was taken for it; one that only looks takes it at the first
// use and keeps to it from then on: a device of a former life never reaches a later one under the same id.
//
// The embedded NoopStore answers methods that a newer whatsmeow has added to its interfaces.
type deviceStore struct {
	*store.NoopStore
	c     *Container
	id    string
	jid   types.JID
	noise [keyLength]byte // tells two pairings of one JID apart

	in atomic.Pointer[instance] // nil before the first use
}

var _ store.AllSessionSpecificStores = (*deviceStore)(nil)

func (c *Container) newDeviceStore(id string, d *store.Device) *deviceStore {
	return &deviceStore{NoopStore: &store.NoopStore{Error: ErrUnsupported}, c: c, id: id, jid: *d.ID, noise: *d.NoiseKey.Priv}
}

// instance returns the taken instance.
func (s *deviceStore) instance(ctx context.Context) (*instance, error) {
	if in := s.in.Load(); in != nil {
		return in, nil
	}
	in, err := s.c.instance(ctx, s.id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrDeviceDeleted
	} else if err != nil {
		return nil, err
	}
	v, found, err := in.get(ctx, deviceKey)
	if err != nil {
		return nil, err
	}
	if !found { // it is no device's, so nobody here has it
		return nil, errors.Join(ErrDeviceDeleted, s.c.release(ctx, in))
	}
	if !s.isOf(v.(*credsValue).Device) {
		return nil, ErrDeviceDeleted
	}
	s.in.CompareAndSwap(nil, in)
	return s.in.Load(), nil
}

// isOf says whether credentials are those of the device that these stores were made for.
func (s *deviceStore) isOf(stored *deviceJSON) bool {
	return string(stored.JID) == s.jid.String() && bytes.Equal(stored.NoiseKey, s.noise[:])
}

// get reads one key.
func (s *deviceStore) get(ctx context.Context, k cache.Key) (v value, ok bool, err error) {
	if s.looks(k.Type) {
		err = s.look(ctx, k.Type, cache.OnDemand, func(w *view) error {
			v, ok = w.Get(k)
			return nil
		})
		return v, ok, err
	}
	in, err := s.instance(ctx)
	if err != nil {
		return nil, false, err
	}
	return in.get(ctx, k)
}

// readAll is read for a function that lists the keys of type t.
func (s *deviceStore) readAll(ctx context.Context, t cache.Type, fn func(*view) error) error {
	if s.looks(t) {
		return s.look(ctx, t, cache.Resident, fn)
	}
	return s.read(ctx, fn)
}

// readSome is read for a function that gets keys of type t by their ids.
func (s *deviceStore) readSome(ctx context.Context, t cache.Type, fn func(*view) error) error {
	if s.looks(t) {
		return s.look(ctx, t, cache.OnDemand, fn)
	}
	return s.read(ctx, fn)
}

// takingTypes are the Signal state: using it, even to read it, means to drive the device.
var takingTypes = map[cache.Type]bool{typeSession: true, typeIdentity: true, typePreKey: true, typeSenderKey: true}

// looks says whether a read of type t goes past the instance, because nobody here has taken it and the read is no reason to.
func (s *deviceStore) looks(t cache.Type) bool {
	if takingTypes[t] || s.c.closed() {
		return false
	}
	if s.in.Load() != nil {
		return false
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	in := s.c.mu.instances[s.id]
	return in == nil || !in.usable()
}

// look answers a read from the table through a cache that is thrown away, so that no later take trusts it.
func (s *deviceStore) look(ctx context.Context, t cache.Type, held cache.Residency, fn func(*view) error) error {
	stored, err := s.c.storedDevice(ctx, s.id)
	if err != nil {
		return s.failed(err)
	}
	if stored == nil || !s.isOf(stored) {
		return ErrDeviceDeleted
	}
	f := &fetcher{c: s.c, id: s.id}
	throwaway := cache.New(cache.Config[value]{
		Residency: func(of cache.Type) cache.Residency {
			if keyTypes[of].residency == cache.Scoped {
				return cache.Scoped
			}
			return held
		},
		Size:  value.size,
		Scope: macScope,
	})
	keys, err := throwaway.Open(ctx, s.id, f, func(ctx context.Context, fill *cache.Filler[value]) error {
		if held != cache.Resident {
			return nil
		}
		all, err := f.fetchType(ctx, t)
		for k, v := range all {
			fill.Add(k, v)
		}
		return err
	})
	if err != nil {
		return s.failed(err)
	}
	return s.failed(keys.Read(ctx, nil, fn))
}

// failed tells of an error of a call that looks, and returns it.
func (s *deviceStore) failed(err error) error {
	if err != nil {
		s.c.observers.failed(s.id, err)
	}
	return err
}

func (s *deviceStore) read(ctx context.Context, fn func(*view) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.read(ctx, fn)
}

func (s *deviceStore) write(ctx context.Context, wait patience, fn func(*view) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.write(ctx, wait, fn)
}

// put is write of one key.
func (s *deviceStore) put(ctx context.Context, wait patience, k cache.Key, v value) error {
	return s.write(ctx, wait, func(w *view) error {
		w.Put(k, v)
		return nil
	})
}

// writeInPieces writes many values that do not stand or fall together, in order: as groups of no more than a segment, since one
// group is flushed whole and a flush has to fit the server's statement_timeout. If it fails, the pieces before are stored.
func writeInPieces[E any](ctx context.Context, s *deviceStore, entries []E, write func(*view, E)) error {
	for piece := range slices.Chunk(entries, s.c.segmentSize()) {
		in, err := s.instance(ctx)
		if err != nil {
			return err
		}
		err = in.writeMany(ctx, patienceNone, len(piece), func(v *view) error {
			for _, e := range piece {
				write(v, e)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// remove deletes keys; those that do not exist cost nothing.
func (s *deviceStore) remove(ctx context.Context, t cache.Type, ids func(*view) []string) error {
	return s.write(ctx, patienceNone, func(w *view) error {
		for _, id := range ids(w) {
			if k := (cache.Key{Type: t, ID: id}); w.Has(k) {
				w.Delete(k)
			}
		}
		return nil
	})
}

func one(id string) func(*view) []string { return func(*view) []string { return []string{id} } }

func invalid(what string) error { return fmt.Errorf("%w: %s", ErrInvalidInput, what) }

// found narrows what a read answered to the value's own type.
func found[T value](v value, ok bool) (T, bool) {
	var zero T
	if !ok {
		return zero, false
	}
	return v.(T), true
}
