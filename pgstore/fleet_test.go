package pgstore_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// counting opens a process whose statements are counted.
func counting(t testing.TB, dsn string, connections int32, count *statements, edit ...func(*pgstore.Config)) *pgstore.Container {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer, cfg.MaxConns = count, connections
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close) // after the container
	return process(t, "", append(edit, func(cfg *pgstore.Config) { cfg.Pool = pool })...)
}

// insertDevices stores n devices as copies of one that is paired, which is quicker than n pairings.
func insertDevices(t testing.TB, dsn string, n int) {
	t.Helper()
	c := process(t, dsn)
	d := pair(t, c.NewDevice())
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn,
		fmt.Sprintf(`INSERT INTO whatsmeow.instances (id, jid, lid, epoch, clean_at_epoch, timeline, system)
			SELECT 'i' || n, (4900000000 + n) || ':7@s.whatsapp.net', '', i.epoch, i.epoch, i.timeline, i.system
			FROM whatsmeow.instances i, generate_series(1, %d) AS n`, n),
		`INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq)
			SELECT i.id, k.key_type, k.key_id, jsonb_set(k.data, '{device,jid}', to_jsonb(i.jid)), 0
			FROM whatsmeow.auth_keys k, whatsmeow.instances i WHERE k.key_type = 'creds' AND k.key_id = 'device' AND i.id <> k.instance_id AND k.instance_id = '`+d.ID.String()+`'`))
}

// How many instances are open says nothing of how many connections are.
func TestAThousandInstancesNeedFourConnections(t *testing.T) {
	t.Parallel()
	const instances = 1000
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances)
	c := counting(t, dsn, 4, new(statements), func(cfg *pgstore.Config) { cfg.Lease = time.Minute })
	devices, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, devices, instances+1)
	var writers sync.WaitGroup
	room := make(chan struct{}, 50)
	for _, d := range devices {
		room <- struct{}{}
		writers.Go(func() {
			defer func() { <-room }()
			if err := d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, instances+1, c.Stats().Cache.Instances)
	require.Equal(t, instances+1, trusted(t, dsn, "1:0"))
	require.NoError(t, c.Close())
	require.Equal(t, instances+1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE released`))
}

// Claiming costs five statements an instance at the most, and what is claimed is whole.
func TestP6AClaimCostsFewStatements(t *testing.T) {
	t.Parallel()
	const instances = 60
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances)
	count := new(statements)
	c := counting(t, dsn, 4, count, func(cfg *pgstore.Config) { cfg.Lease, cfg.MaxInstances = time.Minute, instances })
	before := count.sent.Load()
	devices, err := c.Claim(ctx, 1000)
	require.NoError(t, err)
	require.Len(t, devices, instances, "no more than MaxInstances")
	require.LessOrEqual(t, count.sent.Load()-before, int64(5*instances))
	again, err := c.Claim(ctx, 1000)
	require.NoError(t, err)
	require.Empty(t, again)
	other := process(t, dsn)
	rest, err := other.Claim(ctx, 1000)
	require.NoError(t, err)
	require.Len(t, rest, 1)
}

// A device is deleted and paired again under its name while a process of its former life stands still: nothing of that gets in.
func TestP9NothingOfAFormerLifeGetsIn(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	zombie := process(t, network.DSN, func(cfg *pgstore.Config) { cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour })
	d, err := zombie.Instance(ctx, "shop")
	require.NoError(t, err)
	pair(t, d)
	network.Down()
	trust(t, "former:0", d)

	c := process(t, dsn)
	former, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	require.NoError(t, former.Delete(ctx))
	fresh, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	pair(t, fresh)
	trust(t, "later:0", fresh)
	require.NoError(t, c.Flush(ctx))

	network.Up()
	require.Error(t, zombie.Flush(within(t, 30*time.Second)))
	require.Error(t, d.Identities.PutIdentity(ctx, "again:0", [32]byte{1}))
	require.Error(t, d.Save(ctx))
	require.Zero(t, trusted(t, dsn, "former:0"))
	require.Equal(t, 1, trusted(t, dsn, "later:0"))
	require.NoError(t, c.Flush(ctx))
	trust(t, "still:0", fresh)
	require.NoError(t, c.Flush(ctx))
}

// A process that stood still holds no lock that its successor waits for.
func TestP6AZombieHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	zombie := process(t, network.DSN)
	d := pair(t, zombie.NewDevice())
	network.Hang() // its flush is on the way and never arrives
	trust(t, "1:0", d)
	time.Sleep(50 * time.Millisecond)
	next := process(t, dsn)
	taken := mustDevice(t, next, *d.ID)
	trust(t, "2:0", taken)
	require.NoError(t, next.Flush(within(t, 10*time.Second)))
	network.Heal()
	require.ErrorIs(t, zombie.Flush(within(t, 30*time.Second)), pgstore.ErrOwnershipLost)
	require.Zero(t, trusted(t, dsn, "1:0"))
}

func TestViewsShowOwnersLoadAndSizes(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Owner, cfg.Address = "worker 1", "http://10.0.0.1" })
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, c.Flush(ctx))
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	var owner, address string
	var alive, released bool
	var since, age time.Duration
	require.NoError(t, conn.QueryRow(ctx, `SELECT owner, address, alive, released, now() - taken_at, heartbeat_age FROM whatsmeow.owners WHERE id = $1`, d.ID.String()).
		Scan(&owner, &address, &alive, &released, &since, &age))
	require.Equal(t, []any{"worker 1", "http://10.0.0.1", true, false}, []any{owner, address, alive, released})
	for _, d := range []time.Duration{since, age} {
		require.GreaterOrEqual(t, d, time.Duration(0))
		require.Less(t, d, time.Minute)
	}
	var instances, pending int
	require.NoError(t, conn.QueryRow(ctx, `SELECT instances, pending FROM whatsmeow.process_load`).Scan(&instances, &pending))
	require.Equal(t, 1, instances)
	require.Zero(t, pending)
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys`)
	require.NoError(t, err)
	trust(t, "2:0", d) // cannot be saved
	require.Eventually(t, func() bool {
		return scalar[bool](t, dsn, `SELECT pending = 1 AND pending_for > '0' AND pending_for < '1 minute' FROM whatsmeow.process_load`)
	}, 30*time.Second, 50*time.Millisecond)
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT keys FROM whatsmeow.instance_sizes WHERE key_type = 'identity' AND bytes > 0`))
}

// Heartbeats are one row a process, however many instances it has.
// Who lets go says so at once; where that does not get through, looking is enough.
func TestP6WhoLetsGoSaysSo(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c := process(t, dsn)
	released := pair(t, c.NewDevice())
	pair(t, c.NewDevice())
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	_, err = conn.Exec(ctx, `LISTEN whatsmeow_instances`)
	require.NoError(t, err)
	require.NoError(t, c.Release(ctx, pgstore.InstanceID(released)))
	_, err = conn.WaitForNotification(within(t, 10*time.Second))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = conn.WaitForNotification(within(t, 10*time.Second))
	require.NoError(t, err)

	deaf := process(t, pgtest.PgBouncer(t, dsn, 5))
	changes, err := deaf.Watch(within(t, time.Minute))
	require.NoError(t, err)
	for change := range changes {
		if change.Kind == pgstore.Claimable {
			require.Equal(t, 2, change.Count)
			claimed, err := deaf.Claim(ctx, change.Count)
			require.NoError(t, err)
			require.Len(t, claimed, 2)
			return
		}
	}
	require.Fail(t, "nothing to claim")
}

func TestHeartbeatsAreOneStatementAProcess(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, 100)
	count := new(statements)
	c := counting(t, dsn, 4, count)
	devices, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	for _, d := range devices {
		require.NoError(t, c.Take(ctx, d))
	}
	before := count.sent.Load()
	time.Sleep(time.Second) // three signs of life, with what was lost and what others have learnt of LIDs
	require.LessOrEqual(t, count.sent.Load()-before, int64(12))
	require.GreaterOrEqual(t, count.sent.Load()-before, int64(2))
}

// What a process may not have is the others'.
func TestP6ASmallProcessStrandsNothing(t *testing.T) {
	t.Parallel()
	const instances, most = 30, 5
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	with := func(most int) *pgstore.Container {
		c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease, cfg.MaxInstances = time.Minute, most })
		_, err := c.Claim(ctx, 0) // it joins
		require.NoError(t, err)
		return c
	}
	small, large := with(most), with(0)
	for c, want := range map[*pgstore.Container]int{small: most, large: instances - most} {
		got, err := c.Claim(ctx, instances)
		require.NoError(t, err)
		require.Len(t, got, want)
	}
	for _, c := range []*pgstore.Container{small, large} {
		got, err := c.Claim(ctx, instances)
		require.NoError(t, err)
		require.Empty(t, got)
	}
}

// What a process releases that leaves is the others', although it still has its share.
func TestP6WhoLeavesLeavesItsShareToTheOthers(t *testing.T) {
	t.Parallel()
	const instances = 4
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	long := func(cfg *pgstore.Config) { cfg.Lease = time.Minute }
	a, b := process(t, dsn, long), process(t, dsn, long)
	for _, c := range []*pgstore.Container{a, b} {
		_, err := c.Claim(ctx, 0) // they join
		require.NoError(t, err)
	}
	mine, err := a.Claim(ctx, instances)
	require.NoError(t, err)
	require.Len(t, mine, instances/2)
	claimAll(t, b, instances/2)
	require.NoError(t, a.Leave(ctx))
	require.NoError(t, a.Leave(ctx))
	require.NoError(t, a.Release(ctx, pgstore.InstanceID(mine[0])))
	claimAll(t, b, 1)
	trust(t, "1:0", mine[1])
	require.NoError(t, a.Flush(ctx), "what it has not released it has")
}
