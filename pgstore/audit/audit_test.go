package audit_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

var ctx = context.Background()

// trail is a database with an instance whose trail tells all.
type trail struct {
	testing.TB
	dsn  string
	conn *pgx.Conn
	c    *pgstore.Container
	d    *store.Device
}

func newTrail(t testing.TB, level pgstore.AuditLevel) *trail {
	tr := &trail{TB: t, dsn: pgtest.Open(t)}
	tr.c = tr.open(level)
	tr.d = tr.c.NewDevice()
	signaltest.FillPairing(tr.d)
	require.NoError(t, tr.d.Save(ctx))
	var err error
	tr.conn, err = pgx.Connect(ctx, tr.dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.conn.Close(ctx)) })
	return tr
}

func (tr *trail) open(level pgstore.AuditLevel) *pgstore.Container {
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: tr.dsn, Audit: level, Owner: "worker"})
	require.NoError(tr, err)
	tr.Cleanup(func() { _ = c.Close() }) // or it was closed before
	return c
}

func (tr *trail) exec(statements ...string) {
	tr.Helper()
	for _, s := range statements {
		_, err := tr.conn.Exec(ctx, s)
		require.NoError(tr, err, s)
	}
}

func (tr *trail) write(peers ...string) {
	tr.Helper()
	for _, peer := range peers {
		require.NoError(tr, tr.d.Identities.PutIdentity(ctx, peer, [32]byte{1}))
		require.NoError(tr, tr.c.Flush(ctx))
	}
}

func (tr *trail) events() (events []string) {
	tr.Helper()
	rows, err := tr.conn.Query(ctx, `SELECT event || CASE WHEN detail LIKE 'by force%' THEN ', by force' WHEN detail LIKE 'after%' THEN ', after a release' ELSE '' END
		FROM whatsmeow.audit ORDER BY n`)
	require.NoError(tr, err)
	events, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(tr, err)
	return events
}

func (tr *trail) verify(options audit.Options) *audit.Report {
	tr.Helper()
	report, err := audit.Verify(ctx, tr.conn, options)
	require.NoError(tr, err)
	return report
}

func TestAuditTellsOfALife(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditLife)
	tr.write("1:0")
	tr.d.PushName = "another"
	require.NoError(t, tr.d.Save(ctx))
	require.NoError(t, tr.c.Close())
	next := tr.open(pgstore.AuditLife)
	_, err := next.GetDevice(ctx, *tr.d.ID)
	require.NoError(t, err)
	d, err := tr.open(pgstore.AuditLife).GetDevice(ctx, *tr.d.ID) // while the other one has it
	require.NoError(t, err)
	require.NoError(t, d.Delete(ctx))
	require.Equal(t, []string{"paired", "taken, after a release", "credentials", "released", "taken, after a release", "taken, by force", "deleted"}, tr.events())
	report := tr.verify(audit.Options{})
	require.Empty(t, report.Breaks)
	require.Empty(t, report.Outsiders)
	require.EqualValues(t, 7, report.Entries)
	require.EqualValues(t, 7, report.Heads[tr.d.ID.String()].N, "it outlives the instance")
}

func TestAuditTellsOfEveryKeyInTheTransactionThatWroteIt(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditAll)
	peer := signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice()))
	signaltest.Meet(t, peer, signaltest.NewPeer(tr.d))
	tr.write("1:0", "2:0")
	require.NoError(t, tr.d.Identities.DeleteIdentity(ctx, "1:0"))
	require.NoError(t, tr.c.Flush(ctx))
	report := tr.verify(audit.Options{})
	require.Empty(t, report.Breaks)
	var rows, same int
	require.NoError(t, tr.conn.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE k.sha256 = sha256(convert_to(a.data::text, 'UTF8')) AND k.size = octet_length(a.data::text))
		FROM whatsmeow.auth_keys a LEFT JOIN (SELECT DISTINCT ON (key_type, key_id) * FROM whatsmeow.audit_keys ORDER BY key_type, key_id, n DESC) AS k USING (key_type, key_id)
		WHERE key_type <> 'creds'`).Scan(&rows, &same)) // the device's own row was there before it had an owner
	require.Equal(t, rows, same)
	require.Greater(t, rows, 3)

	// What is not written is not told.
	tr.exec(`ALTER TABLE whatsmeow.auth_keys ADD CHECK (key_id <> 'no:0')`)
	before := report.Entries
	require.NoError(t, tr.d.Identities.PutIdentity(ctx, "no:0", [32]byte{1}))
	require.ErrorIs(t, tr.c.Flush(ctx), pgstore.ErrRefused)
	require.Equal(t, before, tr.verify(audit.Options{}).Entries)
}

func TestAuditTellsOfOutsiders(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditLife)
	tr.write("1:0", "2:0")
	tr.exec(`UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_id = '1:0'`, `DELETE FROM whatsmeow.auth_keys WHERE key_id = '2:0'`,
		`INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq) SELECT id, 'identity', '3:0', '{}', 0 FROM whatsmeow.instances`,
		`UPDATE whatsmeow.instances SET seq = 0`)
	report := tr.verify(audit.Options{})
	require.Empty(t, report.Breaks)
	var told []string
	for _, o := range report.Outsiders {
		require.Equal(t, tr.d.ID.String(), o.Instance)
		require.Equal(t, tr.conn.Config().User, o.Role)
		require.WithinDuration(t, time.Now(), o.At, time.Minute)
		told = append(told, fmt.Sprintf("%s %s %s", o.What, o.KeyType, o.KeyID))
	}
	require.Equal(t, []string{"update identity 1:0", "delete identity 2:0", "insert identity 3:0", "lowered  "}, told)
}

// The row of an instance may be put in or deleted by hand, as well as its keys.
func TestAuditTellsOfInstancesThatOutsidersMakeAndDelete(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditLife)
	tr.exec(`INSERT INTO whatsmeow.instances (id, jid, epoch, timeline) VALUES ('mine', '1:1@s.whatsapp.net', 1, '00000001')`,
		`INSERT INTO whatsmeow.instances (id, jid, epoch, imported_at_epoch, timeline) VALUES ('moved', '2:1@s.whatsapp.net', 1, 1, '00000001')`,
		`DELETE FROM whatsmeow.instances WHERE id <> 'moved'`)
	report := tr.verify(audit.Options{})
	require.Empty(t, report.Breaks)
	var told []string
	for _, o := range report.Outsiders {
		require.Empty(t, o.KeyType)
		told = append(told, o.What+" "+o.Instance)
	}
	require.ElementsMatch(t, []string{"insert mine", "delete mine", "insert moved", "delete " + tr.d.ID.String()}, told)
}

// A row that the library sets aside is deleted by the library.
func TestAuditTellsOfARowThatIsSetAsideAsTheLibrarys(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditLife)
	tr.write("1:0")
	require.NoError(t, tr.c.Close())
	tr.exec(`SET session_replication_role = replica`, `UPDATE whatsmeow.auth_keys SET data = '{"spoilt": true}' WHERE key_id = '1:0'`)
	d, err := tr.open(pgstore.AuditLife).GetDevice(ctx, *tr.d.ID)
	require.NoError(t, err)
	_, err = d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{1})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return slices.Contains(tr.events(), "set_aside") }, time.Minute, 10*time.Millisecond)
	report := tr.verify(audit.Options{})
	require.Empty(t, report.Breaks)
	require.Empty(t, report.Outsiders)
}

// Whoever owns the tables can switch off triggers. What he does is seen all the same.
func TestAuditNoticesWhatWasChanged(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"an entry is changed":                     {`UPDATE whatsmeow.audit SET detail = 'nothing' WHERE n = 1`},
		"an entry is said to be of somebody else": {`UPDATE whatsmeow.audit SET role = 'somebody' WHERE n = 3`},
		"an entry is moved in time":               {`UPDATE whatsmeow.audit SET at = at - interval '1 microsecond' WHERE n = 3`},
		"an entry is removed":                     {`DELETE FROM whatsmeow.audit WHERE n = 3`, `DELETE FROM whatsmeow.audit_keys WHERE n = 3`},
		"the first entry is removed":              {`DELETE FROM whatsmeow.audit WHERE n = 1`},
		"the last entry is removed":               {`DELETE FROM whatsmeow.audit WHERE n = 6`, `DELETE FROM whatsmeow.audit_keys WHERE n = 6`},
		"all are removed":                         {`DELETE FROM whatsmeow.audit`, `DELETE FROM whatsmeow.audit_keys`},
		"the end is removed":                      {`DELETE FROM whatsmeow.audit_heads`},
		"an entry is there twice":                 {`INSERT INTO whatsmeow.audit SELECT instance_id, n, at + interval '1s', event, epoch, seq, owner, role, detail, keys, digest, hash FROM whatsmeow.audit WHERE n = 2`},
		"a key is removed":                        {`DELETE FROM whatsmeow.audit_keys WHERE key_id = '1:0'`},
		"a key is put in":                         {`INSERT INTO whatsmeow.audit_keys SELECT instance_id, n, at, key_type, 'x', op, size, sha256 FROM whatsmeow.audit_keys WHERE key_id = '1:0'`},
		"what a key hashes to is changed":         {`UPDATE whatsmeow.audit_keys SET sha256 = sha256('x') WHERE key_id = '1:0'`},
		"a row is changed":                        {`UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_id = '1:0'`},
		"a row is removed":                        {`DELETE FROM whatsmeow.auth_keys WHERE key_id = '2:0'`},
		"a row that was deleted is put back": {
			`INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq) SELECT id, 'identity', '3:0', '{}', 0 FROM whatsmeow.instances`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrail(t, pgstore.AuditAll)
			tr.write("1:0", "2:0", "3:0")
			require.NoError(t, tr.d.Identities.DeleteIdentity(ctx, "3:0"))
			require.NoError(t, tr.c.Flush(ctx))
			require.Empty(t, tr.verify(audit.Options{}).Breaks)
			tr.exec(append([]string{`SET session_replication_role = replica`}, statements...)...)
			breaks := tr.verify(audit.Options{}).Breaks
			t.Log(breaks)
			require.NotEmpty(t, breaks)
		})
	}
}

// Who makes the chain anew, or restores an earlier moment, is seen by who remembers how far it was.
func TestAuditNoticesAnEarlierMoment(t *testing.T) {
	t.Parallel()
	tr := newTrail(t, pgstore.AuditAll)
	tr.write("1:0", "2:0")
	heads := tr.verify(audit.Options{}).Heads
	tr.write("3:0")
	require.Empty(t, tr.verify(audit.Options{Heads: heads}).Breaks, "it has gone on")
	tr.exec(`SET session_replication_role = replica`, `DELETE FROM whatsmeow.audit WHERE n >= 3`, `DELETE FROM whatsmeow.audit_keys WHERE n >= 3`,
		`UPDATE whatsmeow.audit_heads SET n = 2, hash = (SELECT hash FROM whatsmeow.audit WHERE n = 2)`,
		`DELETE FROM whatsmeow.auth_keys WHERE key_id IN ('2:0', '3:0')`, `UPDATE whatsmeow.instances SET seq = (SELECT seq FROM whatsmeow.audit WHERE n = 2)`)
	require.Empty(t, tr.verify(audit.Options{}).Breaks, "it is whole")
	require.Len(t, tr.verify(audit.Options{Heads: heads}).Breaks, 1)
}

// Months are dropped whole, and what remains is anchored; a month that somebody drops otherwise is missed.
func TestAuditIsAnchoredWhereItWasDropped(t *testing.T) {
	t.Parallel()
	for name, drop := range map[string]func(*trail) error{
		"by retention": func(tr *trail) error {
			dropped, err := audit.Drop(ctx, tr.conn, "", time.Date(2001, 2, 1, 0, 0, 0, 0, time.UTC))
			require.Equal(tr, 2, dropped)
			return err
		},
		"by hand": func(tr *trail) error {
			tr.exec(`DROP TABLE whatsmeow.audit_200101`, `DROP TABLE whatsmeow.audit_keys_200101`)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrail(t, pgstore.AuditAll)
			tr.write("1:0", "2:0")
			// As if the first entries had been written in January 2001.
			tr.exec(`CREATE TABLE whatsmeow.audit_200101 PARTITION OF whatsmeow.audit FOR VALUES FROM ('2001-01-01 00:00+00') TO ('2001-02-01 00:00+00')`,
				`CREATE TABLE whatsmeow.audit_keys_200101 PARTITION OF whatsmeow.audit_keys FOR VALUES FROM ('2001-01-01 00:00+00') TO ('2001-02-01 00:00+00')`,
				`UPDATE whatsmeow.audit SET at = '2001-01-15 00:00+00' WHERE n <= 2`, `UPDATE whatsmeow.audit_keys SET at = '2001-01-15 00:00+00' WHERE n <= 2`)
			require.NoError(t, drop(tr))
			tr.write("3:0")
			report := tr.verify(audit.Options{})
			require.EqualValues(t, 3, report.Entries)
			require.Equal(t, name == "by hand", len(report.Breaks) > 0, "%v", report.Breaks)
		})
	}
}

// The grants of roles.sql: who runs can add to the trail and do nothing else to it, and who looks reads no key and writes nothing.
func TestRolesCannotOverstep(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	admin, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, admin.Close(ctx)) }()
	script, err := os.ReadFile("../roles.sql")
	require.NoError(t, err)
	names := make(map[string]string)
	as := func(role string) string {
		u, err := url.Parse(dsn)
		require.NoError(t, err)
		u.User = url.UserPassword(names[role], "role")
		return u.String()
	}
	text := string(script)
	for _, role := range []string{"migrate", "run", "read"} { // roles belong to all databases of a server
		names[role] = "pgstore_" + role + "_" + signaltest.Number()
		text = strings.ReplaceAll(text, "pgstore_"+role, names[role])
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(ctx, dsn)
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(ctx)) }()
		for _, name := range names {
			_, err = conn.Exec(ctx, "DROP OWNED BY "+name+" CASCADE")
			require.NoError(t, err)
			_, err = conn.Exec(ctx, "DROP ROLE "+name)
			require.NoError(t, err)
		}
	})
	once, afterwards, ok := strings.Cut(text, "-- After each migration.")
	require.True(t, ok)
	_, err = admin.Exec(ctx, once)
	require.NoError(t, err)
	for _, name := range names {
		_, err = admin.Exec(ctx, "ALTER ROLE "+name+" PASSWORD 'role'")
		require.NoError(t, err)
	}
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: as("migrate")})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	owner, err := pgx.Connect(ctx, as("migrate"))
	require.NoError(t, err)
	defer func() { require.NoError(t, owner.Close(ctx)) }()
	_, err = owner.Exec(ctx, afterwards)
	require.NoError(t, err)

	c, err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: as("run"), SkipMigrations: true, Audit: pgstore.AuditAll})
	require.NoError(t, err)
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	signaltest.Meet(t, signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice())), signaltest.NewPeer(d))
	require.NoError(t, c.Flush(ctx))
	require.ErrorIs(t, c.Erase(ctx, pgstore.InstanceID(d)), pgstore.ErrRefused)
	require.NoError(t, c.Close())

	trail := []string{
		`INSERT INTO whatsmeow.audit SELECT * FROM whatsmeow.audit`, `UPDATE whatsmeow.audit SET detail = ''`, `DELETE FROM whatsmeow.audit`, `TRUNCATE whatsmeow.audit`,
		`INSERT INTO whatsmeow.audit_keys SELECT * FROM whatsmeow.audit_keys`, `UPDATE whatsmeow.audit_keys SET op = ''`, `DELETE FROM whatsmeow.audit_keys`,
		`UPDATE whatsmeow.audit_heads SET n = 0`, `DELETE FROM whatsmeow.audit_heads`, `DELETE FROM whatsmeow.audit_anchors`,
		`DROP TABLE whatsmeow.audit_default`, `SELECT whatsmeow.audit_drop(now())`, `SELECT whatsmeow.audit_append('a', 'taken', 1, 1, '', '')`, `SELECT whatsmeow.audit_erase('a')`,
		`ALTER TABLE whatsmeow.auth_keys DISABLE TRIGGER audit_outsider`, `DROP TRIGGER audit_outsider ON whatsmeow.auth_keys`, `SET session_replication_role = replica`,
		`CREATE TABLE whatsmeow.mine ()`, `ALTER TABLE whatsmeow.auth_keys ADD COLUMN mine int`, `UPDATE whatsmeow.schema_info SET version = 0`,
	}
	keys := []string{
		`SELECT data FROM whatsmeow.auth_keys`, `SELECT data FROM whatsmeow.set_aside`, `UPDATE whatsmeow.auth_keys SET seq = 0`, `DELETE FROM whatsmeow.instances`,
		`UPDATE whatsmeow.instances SET epoch = 0`, `SELECT whatsmeow.audit_flush('a', 1, 1, '{}', '{}', '{}', '{}')`, `SELECT whatsmeow.audit_note('a', 'imported', '')`,
		`SELECT nextval('whatsmeow.epochs')`, `SELECT * FROM whatsmeow.lid_map`,
	}
	for role, forbidden := range map[string][]string{"run": trail, "read": slices.Concat(trail, keys)} {
		conn, err := pgx.Connect(ctx, as(role))
		require.NoError(t, err)
		for _, s := range forbidden {
			_, err = conn.Exec(ctx, s)
			require.ErrorContains(t, err, "(SQLSTATE 42501)", "%s: %s", role, s)
		}
		report, err := audit.Verify(ctx, conn, audit.Options{})
		require.NoError(t, err)
		require.Empty(t, report.Breaks)
		require.Empty(t, report.Outsiders)
		require.Greater(t, report.Entries, int64(3))
		require.NoError(t, conn.Close(ctx))
	}
}
