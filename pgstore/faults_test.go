package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// behind is a configuration in which nothing waits for the database.
func behind(cfg *pgstore.Config) {
	cfg.Sends, cfg.OutageWait = pgstore.WriteBehind, 10*time.Millisecond
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	limited, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return limited
}

func TestP12DatabaseDownAtNewNamesHostAndDatabaseAndNotThePassword(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://ada:hunter2@127.0.0.1:1/engines?sslmode=disable",
		"host=127.0.0.1,127.0.0.1 port=1,2 user=ada password=hunter2 dbname=engines target_session_attrs=read-write",
		"postgres://ada:hunter2@127.0.0.1:notaport/engines",
	} {
		_, err := pgstore.New(within(t, 20*time.Second), dsn, nil)
		require.ErrorContains(t, err, "127.0.0.1")
		require.ErrorContains(t, err, "engines")
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestP7AnOutageStopsNoMessageAndDropsNothing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind)
	d := pair(t, c.NewDevice())
	ours, theirs := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	signaltest.Meet(t, theirs, ours)
	require.NoError(t, c.Flush(ctx))
	network.Down()
	for i := range 100 {
		signaltest.Say(t, theirs, ours, fmt.Sprint("in ", i))
		signaltest.Say(t, ours, theirs, fmt.Sprint("out ", i))
		_, _, err := d.Contacts.PutPushName(ctx, *d.ID, fmt.Sprint("name ", i))
		require.NoError(t, err)
	}
	require.ErrorIs(t, c.Flush(within(t, 100*time.Millisecond)), context.DeadlineExceeded)
	_, _, err := d.MsgSecrets.GetMessageSecret(within(t, 100*time.Millisecond), *d.ID, *d.ID, "A")
	require.Error(t, err, "unreachable is not absent")
	require.ErrorIs(t, err, context.Canceled, "the client must not acknowledge")
	network.Up()
	require.NoError(t, c.Flush(within(t, 30*time.Second)))
	require.Equal(t, "name 99", scalar[string](t, dsn, `SELECT data->>'push_name' FROM whatsmeow.auth_keys WHERE key_type = 'contact'`))
	session, err := d.Sessions.GetSession(ctx, theirs.Address().SignalAddress().String())
	require.NoError(t, err)
	require.Equal(t, string(session), scalar[string](t, dsn, `SELECT data->>'record' FROM whatsmeow.auth_keys WHERE key_type = 'session'`))
}

// Of two keys that are raised in turn during an outage, the table never shows the second ahead of the first, nor behind it by more than one.
func TestP3WhatWaitedInAnOutageIsSavedInOrder(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind, func(cfg *pgstore.Config) { cfg.BatchSize = 10 }) // so that many segments wait
	d := pair(t, c.NewDevice())
	jid := func(user string) types.JID { return types.NewJID(user, types.DefaultUserServer) }
	network.Down()
	const rounds = 1000
	for n := range rounds {
		for _, user := range []string{"a", "b", fmt.Sprint("filler ", n)} {
			require.NoError(t, d.Contacts.PutContactName(ctx, jid(user), "", fmt.Sprint(n+1)))
		}
	}
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	network.Up()
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush(within(t, time.Minute)) }()
	moments := map[int]bool{}
	for last := 0; last < rounds; {
		var a, b int
		require.NoError(t, conn.QueryRow(ctx, `SELECT
			coalesce(max((data->>'full_name')::int) FILTER (WHERE key_id LIKE 'a@%'), 0), coalesce(max((data->>'full_name')::int) FILTER (WHERE key_id LIKE 'b@%'), 0)
			FROM whatsmeow.auth_keys WHERE key_type = 'contact'`).Scan(&a, &b))
		require.GreaterOrEqual(t, a, b)
		require.GreaterOrEqual(t, b, a-1)
		require.GreaterOrEqual(t, a, last)
		last = b
		moments[a] = true
	}
	require.NoError(t, <-flushed)
	require.Greater(t, len(moments), 3, "it was watched on its way")
}

// With the default settings, too, an outage stops no first message of a new contact, and no sender key of a group, after OutageWait.
func TestP7AnOutageStopsNoFirstMessage(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN)
	d := pair(t, c.NewDevice())
	ours, theirs := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	group := types.NewJID("12345", types.GroupServer)
	first, err := theirs.Meet(ctx, ours, []byte("hello")) // from what our device published
	require.NoError(t, err)
	distribution, err := theirs.JoinGroup(ctx, group)
	require.NoError(t, err)
	inGroup, err := theirs.SendGroup(ctx, group, []byte("hello, all"))
	require.NoError(t, err)

	network.Down()
	got, err := ours.Receive(ctx, theirs.Address(), first)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	began := time.Now()
	require.NoError(t, ours.Welcome(ctx, group, theirs.Address(), distribution))
	require.GreaterOrEqual(t, time.Since(began), pgstore.DefaultOutageWait, "the server sends it once")
	got, err = ours.ReceiveGroup(ctx, group, theirs.Address(), inGroup)
	require.NoError(t, err)
	require.Equal(t, "hello, all", string(got))
	network.Up()
	require.NoError(t, c.Close())

	d, err = reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	ours = signaltest.NewPeer(d)
	signaltest.Say(t, ours, theirs, "hello to you")
	inGroup, err = theirs.SendGroup(ctx, group, []byte("still there"))
	require.NoError(t, err)
	got, err = ours.ReceiveGroup(ctx, group, theirs.Address(), inGroup)
	require.NoError(t, err)
	require.Equal(t, "still there", string(got))
}

func TestP7WritersBlockAtTheLimitAndGoOnWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind, func(cfg *pgstore.Config) { cfg.PendingLimit = 10 })
	d := pair(t, c.NewDevice())
	network.Down()
	put := func(ctx context.Context, i int) error {
		return d.Identities.PutIdentity(ctx, fmt.Sprintf("%d:0", i), [32]byte{byte(i)})
	}
	for i := range 10 {
		require.NoError(t, put(ctx, i))
	}
	require.ErrorIs(t, put(within(t, 100*time.Millisecond), 10), context.DeadlineExceeded)
	blocked := make(chan error, 1)
	go func() { blocked <- put(ctx, 11) }()
	require.Eventually(t, func() bool { return c.Stats().Batcher.Blocked == 1 }, 10*time.Second, time.Millisecond)
	network.Up()
	require.NoError(t, <-blocked)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 11, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity'`))
}

// Few keys may be many bytes, and so may one key that is written over and over while its flush is under way.
func TestP7WritersBlockAtTheLimitOfBytes(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	const limit = 1 << 20
	c := reopen(t, network.DSN, behind, func(cfg *pgstore.Config) { cfg.PendingBytes = limit })
	d := pair(t, c.NewDevice())
	require.NoError(t, c.Flush(ctx))
	network.Down()
	put := func(ctx context.Context, who, size int) error {
		_, _, err := d.Contacts.PutPushName(ctx, types.NewJID(fmt.Sprint(who), types.DefaultUserServer), strings.Repeat("n", size))
		return err
	}
	name := func(who int) string {
		contact, err := d.Contacts.GetContact(ctx, types.NewJID(fmt.Sprint(who), types.DefaultUserServer))
		require.NoError(t, err)
		return contact.PushName
	}
	for i := range 3 {
		require.NoError(t, put(ctx, i, limit/4))
	}
	stats := c.Stats().Batcher
	require.Equal(t, 3, stats.Pending)
	require.Greater(t, stats.PendingBytes, int64(3*limit/4))
	require.Less(t, stats.PendingBytes, int64(limit))
	err := put(within(t, 100*time.Millisecond), 0, limit/4+1) // the old name is on its way
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, name(0), limit/4, "nothing was written")
	blocked := make(chan error, 2)
	for i := range cap(blocked) {
		go func() { blocked <- put(ctx, 3+i, 3*limit) }() // more than there ever is
	}
	require.Eventually(t, func() bool { return c.Stats().Batcher.Blocked == 2 }, 10*time.Second, time.Millisecond)
	network.Up()
	for range cap(blocked) {
		require.NoError(t, <-blocked)
	}
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, c.Stats().Batcher.PendingBytes)
	require.Equal(t, 5, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'contact' AND length(data->>'push_name') >= $1`, limit/4))
}

func TestP7CloseSaysHowManyWritesOfWhichInstanceAreLost(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.New(ctx, network.DSN, nil)
	require.NoError(t, err)
	devices := []*store.Device{pair(t, c.NewDevice()), pair(t, c.NewDevice()), pair(t, c.NewDevice())}
	network.Down()
	want := map[string]int{}
	for n, d := range devices[:2] {
		want[d.ID.String()] = n + 1
		for i := range n + 1 {
			require.NoError(t, d.Identities.PutIdentity(ctx, fmt.Sprintf("%d:0", i), [32]byte{1}))
		}
	}
	var unsaved *batcher.UnsavedError
	require.ErrorAs(t, c.Shutdown(within(t, 300*time.Millisecond)), &unsaved)
	require.Equal(t, want, unsaved.Pending)
}

// The connection is cut after 0, 7, 14 … bytes that the server sends: also after the commit and before its answer, so that the result is unknown.
func TestP3AFlushCutAtEveryPointDoesNoHarm(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind)
	d := pair(t, c.NewDevice())
	for _, fromServer := range []bool{true, false} {
		step, survived := 7, false
		if !fromServer {
			step = 150
		}
		for n, round := 0, 0; !survived; n, round = n+step, round+1 {
			require.NoError(t, c.Flush(ctx))
			network.CutAfter(n, fromServer)
			before := c.Stats().Batcher.Retries
			group := func(name string) {
				require.NoError(t, d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
					for i := range 3 {
						if err := d.Contacts.PutContactName(ctx, types.NewJID(fmt.Sprint(i), types.DefaultUserServer), name, name); err != nil {
							return err
						}
					}
					return nil
				}))
			}
			group(fmt.Sprintf("%t %d", fromServer, round))
			done := make(chan error, 1)
			go func() { done <- c.Flush(ctx) }()
			require.Eventually(t, func() bool {
				survived = len(done) > 0
				return survived || c.Stats().Batcher.Retries > before
			}, 20*time.Second, 100*time.Microsecond)
			network.Heal()
			require.NoError(t, <-done)
			require.Equal(t, fmt.Sprintf("3 %t %d", fromServer, round), scalar[string](t, dsn,
				`SELECT count(*) || ' ' || min(data->>'full_name') FROM whatsmeow.auth_keys WHERE key_type = 'contact' GROUP BY data->>'full_name'`))
		}
	}
}

// failWith lets the table refuse writes of an instance with an SQLSTATE, as the server itself would.
func failWith(t testing.TB, dsn, sqlstate, instance string) {
	t.Helper()
	require.NoError(t, execSQL(t, dsn,
		`CREATE OR REPLACE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '`+sqlstate+`'; END $$`,
		`DROP TRIGGER IF EXISTS fail ON whatsmeow.auth_keys`,
		`CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON whatsmeow.auth_keys FOR EACH ROW WHEN (NEW.instance_id = '`+instance+`') EXECUTE FUNCTION public.fail()`))
}

func unfail(t testing.TB, dsn string) {
	t.Helper()
	require.NoError(t, execSQL(t, dsn, `DROP TRIGGER fail ON whatsmeow.auth_keys`))
}

func TestP7WhatPassesIsRetried(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, behind)
	d := pair(t, c.NewDevice())
	put := func(i int) {
		require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{byte(i)}))
	}
	for i, state := range []string{
		"53100", // disk full
		"53300", // too many connections
		"57014", // statement timeout
		"57P01", // administrator shutdown
		"40001", // serialization failure
		"40P01", // deadlock
		"55P03", // lock not available
		"25006", // read only: a standby
		"58030", // I/O error
		"XX000", // internal error
	} {
		failWith(t, dsn, state, d.ID.String())
		before := c.Stats().Batcher.Retries
		put(i)
		require.Eventually(t, func() bool { return c.Stats().Batcher.Retries > before }, 10*time.Second, time.Millisecond, state)
		unfail(t, dsn)
		require.NoError(t, c.Flush(within(t, 10*time.Second)), state)
	}
	// And the real thing: the database turns read-only, and a lock outlasts the statement's time.
	name := scalar[string](t, dsn, `SELECT current_database()`)
	require.NoError(t, execSQL(t, dsn, "ALTER DATABASE "+name+" SET default_transaction_read_only = on",
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`))
	put(100)
	require.ErrorIs(t, c.Flush(within(t, 300*time.Millisecond)), context.DeadlineExceeded)
	require.NoError(t, execSQL(t, dsn, "SET default_transaction_read_only = off", "ALTER DATABASE "+name+" RESET default_transaction_read_only",
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`))
	require.NoError(t, c.Flush(within(t, 20*time.Second)))
}

func TestP7ALockThatOutlastsTheStatementTimeoutIsWaitedFor(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, behind, func(cfg *pgstore.Config) { cfg.DSN = withQuery(t, cfg.DSN, "statement_timeout", "100ms") })
	d := pair(t, c.NewDevice())
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.Eventually(t, func() bool { return c.Stats().Batcher.Retries >= 2 }, 10*time.Second, time.Millisecond)
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, c.Flush(within(t, 10*time.Second)))
}

func TestP10WhatDoesNotPassStopsThatInstanceAlone(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]func(t *testing.T, dsn, instance string){
		"a CHECK": func(t *testing.T, dsn, instance string) {
			require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.auth_keys ADD CHECK (instance_id <> '`+instance+`') NOT VALID`))
		},
		"no right":     func(t *testing.T, dsn, instance string) { failWith(t, dsn, "42501", instance) },
		"bad data":     func(t *testing.T, dsn, instance string) { failWith(t, dsn, "22P05", instance) },
		"foreign key":  func(t *testing.T, dsn, instance string) { failWith(t, dsn, "23503", instance) },
		"not a column": func(t *testing.T, dsn, instance string) { failWith(t, dsn, "42703", instance) },
		"too much":     func(t *testing.T, dsn, instance string) { failWith(t, dsn, "54000", instance) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			var logged lockedBuffer
			c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Sends: pgstore.WriteBehind, Logger: textLogger(&logged)})
			require.NoError(t, err)
			guilty := pair(t, c.NewDevice())
			var others []*store.Device
			for range 3 {
				others = append(others, pair(t, c.NewDevice()))
			}
			spoil(t, dsn, guilty.ID.String())
			secret := strings.Repeat("s3cret", 5)
			for _, d := range append(slices.Clone(others), guilty) {
				require.NoError(t, d.Sessions.PutSession(ctx, "1:0", []byte(secret)))
			}
			for _, d := range others {
				require.Eventually(t, func() bool {
					return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session' AND instance_id = $1`, d.ID.String()) == 1
				}, 20*time.Second, 10*time.Millisecond)
				require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
			}
			var refused error
			require.Eventually(t, func() bool {
				refused = guilty.Identities.PutIdentity(ctx, "1:0", [32]byte{1})
				return refused != nil
			}, 20*time.Second, 10*time.Millisecond)
			require.ErrorIs(t, refused, pgstore.ErrRefused)
			require.ErrorIs(t, refused, context.Canceled)
			require.Contains(t, logged.String(), "instance stopped")
			var unsaved *batcher.UnsavedError
			err = c.Close()
			require.ErrorAs(t, err, &unsaved)
			require.Len(t, unsaved.Pending, 1)
			require.NotContains(t, logged.String()+err.Error()+refused.Error(), "s3cret")
		})
	}
}

func TestP10AMissingTableStopsLoudly(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Sends: pgstore.WriteBehind})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.auth_keys RENAME TO gone`))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.ErrorIs(t, c.Flush(ctx), pgstore.ErrRefused)
	require.ErrorIs(t, c.Close(), pgstore.ErrRefused)
}

// recorder keeps the flush statements that were sent.
type recorder struct {
	mu      sync.Mutex
	flushes []pgx.TraceQueryStartData
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "WITH lane AS") {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.flushes = append(r.flushes, data)
	}
	return ctx
}

func (r *recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A flush that hung in some half-open connection arrives when others were sent and committed after it.
func TestP6AFlushThatArrivesLateChangesNothing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	r := new(recorder)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = r
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close) // after the container
	c := reopen(t, "", behind, func(cfg *pgstore.Config) { cfg.Pool = pool })
	d := pair(t, c.NewDevice())
	for i := range 3 {
		require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{byte(i)}))
		require.NoError(t, d.Identities.PutIdentity(ctx, fmt.Sprintf("only in %d:0", i), [32]byte{byte(i)}))
		require.NoError(t, d.Identities.DeleteIdentity(ctx, fmt.Sprintf("only in %d:0", i-1)))
		require.NoError(t, c.Flush(ctx))
	}
	const state = `SELECT md5(string_agg(k::text, ',' ORDER BY key_type, key_id)) || (SELECT seq FROM whatsmeow.instances) FROM whatsmeow.auth_keys k`
	before := scalar[string](t, dsn, state)
	require.GreaterOrEqual(t, len(r.flushes), 3)
	for _, late := range r.flushes {
		args := slices.DeleteFunc(slices.Clone(late.Args), func(a any) bool { _, isMode := a.(pgx.QueryExecMode); return isMode })
		rows, err := pool.Query(ctx, late.SQL, append([]any{pgx.QueryExecModeExec}, args...)...)
		require.NoError(t, err)
		require.False(t, rows.Next(), "no lane holds")
		rows.Close()
		require.NoError(t, rows.Err())
	}
	require.Equal(t, before, scalar[string](t, dsn, state))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{9}))
	require.NoError(t, c.Flush(ctx))
}

func TestP3AHugeBacklogGoesOutInPiecesAndHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, withQuery(t, network.DSN, "statement_timeout", "300ms"), behind)
	big, small := pair(t, c.NewDevice()), pair(t, c.NewDevice())
	network.Down()
	const keys = 100_000
	for i := range keys / 1000 {
		var contacts []store.ContactEntry
		for n := range 1000 {
			contacts = append(contacts, store.ContactEntry{JID: types.NewJID(fmt.Sprint(i*1000+n), types.DefaultUserServer), FirstName: "n"})
		}
		require.NoError(t, big.Contacts.PutAllContactNames(ctx, contacts))
	}
	require.GreaterOrEqual(t, c.Stats().Batcher.Pending, keys)
	before := c.Stats().Batcher.Flushes
	network.Up()
	_, err := small.PreKeys.GenOnePreKey(within(t, 60*time.Second))
	require.NoError(t, err)
	require.Positive(t, c.Stats().Batcher.Pending, "the other's barrier came through first")
	require.NoError(t, c.Flush(within(t, 2*time.Minute)), "it would not end if its pieces did not fit the statement_timeout")
	require.GreaterOrEqual(t, c.Stats().Batcher.Flushes-before, int64(keys/1000), "in pieces")
	require.Equal(t, keys, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'contact'`))
}

// A first history sync names tens of thousands in one call, which no statement_timeout would let through as one group.
func TestP3AHugeCallGoesOutInPieces(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c := reopen(t, withQuery(t, dsn, "statement_timeout", "300ms"), behind)
	d := pair(t, c.NewDevice())
	const keys = 50_000
	var contacts []store.ContactEntry
	var phones []store.RedactedPhoneEntry
	var secrets []store.MessageSecretInsert
	var tokens []store.PrivacyToken
	for i := range keys {
		jid := types.NewJID(fmt.Sprint(i), types.DefaultUserServer)
		contacts = append(contacts, store.ContactEntry{JID: jid, FirstName: "first"})
		phones = append(phones, store.RedactedPhoneEntry{JID: jid, RedactedPhone: "+1"})
		secrets = append(secrets, store.MessageSecretInsert{Chat: jid, Sender: jid, ID: "A", Secret: []byte("first")})
		tokens = append(tokens, store.PrivacyToken{User: jid, Token: []byte("first"), Timestamp: time.Unix(2, 0)})
	}
	// Those that are named again, much later in the call.
	contacts = append(contacts, store.ContactEntry{JID: contacts[0].JID, FirstName: "second"})
	secrets = append(secrets, store.MessageSecretInsert{Chat: contacts[0].JID, Sender: contacts[0].JID, ID: "A", Secret: []byte("second")})
	tokens = append(tokens, store.PrivacyToken{User: contacts[0].JID, Token: []byte("older"), Timestamp: time.Unix(1, 0)})
	for _, call := range []struct {
		keyType string
		put     func() error
	}{
		{"contact", func() error { return d.Contacts.PutAllContactNames(ctx, contacts) }},
		{"contact", func() error { return d.Contacts.PutManyRedactedPhones(ctx, phones) }},
		{"message_secret", func() error { return d.MsgSecrets.PutMessageSecrets(ctx, secrets) }},
		{"privacy_token", func() error { return d.PrivacyTokens.PutPrivacyTokens(ctx, tokens...) }},
	} {
		before := c.Stats().Batcher.Flushes
		require.NoError(t, call.put(), call.keyType)
		require.NoError(t, c.Flush(within(t, time.Minute)), call.keyType)
		require.GreaterOrEqual(t, c.Stats().Batcher.Flushes-before, int64(keys/1000), "in pieces")
		require.Equal(t, keys, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = $1`, call.keyType))
	}
	contact, err := d.Contacts.GetContact(ctx, contacts[0].JID)
	require.NoError(t, err)
	require.Equal(t, types.ContactInfo{Found: true, FirstName: "first", RedactedPhone: "+1"}, contact)
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, contacts[0].JID, contacts[0].JID, "A")
	require.NoError(t, err)
	require.Equal(t, "first", string(secret))
	token, err := d.PrivacyTokens.GetPrivacyToken(ctx, contacts[0].JID)
	require.NoError(t, err)
	require.Equal(t, "first", string(token.Token))
}

// deletedUnderWrites pairs a device and deletes it while four goroutines write it.
func deletedUnderWrites(t *testing.T, c *pgstore.Container) {
	t.Helper()
	d := pair(t, c.NewDevice())
	old := *d
	var deleted atomic.Bool
	var writers sync.WaitGroup
	for g := range 4 {
		writers.Go(func() {
			for i := 0; !deleted.Load(); i++ {
				err := old.Identities.PutIdentity(ctx, fmt.Sprintf("%d:%d", i, g), [32]byte{1})
				if err != nil && !errors.Is(err, store.ErrDeviceDeleted) {
					t.Error(err)
				}
			}
		})
	}
	require.NoError(t, d.Delete(ctx))
	deleted.Store(true)
	writers.Wait()
}

func TestP9ADeviceDeletedWhileItIsFlushedStaysDeleted(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, behind)
	for range 20 {
		deletedUnderWrites(t, c)
	}
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT (SELECT count(*) FROM whatsmeow.auth_keys) + (SELECT count(*) FROM whatsmeow.instances)`))
}

func TestManyGoroutinesOpenOneInstanceOnce(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	id := *pair(t, c.NewDevice()).ID
	require.NoError(t, c.Close())
	before := scalar[int64](t, dsn, `SELECT last_value FROM whatsmeow.epochs`)
	c = reopen(t, dsn)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := c.GetDevice(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, before+1, scalar[int64](t, dsn, `SELECT last_value FROM whatsmeow.epochs`), "each take draws one")
}

func TestAForgottenCloseLosesNoPairingAndNothingFlushed(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	forgotten, err := pgstore.New(ctx, dsn, nil)
	require.NoError(t, err)
	d := pair(t, forgotten.NewDevice())
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.Eventually(t, func() bool { return forgotten.Stats().Batcher.Pending == 0 }, 10*time.Second, time.Millisecond)
	again, err := reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	trusted, err := again.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{2})
	require.NoError(t, err)
	require.False(t, trusted)
	require.Positive(t, scalar[int64](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "the take noted the unclean end")
	require.NoError(t, forgotten.Close())
}

func TestP10BadInputIsRefusedByTheCallThatGotIt(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	for field, err := range map[string]error{
		"device":           c.PutDevice(ctx, nil),
		"device is nil":    c.DeleteDevice(ctx, nil),
		" device is nil":   d.Container.PutDevice(ctx, nil),
		": device is nil":  d.Container.DeleteDevice(ctx, nil),
		"input: device is": c.Take(ctx, nil),
		"session":          d.Sessions.PutSession(ctx, "1:0", nil),
		"session is empty": d.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": {}}),
		"sender key":       d.SenderKeys.PutSenderKey(ctx, "g", "1:0", nil),
		"data":             d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Fingerprint: []byte{1}}),
		"fingerprint":      d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte{1}}),
		"MAC":              d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, []store.AppStateMutationMAC{{IndexMAC: []byte{1}}}),
		"secret":           d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, "A", nil),
		"token":            d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: *d.ID}),
		"salt":             d.NCTSalt.PutNCTSalt(ctx, nil),
		"plaintext":        d.EventBuffer.AddOutgoingEvent(ctx, *d.ID, "A", "wa", nil),
		"LID":              c.LIDMap.PutLIDMapping(ctx, *d.ID, *d.ID),
	} {
		require.ErrorIs(t, err, pgstore.ErrInvalidInput, field)
		require.ErrorContains(t, err, field)
	}
	for _, id := range []string{"", "nul\x00", "broken\xff", strings.Repeat("x", 1001)} {
		_, err := c.Instance(ctx, id)
		require.ErrorIs(t, err, pgstore.ErrInvalidInput)
	}
	refused := func(field string, spoil func(*store.Device)) {
		bad := c.NewDevice()
		signaltest.FillPairing(bad)
		spoil(bad)
		err := bad.Save(ctx)
		require.ErrorIs(t, err, pgstore.ErrInvalidInput, field)
		require.ErrorContains(t, err, field)
	}
	refused("NoiseKey", func(d *store.Device) { d.NoiseKey = nil })
	refused("IdentityKey", func(d *store.Device) { d.IdentityKey = nil })
	refused("SignedPreKey", func(d *store.Device) { d.SignedPreKey = nil })
	refused("SignedPreKey is missing or not signed", func(d *store.Device) { d.SignedPreKey.Signature = nil }) // it has no other length
	refused("KeyID", func(d *store.Device) { d.SignedPreKey.KeyID = 1 << 24 })
	refused("Account", func(d *store.Device) { d.Account = nil })
	refused("Account.Details", func(d *store.Device) { d.Account.Details = nil }) // of any length
	refused("AdvSecretKey", func(d *store.Device) { d.AdvSecretKey = nil })
	for _, length := range []int{0, 1, 31, 33, 63, 65} { // 32 and 64 are right
		wrong := make([]byte, length)
		refused("Account.AccountSignature must have 64 bytes", func(d *store.Device) { d.Account.AccountSignature = wrong })
		refused("Account.AccountSignatureKey must have 32 bytes", func(d *store.Device) { d.Account.AccountSignatureKey = wrong })
		refused("Account.DeviceSignature must have 64 bytes", func(d *store.Device) { d.Account.DeviceSignature = wrong })
	}
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys`), "nothing of it was stored")
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances`))
}
