package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// life lets a device on dsn be paired, talk, be reopened, talk on and be deleted.
func life(t testing.TB, dsn string, edit ...func(*pgstore.Config)) {
	t.Helper()
	c := reopen(t, dsn, edit...)
	d := pair(t, c.NewDevice())
	theirs := signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	signaltest.Meet(t, theirs, signaltest.NewPeer(d))
	require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, theirs.Address(), theirs.Address(), "A", []byte("secret")))
	require.NoError(t, c.Close())
	c = reopen(t, dsn, edit...)
	d, err := c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	signaltest.Say(t, theirs, signaltest.NewPeer(d), "after")
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, theirs.Address(), theirs.Address(), "A")
	require.NoError(t, err)
	require.Equal(t, "secret", string(secret))
	require.NoError(t, d.Delete(ctx))
	require.NoError(t, c.Close())
}

func execSQL(t testing.TB, dsn string, statements ...string) error {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	for _, s := range statements {
		if _, err = conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func withQuery(t testing.TB, dsn, key, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	q := u.Query()
	q.Set(key, value)
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // PostgreSQL knows no +
	return u.String()
}

func TestWorksThroughPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	dsn := pgtest.PgBouncer(t, pgtest.Open(t), 3)
	// More processes than server connections migrate at once.
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() {
			c, err := pgstore.New(ctx, dsn, nil)
			if err == nil {
				err = c.Close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	life(t, dsn)
}

func TestWorksWithTwoConnections(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"1", "2"} { // one is raised to two
		life(t, withQuery(t, pgtest.Open(t), "pool_max_conns", n))
	}
}

// role makes a login role and returns the DSN with it.
func role(t testing.TB, dsn string) (name, asRole string) {
	t.Helper()
	name = "role_" + strings.ToLower(signaltest.Number())
	require.NoError(t, execSQL(t, dsn, "CREATE ROLE "+name+" LOGIN PASSWORD 'role'"))
	t.Cleanup(func() { require.NoError(t, execSQL(t, dsn, "DROP OWNED BY "+name, "DROP ROLE "+name)) })
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.User = url.UserPassword(name, "role")
	return name, u.String()
}

func TestWorksForARoleThatOwnsOnlyItsSchema(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	name, asRole := role(t, dsn)
	require.NoError(t, execSQL(t, dsn, "CREATE SCHEMA whatsmeow AUTHORIZATION "+name))
	life(t, asRole)
}

func TestWorksForARoleThatMayNotCreateAnything(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	name, asRole := role(t, dsn)
	_, err := pgstore.New(ctx, asRole, nil)
	require.ErrorContains(t, err, "permission denied")
	_, err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: asRole, SkipMigrations: true})
	require.ErrorIs(t, err, pgstore.ErrSchemaMissing)

	owner := reopen(t, dsn) // migrates
	require.NoError(t, owner.Close())
	require.NoError(t, execSQL(t, dsn,
		"GRANT USAGE ON SCHEMA whatsmeow TO "+name,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA whatsmeow TO "+name,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA whatsmeow TO "+name))
	life(t, asRole)
	life(t, asRole, func(cfg *pgstore.Config) { cfg.SkipMigrations = true })
}

// Rights that are taken away under a running bot stop what needs them, loudly, and only that.
func TestP10RevokedRightsStopTheInstancesLoudly(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	require.NoError(t, reopen(t, dsn).Close()) // migrates
	name, asRole := role(t, dsn)
	require.NoError(t, execSQL(t, dsn,
		"GRANT USAGE ON SCHEMA whatsmeow TO "+name,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA whatsmeow TO "+name,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA whatsmeow TO "+name))
	var logged lockedBuffer
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: asRole, Logger: textLogger(&logged)})
	require.NoError(t, err)
	devices := []*store.Device{pair(t, c.NewDevice()), pair(t, c.NewDevice())}
	require.NoError(t, execSQL(t, dsn, "REVOKE INSERT, UPDATE, DELETE ON whatsmeow.auth_keys, whatsmeow.lid_map FROM "+name))
	for _, d := range devices {
		err := d.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": sessionAt(1)})
		require.ErrorIs(t, err, pgstore.ErrRefused, "the message does not leave")
		_, err = d.Sessions.GetSession(ctx, "1:0")
		require.ErrorIs(t, err, pgstore.ErrRefused)
		require.ErrorIs(t, err, context.Canceled)
		require.Eventually(t, func() bool {
			return strings.Contains(logged.String(), `msg="pgstore: instance stopped" instance=`+d.ID.String())
		}, 10*time.Second, time.Millisecond)
	}
	require.ErrorIs(t, putPair(ctx, c, 1), pgstore.ErrRefused)
	require.ErrorIs(t, c.Flush(ctx), pgstore.ErrRefused)
	require.NoError(t, execSQL(t, dsn, "GRANT INSERT, UPDATE, DELETE ON whatsmeow.auth_keys, whatsmeow.lid_map TO "+name))
	again, err := c.GetDevice(ctx, *devices[0].ID)
	require.NoError(t, err, "whoever takes it again goes on")
	require.NoError(t, again.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": sessionAt(1)}))
	require.NoError(t, putPair(ctx, c, 1))
	var unsaved *batcher.UnsavedError
	require.ErrorAs(t, c.Close(), &unsaved)
	require.Len(t, unsaved.Pending, 2)
}

func TestWorksWithSeveralHosts(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(pgtest.Open(t))
	require.NoError(t, err)
	u.Host = "127.0.0.1:1," + u.Host // nobody listens at the first
	life(t, withQuery(t, u.String(), "target_session_attrs", "read-write"))
}

func TestLeavesTheApplicationsTablesAlone(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	require.NoError(t, execSQL(t, dsn, "CREATE TABLE auth_keys (mine text)", "CREATE TABLE goose_db_version (mine text)", "CREATE TABLE instances (mine text)"))
	const outside = `SELECT coalesce(string_agg(c.oid::text || c.relname, ',' ORDER BY c.oid), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT IN ('whatsmeow', 'other_schema', 'pg_toast')`
	before := scalar[string](t, dsn, outside)
	life(t, dsn)
	life(t, dsn, func(cfg *pgstore.Config) { cfg.Schema = "other_schema" })
	require.Equal(t, before, scalar[string](t, dsn, outside))
}

func TestTheTableRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	for _, row := range []string{
		`'nonsense', 'k', '{}'`, `'session', 'k', '[]'`, `'session', 'k', 'null'`, `'session', repeat('k', 2000), '{}'`,
	} {
		require.Error(t, execSQL(t, dsn, fmt.Sprintf(`INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq) VALUES ('%s', %s, 1)`, d.ID, row)), row)
	}
	require.Error(t, execSQL(t, dsn, `INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq) VALUES ('nobody', 'session', 'k', '{}', 1)`))
}

func TestADeletedDeviceLeavesNothing(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", []byte("x")))
	require.NoError(t, d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: *d.ID, Token: []byte("t")}))
	require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, *d.ID, "A", "wa", []byte("p")))
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, d.Delete(ctx))
	require.NoError(t, c.Flush(ctx))
	for _, table := range []string{"instances", "auth_keys", "set_aside"} {
		require.Zero(t, scalar[int](t, dsn, "SELECT count(*) FROM whatsmeow."+table), table)
	}
}
