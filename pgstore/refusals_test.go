package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Refusals that pass, of which the server itself finds the reason: a deadlock, a serialization failure, a disk that is full.

// quarrel is a store and a transaction of somebody else that has changed one of its rows.
type quarrel struct {
	*testing.T
	dsn    string
	c      *pgstore.Container
	d      *store.Device
	logged lockedBuffer
	tx     pgx.Tx
}

func newQuarrel(t *testing.T, options map[string]string) *quarrel {
	q := &quarrel{T: t, dsn: pgtest.Open(t)}
	ours := q.dsn
	for key, value := range options {
		ours = withQuery(t, ours, key, value)
	}
	q.c = reopen(t, ours, behind, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&q.logged) })
	q.d = pair(t, q.c.NewDevice())
	q.put(1)
	require.NoError(t, q.c.Flush(ctx))
	conn, err := pgx.Connect(ctx, q.dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(ctx)) })
	_, err = conn.Exec(ctx, `SET deadlock_timeout = '1min'`) // the one whose timeout ends first is the victim
	require.NoError(t, err)
	q.tx, err = conn.Begin(ctx)
	require.NoError(t, err)
	q.exec(`UPDATE whatsmeow.auth_keys SET updated_at = now() WHERE key_type = 'identity'`)
	return q
}

func (q *quarrel) put(n byte) {
	require.NoError(q, q.d.Identities.PutIdentity(ctx, "1:0", [32]byte{n}))
}

func (q *quarrel) exec(statement string) {
	_, err := q.tx.Exec(ctx, statement)
	require.NoError(q, err)
}

// flushWaits waits until a flush waits for the row.
func (q *quarrel) flushWaits() {
	require.Eventually(q, func() bool {
		var waits bool
		require.NoError(q, q.tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))`).Scan(&waits))
		return waits
	}, 20*time.Second, time.Millisecond)
}

// requireRefused waits until a flush was refused for a reason.
func (q *quarrel) requireRefused(sqlstate string) {
	require.Eventually(q, func() bool { return q.c.Stats().Batcher.Retries > 0 }, 20*time.Second, time.Millisecond)
	require.Contains(q, q.logged.String(), sqlstate)
}

// requireSaved waits until what was put is in the table.
func (q *quarrel) requireSaved() {
	require.NoError(q, q.c.Flush(within(q, 20*time.Second)))
	require.Equal(q, byte(2), scalar[[]byte](q, q.dsn, `SELECT decode(data->>'value', 'base64') FROM whatsmeow.auth_keys WHERE key_type = 'identity'`)[0])
}

func TestP7ADeadlockIsRetried(t *testing.T) {
	t.Parallel()
	q := newQuarrel(t, nil)
	q.put(2)
	q.flushWaits() // it has locked the instance's row
	q.exec(`UPDATE whatsmeow.instances SET owner = owner`)
	q.requireRefused("40P01")
	require.NoError(t, q.tx.Commit(ctx))
	q.requireSaved()
}

func TestP7ASerializationFailureIsRetried(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		q := newQuarrel(t, map[string]string{"default_transaction_isolation": level})
		q.put(2)
		q.flushWaits() // its snapshot is older than the commit
		require.NoError(t, q.tx.Commit(ctx))
		q.requireRefused("40001")
		q.requireSaved()
	}
}

// A disk that is full, in a tablespace of the store's table: messages go on, and all is saved when there is room again.
func TestP7AFullDiskIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := pgtest.NewContainer(t)
	small := server.SmallTablespace()
	var logged lockedBuffer
	c := reopen(t, server.DSN, behind, func(cfg *pgstore.Config) { cfg.Logger = textLogger(&logged) })
	d := pair(t, c.NewDevice())
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, server.DSN,
		`ALTER TABLE whatsmeow.auth_keys SET TABLESPACE `+small,
		`CREATE TABLE public.filler (b text) WITH (autovacuum_enabled = off) TABLESPACE `+small,
		`ALTER TABLE public.filler ALTER b SET STORAGE PLAIN`,
		`DO $$ BEGIN LOOP INSERT INTO public.filler VALUES (repeat('x', 7000)); END LOOP; EXCEPTION WHEN disk_full THEN NULL; END $$`)) // its pages stay

	const sessions = 200
	record := func(i int) string { return fmt.Sprint(i, " ", random.String(2600)) }
	want := make(map[string]string)
	for i := range sessions {
		address := fmt.Sprintf("%d:0", i)
		want[address] = record(i)
		require.NoError(t, d.Sessions.PutSession(ctx, address, []byte(want[address])))
	}
	require.ErrorIs(t, c.Flush(within(t, 2*time.Second)), context.DeadlineExceeded)
	require.Contains(t, logged.String(), "53100")
	for address, session := range want {
		got, err := d.Sessions.GetSession(ctx, address)
		require.NoError(t, err)
		require.Equal(t, session, string(got))
	}
	require.Zero(t, scalar[int](t, server.DSN, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session'`))
	require.NoError(t, execSQL(t, server.DSN, `DROP TABLE public.filler`))
	require.NoError(t, c.Flush(within(t, 20*time.Second)))
	require.Equal(t, sessions, scalar[int](t, server.DSN, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session'`))
}

// What a metric counts by type is no more to be "other" than it must.
func TestErrorsHaveTypesOfTheirOwn(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"data_key": pgstore.ErrDataKey, "not_encrypted": pgstore.ErrNotEncrypted, "no_instance": pgstore.ErrNoInstance, "already_taken": pgstore.ErrAlreadyTaken,
		"corrupt": pgstore.ErrCorrupt, "conflict": pgstore.ErrDeviceConflict, "other": errors.New("another"),
	} {
		require.Equal(t, want, pgstore.ErrorType(fmt.Errorf("wrapped: %w", err)))
		require.Contains(t, pgstore.ErrorTypes(), want)
	}
}
