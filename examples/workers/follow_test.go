package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// That an instance has stopped may be told late: the client of one that is ours again goes on.
func TestP6AStopOfAFormerLifeEndsNoClient(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := pgtest.Open(t)
	opened := func() *pgstore.Container {
		c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Lease: time.Minute})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	first := opened()
	device := first.NewDevice()
	signaltest.FillPairing(device)
	require.NoError(t, device.Save(ctx))
	id := pgstore.InstanceID(device)
	require.NoError(t, first.Close())
	w := &worker{store: opened(), logger: waLog.Noop, clients: make(map[string]*whatsmeow.Client)}
	devices, err := w.store.Claim(ctx, 1)
	require.NoError(t, err)
	require.Len(t, devices, 1)
	w.clients[id] = whatsmeow.NewClient(devices[0], waLog.Noop)
	stopped := pgstore.Event{Kind: pgstore.Stopped, Instance: id, Err: pgstore.ErrOwnershipLost}
	w.follow(ctx, stopped)
	require.Contains(t, w.clients, id)
	_, err = opened().Instance(ctx, id)
	require.NoError(t, err)
	require.NoError(t, devices[0].Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.ErrorIs(t, w.store.Flush(ctx), pgstore.ErrOwnershipLost)
	w.follow(ctx, stopped)
	require.NotContains(t, w.clients, id)
}
