package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/batcher"
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
	server    *pgtest.Server // nil if it cannot be killed
	dsn       string         // around the proxy
	network   *pgtest.Proxy
	role      string // of the process at limited
	rng       *rand.Rand
	processes []*process
	instances []string // ids to choose one from
	post      *post    // of the process at posted
	child     *child
	deck      []fault // those that will happen next
	happened  map[string]int
	spoilt    map[string]int // rows, by type
}

// rare is a fault that takes long, and happens once.
const rare = "a backlog is huge"

// next takes a fault from a shuffled deck: each happens once before one does again.
func (b *badDays) next() fault {
	if len(b.deck) == 0 {
		b.deck = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return f.name == rare && b.happened[rare] > 0 })
		b.rng.Shuffle(len(b.deck), func(i, k int) { b.deck[i], b.deck[k] = b.deck[k], b.deck[i] })
	}
	f := b.deck[0]
	b.deck = b.deck[1:]
	b.happened[f.name]++
	return f
}

// missing is what has not happened yet.
func (b *badDays) missing() (names []string) {
	for _, f := range faults {
		if b.happened[f.name] == 0 {
			names = append(names, f.name)
		}
	}
	return names
}

func (b *badDays) moment(longest time.Duration) time.Duration {
	return time.Duration(b.rng.Int64N(int64(longest)))
}

var faults = []fault{
	{"a process ends and begins again", reopen(true)},
	{"a process is forgotten and its instances are taken over", reopen(false)},
	{"a process is killed", func(t testing.TB, b *badDays) {
		time.Sleep(b.moment(time.Second))
		if b.rng.IntN(2) == 0 { // with something pending
			b.network.Down()
			defer b.network.Up()
			time.Sleep(b.moment(time.Second))
		}
		b.child.kill(t, b.dsn)
		b.child = nil
	}},
	{"the server is killed", func(t testing.TB, b *badDays) {
		if b.server == nil {
			t.Log("a server that can be killed is missing")
			return
		}
		require.NoError(t, b.server.Kill(context.Background()))
	}},
	{"a flush comes late", lateFlush},
	{rare, hugeBacklog},
	{"the database is away", func(_ testing.TB, b *badDays) {
		b.network.Down()
		time.Sleep(b.moment(2 * time.Second))
		b.network.Up()
	}},
	{"the database is away at New and at Close", awayAtBothEnds},
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
		b.exec(t, alterDatabase(`RESET default_transaction_read_only`), terminateOthers)
	}},
	{"statements time out", func(t testing.TB, b *badDays) {
		b.exec(t, alterDatabase(`SET statement_timeout = '5ms'`), terminateOthers)
		time.Sleep(b.moment(time.Second))
		b.exec(t, alterDatabase(`RESET statement_timeout`), terminateOthers)
	}},
	{"the disk is full", refuse("53100")},
	{"deadlocks", refuse("40P01")},
	{"serialization failures", refuse("40001")},
	{"the database refuses an instance for good", refuseForGood},
	{"rights are revoked", revoke},
	{"the table is missing", missTable},
	{"ten processes open at once", tenOpeners},
	{"the schema is newer", newerSchema},
	{"somebody spoils rows", spoilRows},
	{"keys are rotated", rotateKeys},
}

func reopen(orderly bool) func(testing.TB, *badDays) {
	return func(t testing.TB, b *badDays) {
		require.NoError(t, b.processes[b.rng.IntN(len(b.processes))].reopen(orderly))
	}
}

// lateFlush holds a flush back in its connection, lets it be sent again on another one and newer ones follow, and then lets it arrive.
func lateFlush(t testing.TB, b *badDays) {
	for range 10 {
		late := b.post.hold(t)
		require.NoError(t, b.processes[posted].container.Flush(context.Background()), "it is sent again")
		time.Sleep(b.moment(time.Second)) // newer ones follow
		answer := string(late.deliver(t))
		if strings.Contains(answer, "SELECT ") { // else an earlier fault had broken that connection
			require.Contains(t, answer, "SELECT 0\x00", "the server executed it, and no lane held")
			return
		}
	}
	require.Fail(t, "no flush came late")
}

// hugeBacklog lets one instance have very many writes that are pending when an outage ends: 15,000 in a soak of a minute, 100,000 in one of
// seven or more.
func hugeBacklog(t testing.TB, b *badDays) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := b.processes[posted].container
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	const call = 1000
	calls := min(100, max(1, int(length.Seconds()/4)))
	b.network.Down()
	for i := range calls {
		contacts := make([]store.ContactEntry, call)
		for n := range contacts {
			contacts[n] = store.ContactEntry{JID: types.NewJID(fmt.Sprint(i*call+n), types.DefaultUserServer), FirstName: "n"}
		}
		require.NoError(t, d.Contacts.PutAllContactNames(ctx, contacts))
	}
	require.GreaterOrEqual(t, c.Stats().Batcher.Pending, calls*call)
	b.network.Up()
	require.NoError(t, b.processes[posted].container.Flush(ctx))
	var rows, pieces int
	b.query(t, []any{&rows, &pieces}, `SELECT count(*), count(DISTINCT seq) FROM whatsmeow.auth_keys WHERE instance_id = $1 AND key_type = 'contact'`, d.ID.String())
	require.Equal(t, calls*call, rows)
	require.GreaterOrEqual(t, pieces, calls, "in pieces")
	require.NoError(t, d.Delete(ctx))
}

// awayAtBothEnds closes a process that cannot save, which says so, and starts one in vain.
func awayAtBothEnds(t testing.TB, b *badDays) {
	ctx := context.Background()
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: b.network.DSN, Owner: "unlucky"})
	require.NoError(t, err)
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	b.network.Down()
	defer b.network.Up()
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	short, cancel := context.WithTimeout(ctx, b.moment(time.Second))
	defer cancel()
	var unsaved *batcher.UnsavedError
	require.ErrorAs(t, c.Shutdown(short), &unsaved)
	require.Equal(t, map[string]int{d.ID.String(): 1}, unsaved.Pending)
	_, err = pgstore.New(ctx, b.network.DSN, nil)
	require.ErrorContains(t, err, "127.0.0.1/", "host and database")
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

func (b *badDays) query(t testing.TB, to []any, statement string, args ...any) {
	t.Helper()
	ctx := context.Background()
	conn := b.connect(ctx, t)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	require.NoError(t, conn.QueryRow(ctx, statement, args...).Scan(to...))
}

func (b *badDays) exec(t testing.TB, statements ...string) {
	t.Helper()
	ctx := context.Background()
	conn := b.connect(ctx, t)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	for _, s := range statements {
		_, err := conn.Exec(ctx, s)
		require.NoError(t, err, s)
	}
}

// connect connects whatever a fault has set for the database: a SET might come too late for a statement_timeout.
func (b *badDays) connect(ctx context.Context, t testing.TB) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(b.dsn)
	require.NoError(t, err)
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["default_transaction_read_only"] = "off"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	require.NoError(t, err)
	return conn
}
