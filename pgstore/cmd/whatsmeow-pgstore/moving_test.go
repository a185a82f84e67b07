package main_test

import (
	"database/sql"
	"path/filepath"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	_ "modernc.org/sqlite"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

type leftOut struct{ Kind, Name, Reason string }

type imported struct {
	Imported []struct {
		Instance, JID string
		Counts        map[string]int
		Sampled       int
		Skipped       []leftOut
		LIDPairs      int    `json:"lid_pairs"`
		LIDPairsKept  int    `json:"lid_pairs_kept"`
		NextPreKeyID  uint32 `json:"next_pre_key_id"`
		Exact         bool
	}
}

type exported struct {
	Instance, JID string
	Counts        map[string]int
	Skipped       []leftOut
	Fenced        bool
}

// sqlite opens a sqlstore in a file.
func sqlite(t testing.TB, path string) *sqlstore.Container {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=foreign_keys(1)")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	c := sqlstore.NewWithDB(db, "sqlite3", nil)
	require.NoError(t, c.Upgrade(ctx))
	return c
}

// onSqlite is a sqlstore with a device that has talked.
func onSqlite(t testing.TB) (path string, d *store.Device, peer *signaltest.Peer) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "bot one.db")
	c := sqlite(t, path)
	d = c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	peer = signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice()))
	signaltest.Meet(t, peer, signaltest.NewPeer(d))
	return path, d, peer
}

func TestImportFromSqlstoreAndExportBack(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.ok("migrate", "up")
	path, d, peer := onSqlite(t)
	s.fails(1, "import", "sqlstore", path+".missing", "--stopped")
	s.fails(2, "import", "sqlstore")
	s.fails(2, "import", "sqlstore", path, "--instance", "shop-1")
	s.fails(2, "import", "sqlstore", path, "--device", "@@")
	in := parse[imported](t, s.ok("import", "sqlstore", path, "--stopped", "--json", "--instance", "shop-1", "--device", d.ID.String())).Imported
	require.Len(t, in, 1)
	require.Equal(t, "shop-1", in[0].Instance)
	require.True(t, in[0].Exact)
	require.Empty(t, in[0].Skipped)
	require.Positive(t, in[0].Counts["session"])
	s.secrets.Note(t, s.dsn)
	require.Contains(t, s.ok("import", "sqlstore", path, "--instance", "shop-1", "--device", d.ID.String()), "are abandoned", "it may be repeated, and without the word")
	s.ok("import", "sqlstore", path, "--stopped", "--instance", "shop-1", "--device", d.ID.String())
	require.Contains(t, s.fails(4, "import", "sqlstore", path, "--stopped"), "conflict", "the device is there under another name")

	// The client goes on.
	c := s.open()
	here, err := c.Instance(ctx, "shop-1")
	require.NoError(t, err)
	ours := signaltest.NewPeer(here)
	signaltest.Say(t, ours, peer, "on the session of the sqlstore")
	signaltest.Say(t, peer, ours, "in")
	again := []string{"import", "sqlstore", path, "--instance", "shop-1", "--device", d.ID.String()}
	s.fails(4, again...)
	require.Contains(t, s.fails(4, append(again, "--replace")...), "which lives")
	require.NoError(t, c.Flush(ctx), "who was not replaced has it still")
	require.Contains(t, s.fails(4, "export", "sqlstore", "shop-1", path, "--yes", "--replace"), "which lives")
	require.NoError(t, c.Close())

	// And back.
	require.Contains(t, s.fails(4, "export", "sqlstore", "shop-1", path), "say --yes")
	require.Contains(t, s.fails(4, "export", "sqlstore", "shop-1", path, "--yes"), "has this device already")
	s.fails(1, "export", "sqlstore", "nobody", path, "--yes")
	out := parse[exported](t, s.ok("export", "sqlstore", "shop-1", path, "--yes", "--replace", "--json"))
	require.True(t, out.Fenced)
	require.Positive(t, out.Counts["session"])
	back, err := sqlite(t, path).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	ours = signaltest.NewPeer(back)
	signaltest.Say(t, ours, peer, "on the sqlstore again")
	require.True(t, scalar[bool](s, `SELECT abandon_through > 0 FROM whatsmeow.instances`), "it is of the past here")
	require.Contains(t, s.ok(append(again, "--replace", "--stopped")...), "are abandoned")
}

func TestImportFromSqlstoreOnPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.ok("migrate", "up")
	source := pgtest.Open(t)
	db, err := sqlstore.New(ctx, "pgx", source, nil)
	require.NoError(t, err)
	d := db.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	require.NoError(t, db.Close())
	r := start(t, []string{"PGSTORE_DSN=" + s.dsn, "PGSTORE_SOURCE=" + source}, "import", "sqlstore", "--stopped")
	require.Zero(t, r.code, r.errs)
	require.Contains(t, r.out, "1 devices imported")
	require.NotContains(t, r.out+r.errs, source)
	require.Equal(t, d.ID.String(), scalar[string](s, `SELECT id FROM whatsmeow.instances`))
	require.NotContains(t, s.fails(2, "import", "sqlstore", "postgres://a:hunter2@b:x/c"), "hunter2")
}

func TestImportFromBaileys(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.ok("migrate", "up")
	const folder = "../../../testdata/baileys/paired"
	text := s.ok("import", "baileys", folder, "--instance", "shop-1", "--stopped")
	require.Contains(t, text, "shop-1: imported device")
	require.Contains(t, text, "left out session")
	s.secrets.Note(t, s.dsn)
	in := parse[imported](t, s.ok("import", "baileys", folder, "--instance", "shop-1", "--stopped", "--json")).Imported
	require.NotEmpty(t, in[0].Skipped)
	s.fails(2, "import", "baileys", folder, "--replace")
	s.fails(1, "import", "baileys", t.TempDir())
}

func TestArchive(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	d, peer := s.pair(c, "shop-1")
	dir := t.TempDir()
	key, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	write(t, dir+"/key.txt", key.String()+"\n")
	write(t, dir+"/passphrase.txt", "correct horse battery staple\n")
	write(t, dir+"/empty.txt", "")
	to := key.Recipient().String()

	s.fails(2, "export", "archive", "shop-1", dir+"/copy.age")
	s.fails(2, "export", "archive", "shop-1", dir+"/copy.age", "--recipient", "nobody")
	s.fails(1, "export", "archive", "shop-1", dir+"/copy.age", "--passphrase-file", dir+"/empty.txt")
	require.False(t, parse[exported](t, s.ok("export", "archive", "shop-1", dir+"/copy.age", "--passphrase-file", dir+"/passphrase.txt", "--json")).Fenced)
	require.NoError(t, c.Flush(ctx), "a copy takes nothing")
	s.fails(1, "export", "archive", "shop-1", dir+"/copy.age", "--recipient", to) // which is there already
	s.fails(4, "export", "archive", "shop-1", dir+"/moved.age", "--recipient", to, "--move", "--yes")
	require.NoFileExists(t, dir+"/moved.age")
	require.NoError(t, c.Close())
	require.Contains(t, s.ok("export", "archive", "shop-1", dir+"/moved.age", "--recipient", to, "--move", "--yes"), "fenced here")

	other := newStage(t)
	other.ok("migrate", "up")
	other.secrets = s.secrets
	other.secrets.Add("identity of age", []byte(key.String()))
	other.secrets.Add("passphrase", []byte("correct horse battery staple"))
	other.fails(2, "import", "archive", dir+"/moved.age")
	other.fails(1, "import", "archive", dir+"/moved.age", "--passphrase-file", dir+"/passphrase.txt")
	other.fails(1, "import", "archive", dir+"/moved.age", "--identity", dir+"/passphrase.txt")
	other.fails(4, "import", "archive", dir+"/copy.age", "--passphrase-file", dir+"/passphrase.txt", "--moved")
	in := parse[imported](t, other.ok("import", "archive", dir+"/moved.age", "--identity", dir+"/key.txt", "--moved", "--json")).Imported
	require.Equal(t, "shop-1", in[0].Instance)
	require.True(t, in[0].Exact)
	next, err := other.open().Instance(ctx, "shop-1")
	require.NoError(t, err)
	require.Equal(t, d.ID, next.ID)
	signaltest.Say(t, signaltest.NewPeer(next), peer, "from another database")
}
