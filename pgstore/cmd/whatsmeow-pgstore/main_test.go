package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var ctx = context.Background()

// path is what a user installs, and command the binary that TestMain has installed so.
const path = "github.com/wataki/whatsmeow-pgstore/pgstore/cmd/whatsmeow-pgstore"

var command string

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(func() int {
		dir, err := os.MkdirTemp("", "whatsmeow-pgstore-")
		if err != nil {
			panic(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		install := exec.Command("go", "install", path)
		install.Env = append(os.Environ(), "GOBIN="+dir)
		if out, err := install.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		command = filepath.Join(dir, "whatsmeow-pgstore")
		return m.Run()
	}))
}

// stage is a database on which commands are run.
type stage struct {
	testing.TB
	dsn     string
	secrets secrettest.Secrets
}

func newStage(t testing.TB) *stage { return &stage{TB: t, dsn: pgtest.Open(t)} }

// open is a process that has a database.
func (s *stage) open(edit ...func(*pgstore.Config)) *pgstore.Container {
	s.Helper()
	cfg := pgstore.Config{DSN: s.dsn, Owner: "worker-1", Address: "10.0.0.1:80"}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(s, err)
	s.Cleanup(func() { _ = c.Close() }) // or it was closed before
	return c
}

// pair makes an instance that has talked with somebody, and saves it.
func (s *stage) pair(c *pgstore.Container, id string) (*store.Device, *signaltest.Peer) {
	s.Helper()
	d, err := c.Instance(ctx, id)
	require.NoError(s, err)
	signaltest.FillPairing(d)
	require.NoError(s, d.Save(ctx))
	peer := signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice()))
	signaltest.Meet(s, peer, signaltest.NewPeer(d))
	require.NoError(s, c.Flush(ctx))
	s.secrets.Note(s, s.dsn)
	return d, peer
}

func (s *stage) exec(statements ...string) {
	s.Helper()
	conn, err := pgx.Connect(ctx, s.dsn)
	require.NoError(s, err)
	defer func() { require.NoError(s, conn.Close(ctx)) }()
	for _, statement := range statements {
		_, err = conn.Exec(ctx, statement)
		require.NoError(s, err, statement)
	}
}

func scalar[T any](s *stage, query string, args ...any) (v T) {
	s.Helper()
	conn, err := pgx.Connect(ctx, s.dsn)
	require.NoError(s, err)
	defer func() { require.NoError(s, conn.Close(ctx)) }()
	require.NoError(s, conn.QueryRow(ctx, query, args...).Scan(&v))
	return v
}

// said is what a command said, and how it ended.
type said struct {
	out, errs string
	code      int
}

// run runs a command on the database, as a process. Whatever it says has no secret in it.
func (s *stage) run(args ...string) said {
	s.Helper()
	r := start(s, []string{"PGSTORE_DSN=" + s.dsn}, args...)
	s.clean(r, args)
	return r
}

func (s *stage) clean(r said, args []string) {
	s.Helper()
	require.NotContains(s, r.out+r.errs, s.dsn, args)
	if s.secrets.Kinds() != nil {
		s.secrets.RequireNoneIn(s, strings.Join(args, " "), r.out+r.errs+"\n")
	}
}

// ok runs a command that has to end well, and returns what it printed.
func (s *stage) ok(args ...string) string {
	s.Helper()
	r := s.run(args...)
	require.Zero(s, r.code, "%v: %s %s", args, r.out, r.errs)
	return r.out
}

// fails runs a command that has to end with that code, and returns what it said of it.
func (s *stage) fails(code int, args ...string) string {
	s.Helper()
	r := s.run(args...)
	require.Equal(s, code, r.code, "%v: %s %s", args, r.out, r.errs)
	return r.errs
}

// start runs a command with the variables that are given, and no others of ours.
func start(t testing.TB, env []string, args ...string) said {
	t.Helper()
	cmd := exec.Command(command, args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PGSTORE_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// parse reads JSON of which every field is known.
func parse[T any](t testing.TB, text string) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&v), text)
	require.False(t, d.More(), "one object is printed")
	return v
}
