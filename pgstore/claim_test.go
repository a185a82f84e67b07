package pgstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// claimAll claims until it has n devices, each once.
func claimAll(t testing.TB, c *pgstore.Container, n int, has ...*store.Device) {
	t.Helper()
	got := make(map[string]bool)
	for until := time.Now().Add(30 * time.Second); ; {
		for _, d := range has {
			require.False(t, got[d.ID.String()], "%s was returned twice", d.ID)
			got[d.ID.String()] = true
		}
		if len(got) == n {
			return
		}
		require.True(t, time.Now().Before(until), "%d of %d instances are nobody's, and no claim returns them", n-len(got), n)
		var err error
		has, err = c.Claim(within(t, 30*time.Second), n)
		require.NoError(t, err)
	}
}

// A call of Claim whose context ends has noted instances as this process's, so that nobody else takes them. The next one returns them, and Watch says that
// there are some.
func TestP6WhatAClaimHadToLeaveIsClaimedByTheNext(t *testing.T) {
	t.Parallel()
	const instances = 20
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Minute })
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys IN ACCESS EXCLUSIVE MODE`) // taken they are, but not loaded
	require.NoError(t, err)
	none, err := c.Claim(within(t, 500*time.Millisecond), instances)
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	require.Empty(t, none)
	require.NoError(t, tx.Rollback(ctx))
	require.Equal(t, instances, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE process IS NOT NULL`))
	events, err := c.Watch(within(t, time.Minute))
	require.NoError(t, err)
	require.Equal(t, pgstore.Event{Kind: pgstore.Claimable, Count: instances}, <-events)
	claimAll(t, c, instances)
	more, err := c.Claim(ctx, instances)
	require.NoError(t, err)
	require.Empty(t, more)
}

// Wherever the connections break while instances are claimed, each of them is returned in the end, once.
func TestP6AClaimCutAtEveryPointLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	const instances = 5
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	for bytes := 100; bytes < 3000; bytes += 100 {
		network := pgtest.NewProxy(t, dsn)
		c := process(t, network.DSN, func(cfg *pgstore.Config) { cfg.Lease = time.Minute })
		none, err := c.Claim(ctx, 0) // it joins
		require.NoError(t, err)
		require.Empty(t, none)
		network.Down()
		network.CutAfter(bytes, true)
		network.Up()
		has, _ := c.Claim(within(t, 300*time.Millisecond), instances)
		network.Down()
		network.Heal()
		network.Up()
		claimAll(t, c, instances, has...)
		require.NoError(t, c.Close())
	}
}

// What cannot be opened is not claimed again and again by who has tried, nor said to be claimable. Another process may try.
func TestP6WhatCannotBeOpenedIsNotClaimedAtOnceAgain(t *testing.T) {
	t.Parallel()
	const instances = 3
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = '{"device": 1}' WHERE instance_id = 'i1' AND key_type = 'creds' AND key_id = 'device'`))
	long := func(cfg *pgstore.Config) { cfg.Lease = time.Minute }
	c := process(t, dsn, long)
	got, err := c.Claim(ctx, instances)
	require.ErrorIs(t, err, pgstore.ErrCorrupt)
	require.Len(t, got, instances-1)
	got, err = c.Claim(ctx, instances)
	require.NoError(t, err)
	require.Empty(t, got)
	events, err := c.Watch(ctx)
	require.NoError(t, err)
	other := process(t, dsn, long)
	_, err = other.Claim(ctx, 0) // it joins, so that there is something to be told
	require.NoError(t, err)
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.processes SET max_instances = 1 WHERE claims`))
	require.Equal(t, pgstore.Event{Kind: pgstore.Surplus, Count: instances - 2}, <-events)
	_, err = other.Claim(ctx, instances)
	require.ErrorIs(t, err, pgstore.ErrCorrupt)
}
