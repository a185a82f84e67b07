package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// inCI says whether a missing part of the environment fails a test instead of skipping it.
func inCI() bool { return os.Getenv("CI") != "" }

// Missing skips a test that needs what this machine does not have, with a line that says so. In CI it fails.
func Missing(t testing.TB, what string) {
	t.Helper()
	if inCI() {
		t.Fatalf("%s is missing, and CI has to have it", what)
	}
	t.Skipf("skipped: needs %s", what)
}

// PgBouncer starts a PgBouncer in transaction mode in front of the database that dsn names, with a pool of that many
// server connections, and returns the DSN through it. It ends with the test.
func PgBouncer(t testing.TB, dsn string, pool int) string {
	t.Helper()
	binary, err := exec.LookPath("pgbouncer")
	if err != nil {
		if binary = "/usr/sbin/pgbouncer"; exec.Command(binary, "--version").Run() != nil { // not on every user's PATH
			Missing(t, "pgbouncer")
		}
	}
	to, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pgstore-pgbouncer-") // not t.TempDir: another user has to reach it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	password := ""
	if to.Password != "" {
		password = " password='" + strings.ReplaceAll(to.Password, "'", "''") + "'"
	}
	files := map[string]string{
		"users.txt": fmt.Sprintf("%q \"\"\n", to.User),
		"pgbouncer.ini": fmt.Sprintf(`[databases]
%s = host=%s port=%d user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 200
`, to.Database, to.Host, to.Port, to.User, password, port, filepath.Join(dir, "users.txt"), pool),
	}
	for name, content := range files {
		if err = os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	as, err := ordinaryUser(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	// The version of Debian 12, 1.18, ends itself now and then when a query is cancelled under load (pgbouncer/pgbouncer#822). It is started again, as
	// a service manager does.
	ctx, end := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			cmd := exec.CommandContext(ctx, binary, "-q", filepath.Join(dir, "pgbouncer.ini"))
			cmd.SysProcAttr, cmd.Dir = as(), dir
			err := cmd.Run()
			if ctx.Err() != nil {
				return
			}
			t.Logf("PgBouncer has ended and is started again: %v", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		end()
		running.Wait()
	})
	s := &Server{DSN: fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", to.User, port, to.Database)}
	if err = s.await(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s.DSN
}
