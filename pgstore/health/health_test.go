package health_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/health"
)

var ctx = context.Background()

// probed is a container behind a network that can be broken, and what its probes say.
type probed struct {
	*testing.T
	*pgstore.Container
	dsn     string // past the network
	network *pgtest.Proxy
}

func probe(t *testing.T, edit ...func(*pgstore.Config)) *probed {
	t.Helper()
	dsn := pgtest.Open(t)
	p := &probed{T: t, dsn: dsn, network: pgtest.NewProxy(t, dsn)}
	cfg := pgstore.Config{DSN: p.network.DSN, FlushTimeout: time.Second}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // some end with what cannot be saved
	p.Container = c
	return p
}

// body is what an answer says.
type body struct {
	Status string
	Checks map[string][]struct{ Status, Output string }
}

func ask(t testing.TB, h http.Handler) (code int, b body) {
	t.Helper()
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	require.Equal(t, "application/health+json", answer.Header().Get("Content-Type"))
	require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &b))
	return answer.Code, b
}

// says requires that the container comes to be as it should, for a reason or for none.
func (p *probed) says(ready bool, reason pgstore.ReasonCode) {
	p.Helper()
	var code int
	var b body
	wanted, status := http.StatusOK, "pass"
	switch {
	case !ready:
		wanted, status = http.StatusServiceUnavailable, "fail"
	case reason != "":
		status = "warn"
	}
	require.Eventually(p, func() bool {
		code, b = ask(p, health.Ready(p.Container))
		checks, of := b.Checks[string(reason)], "warn"
		if reason.Unready() {
			of = "fail"
		}
		return code == wanted && b.Status == status && (reason == "" || len(checks) == 1 && checks[0].Status == of && checks[0].Output != "")
	}, 30*time.Second, 10*time.Millisecond, "%v, %s", ready, reason)
	p.lives()
}

// lives requires that the liveness probe passes, at once and whatever the database does.
func (p *probed) lives() {
	p.Helper()
	began := time.Now()
	code, b := ask(p, health.Live(p.Container))
	require.Equal(p, http.StatusOK, code, b)
	require.Less(p, time.Since(began), time.Second)
}

func (p *probed) sql(statement string) {
	p.Helper()
	conn, err := pgx.Connect(ctx, p.dsn)
	require.NoError(p, err)
	defer func() { require.NoError(p, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	require.NoError(p, err)
}

// writes lets a new device write names until one fails or all are written.
func (p *probed) writes(from, to int) error {
	p.Helper()
	d, err := p.GetFirstDevice(ctx)
	require.NoError(p, err)
	if d.ID == nil {
		signaltest.FillPairing(d)
		require.NoError(p, d.Save(ctx))
	}
	return names(d.Contacts.PutPushName, from, to)
}

func names(put func(context.Context, types.JID, string) (bool, string, error), from, to int) error {
	for i := from; i < to; i++ {
		within, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, _, err := put(within, types.NewJID(fmt.Sprint(i), types.DefaultUserServer), "Ada")
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// A database that goes away, and one that hangs: not ready, alive all the time, and ready again.
func TestReadyFollowsTheDatabaseAndLiveDoesNot(t *testing.T) {
	t.Parallel()
	p := probe(t, func(cfg *pgstore.Config) { cfg.Lease = time.Second })
	p.says(true, "")
	p.network.Down()
	p.says(false, pgstore.ReasonDatabaseUnreachable)
	p.says(false, pgstore.ReasonLeaseLapsed)
	p.network.Up()
	p.says(true, "")
	p.network.Hang()
	p.says(false, pgstore.ReasonDatabaseUnreachable)
	p.network.Heal()
	p.says(true, "")
}

func TestReadySaysWhatIsWrongWithTheDatabase(t *testing.T) {
	t.Parallel()
	for reason, fault := range map[pgstore.ReasonCode]string{
		pgstore.ReasonDatabaseRefuses: `ALTER TABLE whatsmeow.auth_keys RENAME TO gone`,
		pgstore.ReasonSchemaMissing:   `ALTER TABLE whatsmeow.schema_info RENAME TO gone`,
		pgstore.ReasonSchemaTooNew:    `INSERT INTO whatsmeow.schema_info (version, usable_from) VALUES (1000, 1000)`,
		// Its own connections learn of it when they are made anew.
		pgstore.ReasonDatabaseReadOnly: `DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET default_transaction_read_only = on'; END $$;
			SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`,
	} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			p := probe(t)
			p.says(true, "")
			p.sql(fault)
			p.says(false, reason)
		})
	}
}

func TestReadyFollowsTheBacklog(t *testing.T) {
	t.Parallel()
	p := probe(t, func(cfg *pgstore.Config) { cfg.PendingLimit = 20 })
	require.NoError(t, p.writes(0, 1))
	require.NoError(t, p.Flush(ctx))
	d, err := p.GetFirstDevice(ctx)
	require.NoError(t, err)
	blocked := make(chan error, 1)
	p.network.Down()
	require.NoError(t, names(d.Contacts.PutPushName, 1, 15))
	p.says(false, pgstore.ReasonBacklogHigh)
	go func() { blocked <- names(d.Contacts.PutPushName, 15, 30) }()
	p.says(false, pgstore.ReasonBacklogFull)
	p.network.Up()
	require.NoError(t, <-blocked)
	p.says(true, "")
}

// What a lock keeps from the table waits, though the database answers: a warning.
func TestAnOldBacklogIsAWarning(t *testing.T) {
	t.Parallel()
	p := probe(t)
	require.NoError(t, p.writes(0, 1))
	conn, err := pgx.Connect(ctx, p.dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys IN SHARE MODE`)
	require.NoError(t, err)
	require.NoError(t, p.writes(1, 2))
	p.says(true, pgstore.ReasonBacklogOld)
	require.NoError(t, tx.Rollback(ctx))
	p.says(true, "")
}

func TestAnInstanceThatStoppedIsAWarningUnlessSomebodyElseHasIt(t *testing.T) {
	t.Parallel()
	stopped := make(chan pgstore.Stop, 2)
	p := probe(t, func(cfg *pgstore.Config) { cfg.OnStop = func(s pgstore.Stop) { stopped <- s } })
	require.NoError(t, p.writes(0, 1))
	d, err := p.GetFirstDevice(ctx)
	require.NoError(t, err)
	other, err := pgstore.New(ctx, p.dsn, nil)
	require.NoError(t, err)
	_, err = other.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, names(d.Contacts.PutPushName, 1, 2))
	require.ErrorIs(t, (<-stopped).Err, pgstore.ErrOwnershipLost)
	p.says(true, "")
	require.NoError(t, other.Close())

	require.NoError(t, p.writes(2, 3)) // taken again
	require.NoError(t, p.Flush(ctx))
	p.sql(`ALTER TABLE whatsmeow.auth_keys ADD CONSTRAINT no CHECK (key_type <> 'contact') NOT VALID`)
	require.NoError(t, p.writes(3, 4))
	require.ErrorIs(t, (<-stopped).Err, pgstore.ErrRefused)
	p.says(true, pgstore.ReasonInstanceStopped)
	_, b := ask(t, health.Ready(p.Container))
	require.NotContains(t, fmt.Sprint(b), d.ID.User, "the name of an instance")
	p.sql(`ALTER TABLE whatsmeow.auth_keys DROP CONSTRAINT no`)
	require.NoError(t, p.writes(4, 5)) // taken again
	p.says(true, "")
}

// The database's clock is an hour ahead: of this server's own, since a search path puts another function in its place.
func TestClocksThatDifferAreAWarning(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	p := &probed{T: t, dsn: dsn}
	p.sql(`CREATE SCHEMA ahead; CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$`)
	c, err := pgstore.New(ctx, dsn+"&search_path=ahead,pg_catalog", nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	p.Container = c
	p.says(true, pgstore.ReasonClockSkew)
}

// Whoever is being closed gets no new work, and whoever is closed does nothing any more.
func TestAContainerThatIsClosedDoesNotLive(t *testing.T) {
	t.Parallel()
	p := probe(t)
	require.NoError(t, p.writes(0, 1))
	require.NoError(t, p.Flush(ctx))
	d, err := p.GetFirstDevice(ctx)
	require.NoError(t, err)
	p.network.Down()
	require.NoError(t, names(d.Contacts.PutPushName, 1, 2))
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }() // waits for the database
	p.says(false, pgstore.ReasonClosing)
	p.network.Up()
	require.NoError(t, <-closed)
	for _, h := range []http.Handler{health.Live(p.Container), health.Ready(p.Container)} {
		code, b := ask(t, h)
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Contains(t, b.Checks, string(pgstore.ReasonClosed))
	}
	require.False(t, p.Health(ctx).Live)
}

// One of two is not ready: neither is the process.
func TestOneOfTwoContainersIsEnough(t *testing.T) {
	t.Parallel()
	p, other := probe(t), probe(t)
	both := health.Ready(p.Container, other.Container)
	code, _ := ask(t, both)
	require.Equal(t, http.StatusOK, code)
	p.network.Down()
	code, b := ask(t, both)
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, "fail", b.Status)
	answer := httptest.NewRecorder()
	both.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/", http.NoBody))
	require.Equal(t, http.StatusMethodNotAllowed, answer.Code)
}
