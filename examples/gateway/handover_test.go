package main

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// tellingStore tells what is done with it.
type tellingStore struct {
	deviceStore
	said chan string
}

// Leave implements deviceStore.
func (s *tellingStore) Leave(context.Context) error {
	s.said <- "leave"
	return nil
}

// Release implements deviceStore.
func (s *tellingStore) Release(_ context.Context, id string) error {
	s.said <- id
	return nil
}

// Close implements deviceStore.
func (s *tellingStore) Close() error {
	s.said <- "close"
	return nil
}

// Of a process that ends, a send that takes its time holds up no other instance.
func TestASlowSendHoldsNoOtherInstanceUp(t *testing.T) {
	t.Parallel()
	s := &tellingStore{said: make(chan string, 10)}
	g := &gateway{log: quiet, store: s, instances: make(map[string]*instance), unsaved: make(statuses)}
	container := new(pgstore.Container)
	add := func(id string) *instance {
		in := newInstance(g, id, &store.Device{Container: container})
		_, ok := g.swap(in)
		require.True(t, ok)
		return in
	}
	add("quick")
	slow := add("slow")
	slow.sending.RLock()
	done := make(chan error, 1)
	go func() { done <- g.handOver(context.WithoutCancel(t.Context())) }()
	next := func() string {
		select {
		case what := <-s.said:
			return what
		case <-within(t).Done():
			return "nothing"
		}
	}
	require.Equal(t, "leave", next())
	require.Equal(t, "quick", next())
	slow.sending.RUnlock()
	require.NoError(t, <-done)
	require.Equal(t, "close", next(), "with which the last ones are let go of at once")
	require.Empty(t, g.all())
}
