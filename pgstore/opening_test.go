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

// takers are the calls that take an instance.
var takers = map[string]func(ctx context.Context, c *pgstore.Container, d *store.Device) error{
	"Instance": func(ctx context.Context, c *pgstore.Container, d *store.Device) error {
		_, err := c.Instance(ctx, d.ID.String())
		return err
	},
	"GetDevice": func(ctx context.Context, c *pgstore.Container, d *store.Device) error {
		_, err := c.GetDevice(ctx, *d.ID)
		return err
	},
	"Take": func(ctx context.Context, c *pgstore.Container, d *store.Device) error {
		return c.Take(ctx, d)
	},
}

// looked returns the only device of a database, without taking it.
func looked(t testing.TB, c *pgstore.Container) *store.Device {
	t.Helper()
	all, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	return all[0]
}

const freeAndClean = `SELECT count(*) FROM whatsmeow.instances WHERE process IS NULL AND clean_at_epoch = epoch`

// Who has stopped waiting for an instance does not take it later, from nobody and from no owner.
func TestP6ATakeThatNobodyWaitsForTakesNothing(t *testing.T) {
	t.Parallel()
	for name, take := range takers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			with := func(cfg *pgstore.Config) { cfg.Takes, cfg.Lease = pgstore.RespectLease, time.Minute }
			owner, c := process(t, dsn, with), process(t, dsn, with)
			pair(t, owner.NewDevice())
			d := looked(t, c)
			err := take(within(t, 300*time.Millisecond), c, d)
			require.ErrorIs(t, err, pgstore.ErrUnavailable)
			require.ErrorIs(t, err, pgstore.ErrLeased)
			require.NoError(t, owner.Release(ctx, d.ID.String()))
			for began := time.Now(); time.Since(began) < 500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
				require.Equal(t, 1, scalar[int](t, dsn, freeAndClean))
			}
			require.NoError(t, take(within(t, time.Minute), c, d), "who asks again gets it")
			require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE alive`))
		})
	}
}

// loading keeps an instance that is taken from being loaded, until it is let go on.
func loading(t testing.TB, dsn string) (goOn func()) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	return func() { require.NoError(t, tx.Rollback(ctx)) }
}

// What was taken when nobody waits for it any more is let go of.
func TestP6WhatNobodyWaitsForIsLetGoOf(t *testing.T) {
	t.Parallel()
	for name, take := range takers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			before := process(t, dsn)
			pair(t, before.NewDevice())
			require.NoError(t, before.Close())
			c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Minute })
			d := looked(t, c)
			goOn := loading(t, dsn)
			leaving, leave := context.WithCancel(ctx)
			left := make(chan error, 1)
			go func() { left <- take(leaving, c, d) }()
			require.Eventually(t, func() bool { return scalar[int](t, dsn, freeAndClean) == 0 }, 30*time.Second, 10*time.Millisecond)
			leave()
			require.ErrorIs(t, <-left, pgstore.ErrUnavailable)
			require.Zero(t, scalar[int](t, dsn, freeAndClean))
			goOn()
			require.Eventually(t, func() bool { return scalar[int](t, dsn, freeAndClean) == 1 }, 30*time.Second, 10*time.Millisecond)
			claimAll(t, process(t, dsn), 1)
			require.Zero(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "nothing is burned")
		})
	}
}

// Of two who wait for one instance, one leaves: the other one has it.
func TestP6WhatSomebodyStillWaitsForIsKept(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	before := process(t, dsn)
	pair(t, before.NewDevice())
	require.NoError(t, before.Close())
	c := process(t, dsn)
	d := looked(t, c)
	goOn := loading(t, dsn)
	leaving, leave := context.WithCancel(ctx)
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { left <- c.Take(leaving, d) }()
	require.Eventually(t, func() bool { return scalar[int](t, dsn, freeAndClean) == 0 }, 30*time.Second, 10*time.Millisecond)
	go func() { stayed <- c.Take(ctx, d) }()
	time.Sleep(50 * time.Millisecond) // if it has not begun to wait by then, it takes what was let go of: that is as good
	leave()
	require.ErrorIs(t, <-left, pgstore.ErrUnavailable)
	goOn()
	require.NoError(t, <-stayed)
	trust(t, "1:0", d)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, trusted(t, dsn, "1:0"))
}

// What was taken and cannot be opened is nobody's again, without the end of the process.
func TestP6WhatCannotBeOpenedIsGivenBack(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]string{
		"no JSON of ours": `UPDATE whatsmeow.auth_keys SET data = '{"device": 1}' WHERE key_type = 'creds' AND key_id = 'device'`,
		"a short key":     `UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{device,noise_key}', '"AAAA"') WHERE key_type = 'creds' AND key_id = 'device'`,
		"no credentials":  `DELETE FROM whatsmeow.auth_keys WHERE key_type = 'creds' AND key_id = 'device'`,
	} {
		for name, take := range takers {
			t.Run(what+", "+name, func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Open(t)
				before := process(t, dsn)
				pair(t, before.NewDevice())
				require.NoError(t, before.Close())
				c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Minute })
				d := looked(t, c)
				require.NoError(t, execSQL(t, dsn, spoil))
				err := take(ctx, c, d)
				require.Error(t, err)
				if name != "Take" { // which says that there is no such device, where the keys are others
					require.ErrorIs(t, err, pgstore.ErrCorrupt)
				}
				require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE released`))
				require.Zero(t, c.Stats().Instances)
			})
		}
	}
}
