package pgstore_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What the owner holds may be more than the backlog has room for.
func TestP7AFullBacklogIsNoReasonNotToWriteAgain(t *testing.T) {
	t.Parallel()
	m := newMoving(t, func(cfg *pgstore.Config) { cfg.BatchSize, cfg.PendingLimit = 10, 20 })
	m.remember()
	for i := range 50 {
		trust(t, fmt.Sprintf("%d:0", i), m.d)
	}
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	trust(t, "after:0", m.d)
	require.NoError(t, m.c.Flush(within(t, 20*time.Second)))
	require.Equal(t, 1, trusted(t, m.dsn, "49:0"))
	require.NoError(t, m.c.Close())
}

// A message that was decrypted and not dealt with is given to the handler again, whatever the database has lost.
func TestP2WhatIsBufferedIsWrittenAgain(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	m.remember()
	require.NoError(t, m.d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("hello"), time.Now()))
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	trust(t, "after:0", m.d)
	require.NoError(t, m.c.Flush(ctx))
	require.Equal(t, int64(1), m.c.Stats().Replayed)
	require.NoError(t, m.c.Close())
	m.open()
	event, err := m.d.EventBuffer.GetBufferedEvent(ctx, [32]byte{1})
	require.NoError(t, err)
	require.NotNil(t, event)
	require.Equal(t, "hello", string(event.Plaintext))
}

// Healing takes several flushes, and a crash may come between two of them.
func TestP4ACrashBetweenTwoFlushesOfAHealHealsAgain(t *testing.T) {
	t.Parallel()
	few := func(cfg *pgstore.Config) { cfg.BatchSize = 10 }
	m := newMoving(t, few)
	made, err := m.d.PreKeys.GetOrGenPreKeys(ctx, 50)
	require.NoError(t, err)
	require.NoError(t, m.d.PreKeys.MarkPreKeysAsUploaded(ctx, made[49].KeyID))
	require.NoError(t, m.c.Close())
	require.NoError(t, execSQL(t, m.dsn, `UPDATE fake.timeline SET n = n + 1`,
		`CREATE FUNCTION fake.once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT max(seq) - min(abandon_through) FROM whatsmeow.instances) > 1 THEN RAISE 'not now' USING ERRCODE = '57014'; END IF;
			RETURN new;
		END $$`,
		`CREATE TRIGGER once BEFORE UPDATE ON whatsmeow.auth_keys FOR EACH ROW EXECUTE FUNCTION fake.once()`))
	m.open(few)
	require.Equal(t, int64(1), m.c.Stats().Healed)
	time.Sleep(500 * time.Millisecond)
	m.die()
	require.NoError(t, execSQL(t, m.dsn, `DROP TRIGGER once ON whatsmeow.auth_keys`))
	m.open(few)
	require.Equal(t, int64(1), m.c.Stats().Healed)
	count, err := m.d.PreKeys.UploadedPreKeyCount(ctx)
	require.NoError(t, err)
	require.Zero(t, count)
}

// Pre-keys were published, and all that is left of the device is its pairing.
func TestP5PreKeyIDsDoNotComeBackWithAFreshPairing(t *testing.T) {
	t.Parallel()
	dsn, failOver := onTimelines(t)
	c := reopen(t, dsn)
	d := pair(t, c.NewDevice())
	require.NoError(t, c.Close())
	failOver()
	d = mustDevice(t, reopen(t, dsn), *d.ID)
	made, err := d.PreKeys.GetOrGenPreKeys(ctx, 1)
	require.NoError(t, err)
	require.Greater(t, made[0].KeyID, uint32(100_000))
}

func TestP4PreKeysThatAreNotInMemoryCountAsNone(t *testing.T) {
	t.Parallel()
	m := newMoving(t, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 })
	made, err := m.d.PreKeys.GetOrGenPreKeys(ctx, 5)
	require.NoError(t, err)
	require.NoError(t, m.d.PreKeys.MarkPreKeysAsUploaded(ctx, made[4].KeyID))
	m.remember()
	trust(t, "1:0", m.d)
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	trust(t, "2:0", m.d)
	require.NoError(t, m.c.Flush(ctx))
	require.Equal(t, int64(1), m.c.Stats().Replayed)
	count, err := m.d.PreKeys.UploadedPreKeyCount(ctx)
	require.NoError(t, err)
	require.Zero(t, count)
}

// A machine that was suspended does not see by its own clock that its lease has lapsed.
func TestP4ALeaseThatLapsedUnseenKeepsNoChains(t *testing.T) {
	t.Parallel()
	long := func(cfg *pgstore.Config) { cfg.Takes, cfg.Lease = pgstore.RespectLease, time.Hour }
	m := newMoving(t, long)
	m.send("one")
	m.remember()
	sender := *m.sender
	sleeper := &moving{sender: &sender, seen: m.seen}
	require.NoError(t, execSQL(t, m.dsn, `UPDATE whatsmeow.processes SET expires = clock_timestamp() - interval '1 minute'`))
	m.open(long)
	for i := range 200 {
		m.send(fmt.Sprint("another ", i))
	}
	m.die()
	sleeper.goBack(true)
	for i := range 200 {
		sleeper.send(fmt.Sprint("awake ", i))
	}
}

// barred holds up the first statement that contains a text.
type barred struct {
	text          string
	once          sync.Once
	reached, open chan struct{}
}

func (g *barred) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, g.text) {
		g.once.Do(func() {
			close(g.reached)
			<-g.open
		})
	}
	return ctx
}

func (g *barred) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// While an instance is taken anew, its device is asked for.
func TestP6WhoAsksForADeviceDuringAReplayDoesNotStopIt(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	g := &barred{text: "SELECT key_type, key_id FROM", reached: make(chan struct{}), open: make(chan struct{})}
	cfg.ConnConfig.Tracer = g
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close) // after the container
	c := reopen(t, "", func(cfg *pgstore.Config) { cfg.Pool = pool })
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.instances SET seq = seq - 1`))
	trust(t, "2:0", d)
	<-g.reached // it is taken anew
	_, err = c.GetDevice(ctx, *d.ID)
	close(g.open)
	require.NoError(t, err)
	require.NoError(t, c.Flush(within(t, 10*time.Second)))
	trust(t, "3:0", d)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, trusted(t, dsn, "2:0"))
}

// What cannot be taken anew yet holds up nobody else.
func TestP7AReplayThatFailsHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	dsn, failOver := onTimelines(t)
	c := reopen(t, dsn)
	devices := make([]*store.Device, 5)
	for i := range devices {
		devices[i] = pair(t, c.NewDevice())
	}
	require.NoError(t, c.Flush(ctx))
	first := slices.MinFunc(devices, func(a, b *store.Device) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	require.NoError(t, execSQL(t, dsn,
		`CREATE FUNCTION fake.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.epoch <> old.epoch THEN RAISE 'not now' USING ERRCODE = '57014'; END IF; RETURN new; END $$`,
		`CREATE TRIGGER no BEFORE UPDATE ON whatsmeow.instances FOR EACH ROW WHEN (old.id = '`+first.ID.String()+`') EXECUTE FUNCTION fake.no()`))
	failOver()
	atOnce(t, dsn, func() { trust(t, "1:0", devices...) })
	require.Eventually(t, func() bool { return trusted(t, dsn, "1:0") == len(devices)-1 }, 10*time.Second, 10*time.Millisecond)
	require.EqualValues(t, len(devices)-1, c.Stats().Replayed)
	require.NoError(t, execSQL(t, dsn, `DROP TRIGGER no ON whatsmeow.instances`))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, len(devices), trusted(t, dsn, "1:0"))
}

func TestP9ADeviceIsDeletedThoughItsDatabaseWentBack(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	m.remember()
	require.NoError(t, m.c.Close())
	m.open()
	trust(t, "1:0", m.d)
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	require.NoError(t, m.d.Delete(within(t, 10*time.Second)))
	require.Zero(t, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.instances`))
	require.NoError(t, m.c.Close())
}

// A session that was deleted has no value in memory, but may have one on its way, and a crash may come before the deletion.
func TestP4ADeletedSessionThatIsStillToBeFlushedIsGivenUp(t *testing.T) {
	t.Parallel()
	m := newMoving(t, func(cfg *pgstore.Config) { cfg.BatchSize, cfg.Sends = 1, pgstore.WriteBehind })
	m.send("one")
	m.remember()
	for i := range 3 {
		m.send(fmt.Sprint(i))
	}
	require.NoError(t, m.c.Flush(ctx))
	conn, err := pgx.Connect(ctx, m.dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	for _, s := range []string{`BEGIN`, `LOCK TABLE whatsmeow.instances`} {
		_, err = conn.Exec(ctx, s)
		require.NoError(t, err)
	}
	trust(t, "first:0", m.d) // its flush hangs
	time.Sleep(100 * time.Millisecond)
	_, err = m.ours.Send(ctx, []types.JID{m.peer.Address()}, []byte("pending"))
	require.NoError(t, err)
	require.NoError(t, m.d.Sessions.DeleteSession(ctx, m.peer.Address().SignalAddress().String()))
	for _, s := range []string{
		`DELETE FROM whatsmeow.instances`, `INSERT INTO whatsmeow.instances SELECT * FROM saved.instances`, `INSERT INTO whatsmeow.auth_keys SELECT * FROM saved.auth_keys`,
		`UPDATE fake.timeline SET n = n + 1`,
		`CREATE FUNCTION fake.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF old.key_type = 'session' THEN RAISE 'not now' USING ERRCODE = '57014'; END IF; RETURN old; END $$`,
		`CREATE TRIGGER no BEFORE DELETE ON whatsmeow.auth_keys FOR EACH ROW EXECUTE FUNCTION fake.no()`,
		`COMMIT`,
	} {
		_, err = conn.Exec(ctx, s)
		require.NoError(t, err)
	}
	const flushed = `SELECT count(*) FROM whatsmeow.auth_keys k JOIN whatsmeow.instances i ON i.id = k.instance_id WHERE key_type = 'session' AND k.seq > abandon_through`
	require.Eventually(t, func() bool { return scalar[int](t, m.dsn, flushed) == 1 }, 10*time.Second, time.Millisecond)
	require.Equal(t, 1, scalar[int](t, m.dsn, flushed+` AND jsonb_array_length(data->'abandoned') > 0`))
	require.NoError(t, execSQL(t, m.dsn, `DROP TRIGGER no ON whatsmeow.auth_keys`))
}

// A deletion that waits for a take sees the row as it was before it.
func TestP6ADeletionThatATakeComesBeforeDeletesNothing(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // it has lost the instance
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, c.Flush(ctx))
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	for _, s := range []string{`BEGIN`, `UPDATE whatsmeow.instances SET epoch = epoch + 1`} {
		_, err = conn.Exec(ctx, s)
		require.NoError(t, err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- d.Delete(ctx) }()
	require.Eventually(t, func() bool {
		return scalar[int](t, dsn, `SELECT count(*) FROM pg_locks WHERE NOT granted AND database IS NULL AND pid IN
			(SELECT pid FROM pg_stat_activity WHERE datname = current_database())`) > 0
	}, 10*time.Second, time.Millisecond)
	_, err = conn.Exec(ctx, `COMMIT`)
	require.NoError(t, err)
	require.ErrorIs(t, <-deleted, pgstore.ErrOwnershipLost)
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances`))
}

// What is reported as durable has all behind it that was durable before, also while the rows are still being written again.
func TestP5NothingIsDurableBeforeWhatCameBeforeItIsSoAgain(t *testing.T) {
	t.Parallel()
	m := newMoving(t, func(cfg *pgstore.Config) {
		cfg.BatchSize, cfg.SynchronousTypes = 10, []string{"app_state_key"}
	})
	m.remember()
	for i := range 100 {
		trust(t, fmt.Sprintf("%d:0", i), m.d)
	}
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	require.Zero(t, trusted(t, m.dsn, "99:0"))
	require.NoError(t, m.d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte("key"), Fingerprint: []byte("print")}))
	require.Equal(t, 100, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity' AND key_id LIKE '%:0'`))
	require.Zero(t, m.c.Stats().Batcher.Retries, "it was not waited for in between")
	require.NoError(t, m.c.Close())
}

// The client does not store a pair again that it has stored, and without it a message has no address.
func TestP2LIDPairsAreWrittenAgain(t *testing.T) {
	t.Parallel()
	for _, alive := range []bool{true, false} {
		t.Run(fmt.Sprintf("the owner lives: %t", alive), func(t *testing.T) {
			t.Parallel()
			m := newMoving(t, func(cfg *pgstore.Config) { cfg.BatchSize = 10 })
			other := process(t, m.dsn)
			m.remember()
			pn := func(n int) types.JID { return types.NewJID(fmt.Sprint("4917", n), types.DefaultUserServer) }
			lid := func(n int) types.JID { return types.NewJID(fmt.Sprint("8817", n), types.HiddenUserServer) }
			for i := range 50 {
				require.NoError(t, other.LIDMap.PutLIDMapping(ctx, lid(i), pn(i)))
				require.NoError(t, m.c.LIDMap.PutLIDMapping(ctx, lid(i), pn(i)))
			}
			if !alive {
				require.NoError(t, m.c.Close())
			}
			m.goBack(true)
			require.NoError(t, execSQL(t, m.dsn, `DELETE FROM whatsmeow.lid_map`))
			who := m.c
			if alive {
				require.NoError(t, other.LIDMap.PutLIDMapping(ctx, lid(100), pn(1)), "newer than what was lost")
				trust(t, "after:0", m.d)
			} else { // who takes the instance knows pairs, too
				who = other
				_ = mustDevice(t, other, *m.d.ID)
			}
			require.NoError(t, who.Flush(ctx))
			require.NoError(t, who.Flush(ctx))
			require.Equal(t, 50, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.lid_map WHERE pn LIKE '4917%'`))
			if alive {
				require.Equal(t, lid(100).User, scalar[string](t, m.dsn, `SELECT lid FROM whatsmeow.lid_map WHERE pn = $1`, pn(1).User))
			}
		})
	}
}

// A device that was paired after the moment to which the database went back has no row there. It may have been deleted by somebody else, too, so
// that it is not written again; but nobody is told that it was.
func TestP7APairingThatADatabaseHasLostIsTold(t *testing.T) {
	t.Parallel()
	for _, promoted := range []bool{true, false} {
		t.Run(fmt.Sprintf("another timeline: %t", promoted), func(t *testing.T) {
			t.Parallel()
			dsn, failOver := onTimelines(t)
			stops := make(chan pgstore.Stop, 1)
			c := process(t, dsn, func(cfg *pgstore.Config) { cfg.OnStop = func(s pgstore.Stop) { stops <- s } })
			d := pair(t, c.NewDevice())
			require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.instances`))
			if promoted {
				failOver()
			}
			trust(t, "after:0", d)
			err := c.Flush(ctx)
			if !promoted {
				require.NoError(t, err, "a device that was deleted is no failure")
				require.ErrorIs(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{}), pgstore.ErrDeviceDeleted)
				return
			}
			require.ErrorIs(t, err, pgstore.ErrDatabaseRewound)
			require.ErrorIs(t, (<-stops).Err, pgstore.ErrDatabaseRewound)
			require.ErrorIs(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{}), pgstore.ErrDatabaseRewound)
		})
	}
}

// Writing again takes several flushes, and a crash may come between two of them: whoever comes next heals, and no message key comes back.
func TestP4ACrashBetweenTwoFlushesOfAReplayHeals(t *testing.T) {
	t.Parallel()
	few := func(cfg *pgstore.Config) { cfg.BatchSize = 10 }
	m := newMoving(t)
	require.NoError(t, m.c.Close())
	m.open(few) // which may die
	m.send("one")
	m.remember()
	for i := range 10 {
		m.send(fmt.Sprint("lost ", i))
	}
	for i := range 50 {
		trust(t, fmt.Sprintf("%d:0", i), m.d)
	}
	require.NoError(t, m.c.Flush(ctx))
	m.goBack(true)
	// What is written again comes by types, identities first. The database is away from the second flush on.
	require.NoError(t, execSQL(t, m.dsn,
		`CREATE FUNCTION fake.twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT max(seq) - min(abandon_through) FROM whatsmeow.instances) > 1 THEN RAISE 'not now' USING ERRCODE = '57014'; END IF;
			RETURN new;
		END $$`,
		`CREATE TRIGGER twice BEFORE INSERT OR UPDATE ON whatsmeow.auth_keys FOR EACH ROW EXECUTE FUNCTION fake.twice()`))
	trust(t, "after:0", m.d)
	require.Eventually(t, func() bool { return m.c.Stats().Batcher.Retries > 0 }, 20*time.Second, time.Millisecond)
	require.Equal(t, int64(1), m.c.Stats().Replayed)
	again := scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity'`)
	m.die()
	require.NoError(t, execSQL(t, m.dsn, `DROP TRIGGER twice ON whatsmeow.auth_keys`))
	require.Less(t, again, 50, "not all was written again")
	m.open(few)
	require.Equal(t, int64(1), m.c.Stats().Healed)
	require.True(t, m.send("on a new session"))
	require.False(t, m.send("and on that"))
}
