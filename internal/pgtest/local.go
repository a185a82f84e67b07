package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// binaries is the directory of the newest initdb on this machine.
func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // the others may have no link there
			return filepath.Dir(path), nil
		}
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/opt/homebrew/opt/postgresql@*/bin/initdb", "/usr/local/opt/postgresql@*/bin/initdb"} {
		matches, _ := filepath.Glob(pattern)
		found = append(found, matches...)
	}
	if len(found) == 0 {
		return "", errors.New("local: no initdb on this machine")
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }) // 9.6 before 15
	return filepath.Dir(found[len(found)-1]), nil
}

// room is a temporary directory and the programs that work in it, as a user that PostgreSQL accepts.
type room struct {
	bin, dir string
	as       func() *syscall.SysProcAttr
}

func newRoom(apart bool) (r room, err error) {
	if r.bin, err = binaries(); err != nil {
		return r, err
	}
	if r.dir, err = os.MkdirTemp("", "pgstore-postgres-"); err != nil { // not t.TempDir: another user has to reach it
		return r, err
	}
	if r.as, err = ordinaryUser(r.dir, apart); err != nil {
		return r, errors.Join(fmt.Errorf("local: %w", err), r.remove())
	}
	return r, nil
}

func (r room) remove() error { return os.RemoveAll(r.dir) }

func (r room) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr, cmd.Dir = r.as(), r.dir
	return cmd
}

// run runs one of PostgreSQL's programs.
func (r room) run(ctx context.Context, program string, args ...string) error {
	if out, err := r.command(ctx, filepath.Join(r.bin, program), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("local: %s: %w: %s", program, err, out)
	}
	return nil
}

func (r room) initdb(ctx context.Context, data string) error {
	return r.run(ctx, "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
}

// local is a server on a data directory in a room.
type local struct {
	room
	data     string
	port     int
	settings []string // of postgresql.conf, as "name=value"
	process  *exec.Cmd
}

// newLocal starts a server. It may not answer yet.
func newLocal(r room, data string, settings ...string) (*local, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	l := &local{room: r, data: data, port: port, settings: settings}
	return l, l.start()
}

func (l *local) start() error {
	args := []string{"-D", l.data, "-p", strconv.Itoa(l.port), "-k", l.dir}
	for _, s := range append([]string{"listen_addresses=127.0.0.1", "fsync=off", "max_connections=300"}, l.settings...) {
		args = append(args, "-c", s)
	}
	// Its end is not a context's: a test that ends stops it.
	l.process = l.command(context.Background(), filepath.Join(l.bin, "postgres"), args...)
	if err := l.process.Start(); err != nil {
		return fmt.Errorf("local: postgres: %w", err)
	}
	return nil
}

// stop lets it shut down fast.
func (l *local) stop() { l.signal(os.Interrupt) }

// kill shuts it down immediately, which leaves the data as a crash does.
func (l *local) kill() { l.signal(syscall.SIGQUIT) }

func (l *local) signal(s os.Signal) {
	_ = l.process.Process.Signal(s)
	_ = l.process.Wait()
}

func (l *local) dsn() string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", l.port)
}

func startLocal(ctx context.Context) (*Server, error) { return startBinaries(ctx, false) }

func startBinaries(ctx context.Context, apart bool) (s *Server, err error) {
	r, err := newRoom(apart)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(r.dir, "data")
	if err = r.initdb(ctx, data); err != nil {
		return nil, errors.Join(err, r.remove())
	}
	server, err := newLocal(r, data)
	if err != nil {
		return nil, errors.Join(err, r.remove())
	}
	s = &Server{
		DSN:         server.dsn(),
		Description: "PostgreSQL from " + r.bin + " in a temporary directory",
		stop: func() error {
			server.stop()
			return r.remove()
		},
		kill: func() error {
			server.kill()
			return server.start()
		},
	}
	if err = s.await(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}
