package migrate_test

import (
	"bufio"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// childVariable makes this binary import a SQLite database that it names, and stand still in the middle of it.
const (
	childVariable = "MIGRATE_TEST_SOURCE"
	dsnVariable   = "MIGRATE_TEST_DSN"
)

func importAndStop() {
	db, err := sql.Open("sqlite", os.Getenv(childVariable))
	if err == nil {
		var c *pgstore.Container
		if c, err = pgstore.New(ctx, os.Getenv(dsnVariable), nil); err == nil {
			_, err = migrate.FromSqlstore(ctx, c, migrate.Sqlstore{DB: db, Dialect: "sqlite3"}, migrate.Options{Exact: true, Progress: func(p migrate.Progress) {
				if p.Done > p.Total/2 {
					fmt.Println("half of it")
					select {}
				}
			}})
		}
	}
	fmt.Println("it came to an end:", err)
}

// A process that dies in the middle of an import leaves nothing, and the import is done again.
func TestP3AnImportThatIsKilledLeavesNothing(t *testing.T) {
	t.Parallel()
	address := backends[0].address(t)
	from := backend{"", "sqlite", "sqlite3", func(testing.TB) string { return address }}.open(t)
	theirs := container(from)
	d := theirs.NewDevice()
	peer := fillDevice(t, d, theirs.NewDevice())
	var secrets []store.MessageSecretInsert
	for i := range 3000 {
		secrets = append(secrets, store.MessageSecretInsert{Chat: chat, Sender: chat, ID: strconv.Itoa(i), Secret: fill(byte(i), 32)})
	}
	require.NoError(t, d.MsgSecrets.PutMessageSecrets(ctx, secrets))

	dsn := pgtest.Open(t)
	c := open(t, dsn)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+address, dsnVariable+"="+dsn)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	require.Equal(t, "half of it", lines.Text())
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())

	require.Zero(t, scalar[int](t, dsn, `SELECT (SELECT count(*) FROM whatsmeow.auth_keys) + (SELECT count(*) FROM whatsmeow.instances)`))
	results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
	require.NoError(t, err)
	require.Equal(t, 3001, results[0].Counts["message_secret"])
	ours, err := c.GetFirstDevice(ctx)
	require.NoError(t, err)
	require.Equal(t, answersOf(t, d, []string{peer}), answersOf(t, ours, []string{peer}))
}
