package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// deviceStore is what a device's twelve stores are. It takes its instance at the first use and
// keeps to it: a device of a former life never reaches a later one under the same id.
//
// The embedded NoopStore answers methods that a newer whatsmeow has added to its interfaces.
type deviceStore struct {
	*store.NoopStore
	c   *Container
	id  string
	jid types.JID

	mu sync.Mutex
	in *instance
}

var _ store.AllSessionSpecificStores = (*deviceStore)(nil)

func (c *Container) newDeviceStore(id string, jid types.JID) *deviceStore {
	return &deviceStore{NoopStore: &store.NoopStore{Error: ErrUnsupported}, c: c, id: id, jid: jid}
}

// instance returns the taken instance.
func (s *deviceStore) instance(ctx context.Context) (*instance, error) {
	s.mu.Lock()
	in := s.in
	s.mu.Unlock()
	if in != nil {
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
	if !found || string(v.(*credsValue).Device.JID) != s.jid.String() {
		return nil, ErrDeviceDeleted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in == nil {
		s.in = in
	}
	return s.in, nil
}

// get reads one key.
func (s *deviceStore) get(ctx context.Context, k cache.Key) (value, bool, error) {
	in, err := s.instance(ctx)
	if err != nil {
		return nil, false, err
	}
	return in.get(ctx, k)
}

func (s *deviceStore) read(ctx context.Context, fn func(*view) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.read(ctx, fn)
}

// write is instance.write for keys of type t, which the user may have asked to be synchronous.
func (s *deviceStore) write(ctx context.Context, t cache.Type, wait patience, fn func(*view) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.write(ctx, in.durableIf(t, wait), fn)
}

// put is write of one key.
func (s *deviceStore) put(ctx context.Context, wait patience, k cache.Key, v value) error {
	return s.write(ctx, k.Type, wait, func(w *view) error {
		w.Put(k, v)
		return nil
	})
}

// remove deletes keys; those that do not exist cost nothing.
func (s *deviceStore) remove(ctx context.Context, t cache.Type, ids func(*view) []string) error {
	return s.write(ctx, t, patienceNone, func(w *view) error {
		for _, id := range ids(w) {
			if k := (cache.Key{Type: t, ID: id}); w.Has(k) {
				w.Delete(k)
			}
		}
		return nil
	})
}

func one(id string) func(*view) []string { return func(*view) []string { return []string{id} } }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalidInput, fmt.Sprintf(format, args...))
}

// found narrows what a read answered to the value's own type.
func found[T value](v value, ok bool) (T, bool) {
	var zero T
	if !ok {
		return zero, false
	}
	return v.(T), true
}
