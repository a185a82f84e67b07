package soak

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// fault is a bad moment of the database or of the way to it. It is over when the function returns.
type fault struct {
	name   string
	happen func(t testing.TB, b *badDays)
}

// badDays makes faults happen, one at a time.
type badDays struct {
	dsn       string // around the proxy
	network   *pgtest.Proxy
	rng       *rand.Rand
	instances []string // ids to choose one from
}

func (b *badDays) moment(longest time.Duration) time.Duration {
	return time.Duration(b.rng.Int64N(int64(longest)))
}

var faults = []fault{
	{"the database is away", func(_ testing.TB, b *badDays) {
		b.network.Down()
		time.Sleep(b.moment(2 * time.Second))
		b.network.Up()
	}},
	{"connections hang", func(_ testing.TB, b *badDays) {
		b.network.Hang()
		time.Sleep(b.moment(2 * time.Second))
		b.network.Heal()
	}},
	{"connections are cut while the server answers", func(_ testing.TB, b *badDays) {
		b.network.CutAfter(b.rng.IntN(2000), true)
		time.Sleep(b.moment(time.Second))
		b.network.Heal()
	}},
	{"connections are cut while the server is asked", func(_ testing.TB, b *badDays) {
		b.network.CutAfter(b.rng.IntN(20_000), false)
		time.Sleep(b.moment(time.Second))
		b.network.Heal()
	}},
	{"all connections are terminated", func(t testing.TB, b *badDays) { b.exec(t, terminateOthers) }},
	{"the table is locked", func(t testing.TB, b *badDays) {
		b.exec(t, `BEGIN`, `LOCK TABLE whatsmeow.auth_keys IN ACCESS EXCLUSIVE MODE`, `SELECT pg_sleep(0.5)`, `COMMIT`)
	}},
	{"the database is read-only", func(t testing.TB, b *badDays) {
		b.exec(t, alterDatabase(`SET default_transaction_read_only = on`), terminateOthers)
		time.Sleep(b.moment(time.Second))
		b.exec(t, `SET default_transaction_read_only = off`, alterDatabase(`RESET default_transaction_read_only`), terminateOthers)
	}},
	{"statements time out", func(t testing.TB, b *badDays) {
		b.exec(t, alterDatabase(`SET statement_timeout = '5ms'`), terminateOthers)
		time.Sleep(b.moment(time.Second))
		b.exec(t, `SET statement_timeout = 0`, alterDatabase(`RESET statement_timeout`), terminateOthers)
	}},
	{"the disk is full", refuse("53100")},
	{"deadlocks", refuse("40P01")},
	{"serialization failures", refuse("40001")},
	{"the database refuses an instance for good", refuseForGood},
	{"somebody spoils a row", func(t testing.TB, b *badDays) { // it is found when the instance is opened again
		b.exec(t, `INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq)
			SELECT id, 'identity', 'spoilt:0', '{}', seq FROM whatsmeow.instances WHERE id = '`+b.instances[b.rng.IntN(len(b.instances))]+`' ON CONFLICT DO NOTHING`)
	}},
}

// refuseForGood stops an instance of its own, loudly; the others go on.
func refuseForGood(t testing.TB, b *badDays) {
	ctx := context.Background()
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: b.dsn, Owner: "refused"})
	require.NoError(t, err)
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	b.exec(t,
		`CREATE OR REPLACE FUNCTION public.fail_for_good() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '23514'; END $$`,
		`CREATE TRIGGER fail_for_good BEFORE INSERT OR UPDATE ON whatsmeow.auth_keys FOR EACH ROW WHEN (NEW.instance_id = '`+d.ID.String()+`') EXECUTE FUNCTION public.fail_for_good()`)
	require.ErrorIs(t, d.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": []byte("refused")}), pgstore.ErrRefused)
	b.exec(t, `DROP TRIGGER fail_for_good ON whatsmeow.auth_keys`)
	require.ErrorContains(t, c.Close(), d.ID.String(), "it says whose writes are not saved")
}

const terminateOthers = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`

func alterDatabase(what string) string {
	return `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I ' || $what$` + what + `$what$, current_database()); END $$`
}

// refuse lets the table refuse the writes of one instance for a while.
func refuse(sqlstate string) func(testing.TB, *badDays) {
	return func(t testing.TB, b *badDays) {
		instance := b.instances[b.rng.IntN(len(b.instances))]
		b.exec(t,
			`CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '`+sqlstate+`'; END $$`,
			`CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON whatsmeow.auth_keys FOR EACH ROW WHEN (NEW.instance_id = '`+instance+`') EXECUTE FUNCTION public.fail()`)
		time.Sleep(b.moment(time.Second))
		b.exec(t, `DROP TRIGGER fail ON whatsmeow.auth_keys`)
	}
}

func (b *badDays) exec(t testing.TB, statements ...string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, b.dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	for _, s := range statements {
		_, err = conn.Exec(ctx, s)
		require.NoError(t, err, s)
	}
}
