package pgstore_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// onTimelines is a database whose WAL timeline is what a table says, and how to fail over to the next one: our statements name the server's
// function without its schema, so that they find another one first in the search path.
func onTimelines(t testing.TB) (dsn string, failOver func()) {
	t.Helper()
	dsn = pgtest.Open(t)
	require.NoError(t, execSQL(t, dsn,
		`CREATE SCHEMA fake`,
		`CREATE TABLE fake.timeline AS SELECT 1 AS n`,
		`CREATE FUNCTION fake.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE sql AS $$ SELECT lpad(n::text, 8, '0') || repeat('0', 16) FROM fake.timeline $$`))
	return withQuery(t, dsn, "search_path", "fake,pg_catalog"), func() {
		require.NoError(t, execSQL(t, dsn, `UPDATE fake.timeline SET n = n + 1`))
	}
}

// statements counts what is sent to the database.
type statements struct{ sent, flushes atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	s.sent.Add(1)
	if strings.Contains(data.SQL, "WITH lane AS") {
		s.flushes.Add(1)
	}
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// trust makes devices remember an identity of a peer, which nobody waits for.
func trust(t testing.TB, peer string, devices ...*store.Device) {
	t.Helper()
	for _, d := range devices {
		require.NoError(t, d.Identities.PutIdentity(ctx, peer, [32]byte{1}))
	}
}

// trusted is how many devices are stored with an identity of a peer.
func trusted(t testing.TB, dsn, peer string) int {
	t.Helper()
	return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity' AND key_id = $1`, peer)
}

// atOnce keeps flushes waiting while fn writes, so that few of them hold all of it.
func atOnce(t testing.TB, dsn string, fn func()) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }() // and with it the lock
	_, err = conn.Exec(ctx, `BEGIN`)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, `LOCK TABLE whatsmeow.instances`)
	require.NoError(t, err)
	fn()
}

func TestP6AFailoverThatLostNothingStopsNobody(t *testing.T) {
	t.Parallel()
	dsn, failOver := onTimelines(t)
	count := new(statements)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = count
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close) // after the container
	var logged lockedBuffer
	c := reopen(t, "", behind, func(cfg *pgstore.Config) {
		cfg.Pool, cfg.Logger, cfg.OnTimelineChange = pool, textLogger(&logged), pgstore.Trust
		cfg.Lease = time.Hour // its renewals would be counted
	})
	devices := make([]*store.Device, 200)
	for i := range devices {
		devices[i] = pair(t, c.NewDevice())
	}
	// each lets all devices write, and says what was sent until all was durable.
	each := func(peer string) (sent, flushes int64) {
		require.NoError(t, c.Flush(ctx))
		sent, flushes = count.sent.Load(), count.flushes.Load()
		atOnce(t, dsn, func() { trust(t, peer, devices...) })
		require.Eventually(t, func() bool { return c.Stats().Batcher.Pending == 0 }, 30*time.Second, time.Millisecond, "a Flush would hurry each")
		require.Equal(t, len(devices), trusted(t, dsn, peer))
		return count.sent.Load() - sent, count.flushes.Load() - flushes
	}
	before := c.Stats().Batcher.Flushes
	failOver()
	sent, flushes := each("1:0")
	calls := c.Stats().Batcher.Flushes - before
	require.LessOrEqual(t, calls, int64(10), "those that were under way, and the rest")
	require.LessOrEqual(t, flushes, 2*calls, "each was sent twice")
	require.LessOrEqual(t, sent, 3*calls, "and asked in between")
	require.Greater(t, flushes, calls, "the timeline was noticed")
	sent, flushes = each("2:0")
	require.Equal(t, flushes, sent, "nothing more to ask")
	require.Zero(t, c.Stats().Batcher.Retries)
	require.Zero(t, c.Stats().Batcher.Stopped)
	require.Empty(t, logged.String())
	require.NoError(t, c.Close())

	// All of it is the owner's on the new timeline, and the next owner has no chain to abandon.
	require.Equal(t, len(devices), scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE timeline = '00000002'`))
	next, err := reopen(t, dsn).GetDevice(ctx, *devices[0].ID)
	require.NoError(t, err)
	require.Zero(t, scalar[int](t, dsn, `SELECT step_through + abandon_through FROM whatsmeow.instances WHERE jid = $1`, next.ID.String()))
}

// Whatever the failover lost, an instance that somebody else has taken is his.
func TestP6AFailoverGivesNothingBack(t *testing.T) {
	t.Parallel()
	for when, take := range map[string]func(t *testing.T, dsn string, d *store.Device, failOver func()){
		"taken before": func(t *testing.T, dsn string, d *store.Device, failOver func()) {
			_, err := reopen(t, dsn).GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			failOver()
		},
		"taken after": func(t *testing.T, dsn string, d *store.Device, failOver func()) {
			failOver()
			_, err := reopen(t, dsn).GetDevice(ctx, *d.ID)
			require.NoError(t, err)
		},
		// Our own take was lost, and so was that its epoch is in use.
		"under the same epoch": func(t *testing.T, dsn string, d *store.Device, failOver func()) {
			failOver()
			require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.instances SET timeline = '00000002' WHERE jid = '`+d.ID.String()+`'`))
		},
		"under the same epoch, and flushed": func(t *testing.T, dsn string, d *store.Device, failOver func()) {
			failOver()
			require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.instances SET timeline = '00000002', seq = seq + 1 WHERE jid = '`+d.ID.String()+`'`))
		},
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			dsn, failOver := onTimelines(t)
			c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn})
			require.NoError(t, err)
			lost, kept := pair(t, c.NewDevice()), pair(t, c.NewDevice())
			trust(t, "1:0", lost, kept)
			require.NoError(t, c.Flush(ctx))
			take(t, dsn, lost, failOver)
			trust(t, "2:0", lost, kept)
			require.ErrorIs(t, c.Flush(within(t, 30*time.Second)), pgstore.ErrOwnershipLost)
			require.ErrorIs(t, lost.Identities.PutIdentity(ctx, "3:0", [32]byte{1}), pgstore.ErrOwnershipLost)
			require.Equal(t, 1, c.Stats().Batcher.Stopped)
			trust(t, "3:0", kept)
			require.ErrorIs(t, c.Close(), pgstore.ErrOwnershipLost)
			require.Equal(t, 2, trusted(t, dsn, "1:0"))
			require.Equal(t, 1, trusted(t, dsn, "2:0"), "the other one's")
			require.Equal(t, 1, trusted(t, dsn, "3:0"))
		})
	}
}

// Of one flush, what was durable stays so while nothing is known of the rest, and is not sent again.
func TestP6AnInstanceThatWasTakenHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	// The server cannot be asked how the rows are.
	require.NoError(t, execSQL(t, dsn,
		`CREATE TABLE fake.mute ()`,
		`CREATE OR REPLACE FUNCTION fake.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
			IF current_query() LIKE 'SELECT l.id, coalesce(i.epoch%' AND to_regclass('fake.mute') IS NOT NULL THEN RAISE 'not now' USING ERRCODE = '57014'; END IF;
			RETURN lpad('1', 8, '0');
		END $$`))
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn})
	require.NoError(t, err)
	lost := pair(t, c.NewDevice())
	kept := make([]*store.Device, 10)
	for i := range kept {
		kept[i] = pair(t, c.NewDevice())
	}
	b := reopen(t, dsn)
	_, err = b.GetDevice(ctx, *lost.ID)
	require.NoError(t, err)
	atOnce(t, dsn, func() {
		trust(t, "1:0", lost)
		trust(t, "1:0", kept...)
	})
	require.Eventually(t, func() bool { return c.Stats().Batcher.Pending == 1 && c.Stats().Batcher.Retries > 0 }, 30*time.Second, time.Millisecond)
	require.Zero(t, c.Stats().Batcher.Stopped)
	require.Equal(t, len(kept), trusted(t, dsn, "1:0"))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT max(seq) FROM whatsmeow.instances`))
	require.NoError(t, execSQL(t, dsn, `DROP TABLE fake.mute`))
	require.ErrorIs(t, c.Flush(within(t, 30*time.Second)), pgstore.ErrOwnershipLost)
	trust(t, "2:0", kept...)
	require.ErrorIs(t, c.Close(), pgstore.ErrOwnershipLost)
	require.Equal(t, len(kept), trusted(t, dsn, "2:0"))
}

// A row that is older than what was acknowledged concerns its instance alone.
func TestP6ARowThatWentBackConcernsItsInstanceAlone(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	var logged lockedBuffer
	c := reopen(t, dsn, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&logged) })
	lost, kept := pair(t, c.NewDevice()), pair(t, c.NewDevice())
	for i := range 3 {
		trust(t, fmt.Sprintf("%d:0", i), lost, kept)
		require.NoError(t, c.Flush(ctx))
	}
	require.NoError(t, execSQL(t, dsn,
		`UPDATE whatsmeow.instances SET seq = seq - 1 WHERE jid = '`+lost.ID.String()+`'`,
		`DELETE FROM whatsmeow.auth_keys WHERE key_type = 'identity' AND key_id = '2:0' AND instance_id = '`+lost.ID.String()+`'`))
	trust(t, "3:0", lost, kept)
	require.NoError(t, c.Flush(within(t, 30*time.Second)))
	require.Equal(t, int64(1), c.Stats().Replayed)
	require.NoError(t, c.Flush(ctx), "what was replayed came behind what the first one waited for")
	require.Zero(t, c.Stats().Batcher.Stopped)
	require.Contains(t, logged.String(), "level=WARN")
	require.Contains(t, logged.String(), lost.ID.String())
	require.NotContains(t, logged.String(), kept.ID.String())
	for i := range 4 {
		require.Equal(t, 2, trusted(t, dsn, fmt.Sprintf("%d:0", i)))
	}
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE abandon_through > 0`))
}

// What a take finds on another timeline than it was written on may be older than what has left on the wire.
func TestP4ATakeOnAnotherTimelineAbandonsTheChainsSoFar(t *testing.T) {
	t.Parallel()
	dsn, failOver := onTimelines(t)
	c := reopen(t, dsn)
	jid := *pair(t, c.NewDevice()).ID
	lives := 0
	// life is one owner's: it writes, and leaves cleanly.
	life := func() (stepThrough, abandonThrough, seq int64) {
		c := reopen(t, dsn)
		d, err := c.GetDevice(ctx, jid)
		require.NoError(t, err)
		conn, err := pgx.Connect(ctx, dsn)
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(ctx)) }()
		require.NoError(t, conn.QueryRow(ctx, `SELECT step_through, abandon_through, seq FROM whatsmeow.instances`).Scan(&stepThrough, &abandonThrough, &seq))
		lives++
		for i := range 3 {
			trust(t, fmt.Sprintf("%d:%d", lives, i), d)
			require.NoError(t, c.Flush(ctx))
		}
		require.NoError(t, c.Close())
		return stepThrough, abandonThrough, seq
	}
	require.NoError(t, c.Close())
	life()
	step, abandon, before := life()
	require.Positive(t, before)
	require.Zero(t, step+abandon, "it was left cleanly, where it is")
	failOver()
	step, through, seq := life()
	require.Zero(t, step)
	require.Greater(t, through, before)
	require.GreaterOrEqual(t, seq, through, "healing is written")
	step, abandon, later := life()
	require.Greater(t, later, seq)
	require.Equal(t, []int64{0, through}, []int64{step, abandon}, "what was written since is in order")
}

// The same with a server that recovers from its own WAL as one that is promoted does, under writes.
func TestP6APromotedServerStopsNobody(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	if server == nil {
		pgtest.Missing(t, "Docker, or a PostgreSQL that is installed")
	}
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: server.DSN, Sends: pgstore.WriteBehind})
	require.NoError(t, err)
	devices := make([]*store.Device, 20)
	for i := range devices {
		devices[i] = pair(t, c.NewDevice())
	}
	const timeline = `SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`
	before := scalar[string](t, server.DSN, timeline)
	directory := scalar[string](t, server.DSN, `SHOW data_directory`)
	require.NoError(t, execSQL(t, server.DSN,
		`ALTER SYSTEM SET restore_command = 'false'`, // there is no archive
		`COPY (SELECT) TO '`+directory+`/recovery.signal'`))

	var stop atomic.Bool
	var wg sync.WaitGroup
	var written [20]int
	for i, d := range devices {
		wg.Go(func() {
			for ; !stop.Load() && written[i] < 1000; written[i]++ {
				if err := d.Identities.PutIdentity(ctx, fmt.Sprintf("%d:0", written[i]), [32]byte{1}); err != nil {
					t.Error(err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	require.NoError(t, server.Kill(ctx))
	require.Eventually(t, func() bool { return !scalar[bool](t, server.DSN, `SELECT pg_is_in_recovery()`) }, time.Minute, 10*time.Millisecond)
	stop.Store(true)
	wg.Wait()
	require.NotEqual(t, before, scalar[string](t, server.DSN, timeline))
	require.NoError(t, c.Flush(within(t, time.Minute)))
	trust(t, "last:0", devices...)
	require.NoError(t, c.Flush(within(t, time.Minute)))
	require.Zero(t, c.Stats().Batcher.Stopped)
	all := len(devices)
	for _, n := range written {
		all += n
	}
	require.Equal(t, all, scalar[int](t, server.DSN, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity'`))
	require.Zero(t, scalar[int](t, server.DSN, `SELECT count(*) FROM whatsmeow.instances WHERE timeline = '`+before+`'`))
	require.NoError(t, c.Close())
}

// A device that is deleted is nobody's failure, whether its caller or a flush sees it first.
func TestP9ADeletionFailsNobodysFlush(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	c, dsn := open(t, behind, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&logged) })
	other := pair(t, c.NewDevice())
	var stop atomic.Bool
	var flusher sync.WaitGroup
	flusher.Go(func() {
		for i := 0; !stop.Load(); i++ {
			if err := other.Identities.PutIdentity(ctx, fmt.Sprintf("%d:0", i), [32]byte{1}); err != nil {
				t.Error(err)
			}
			if err := c.Flush(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	for range 60 {
		deletedUnderWrites(t, c)
	}
	stop.Store(true)
	flusher.Wait()
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, c.Stats().Batcher.Stopped)
	require.Equal(t, 1, c.Stats().Cache.Instances)
	require.NoError(t, c.Close())
	require.NotContains(t, logged.String(), "level=ERROR")
	require.NotContains(t, logged.String(), "level=WARN")
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances`))
}

func TestP9ADeletionByAnotherProcessIsNoFailure(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	c, dsn := open(t, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&logged) })
	d, other := pair(t, c.NewDevice()), pair(t, c.NewDevice())
	b := reopen(t, dsn)
	taken, err := b.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, taken.Delete(ctx))
	trust(t, "1:0", d, other)
	require.NoError(t, c.Flush(ctx))
	require.ErrorIs(t, d.Identities.PutIdentity(ctx, "2:0", [32]byte{1}), store.ErrDeviceDeleted)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, trusted(t, dsn, "1:0"))
	require.Zero(t, c.Stats().Batcher.Stopped)
	require.Equal(t, 1, c.Stats().Cache.Instances, "its memory is let go of")
	require.NotContains(t, logged.String(), "level=ERROR")
	require.Contains(t, logged.String(), "level=INFO")
	require.Contains(t, logged.String(), d.ID.String())

	// The last flush of all may be the one that sees it.
	taken, err = b.GetDevice(ctx, *other.ID)
	require.NoError(t, err)
	require.NoError(t, taken.Delete(ctx))
	trust(t, "2:0", other)
	require.NoError(t, c.Close())
}
