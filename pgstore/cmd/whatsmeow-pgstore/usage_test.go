package main_test

import (
	"bufio"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// follow starts a command that goes on, and returns its lines and how to end it as Ctrl-C does.
func follow(t testing.TB, cmd *exec.Cmd) (lines <-chan string, stop func() error) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	said, done := make(chan string), make(chan struct{})
	go func() {
		defer close(done)
		defer close(said)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			said <- scanner.Text()
		}
	}()
	return said, func() error {
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		for range said { // what comes while it ends
		}
		<-done
		return cmd.Wait()
	}
}

type role struct{ name, password, dsn string }

// pgRole makes a role of a test's own that may log in.
func pgRole(s *stage, kind, rights string) role {
	s.Helper()
	u, err := url.Parse(s.dsn)
	require.NoError(s, err)
	r := role{name: kind + "_" + strings.TrimPrefix(u.Path, "/pgstore_"), password: "hunter2-is-secret"}
	s.exec(`CREATE ROLE ` + r.name + ` LOGIN PASSWORD '` + r.password + `' ` + rights)
	s.Cleanup(func() { s.exec(`DROP OWNED BY `+r.name, `DROP ROLE `+r.name) })
	u.User = url.UserPassword(r.name, r.password)
	r.dsn = u.String()
	return r
}

func TestExitCodesOfWrongUsage(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no such command":         {"frobnicate"},
		"no such subcommand":      {"instances", "frobnicate"},
		"no such flag":            {"doctor", "--frobnicate"},
		"a flag without a value":  {"doctor", "--dsn"},
		"an argument too many":    {"instances", "list", "x"},
		"an argument is missing":  {"heal"},
		"no database":             {"doctor"},
		"a DSN that is none":      {"doctor", "--dsn", "postgres://user:hunter2@host:port/x"},
		"a duration that is none": {"doctor", "--wait", "x"},
	} {
		r := start(t, nil, args...)
		require.Equal(t, 2, r.code, name)
		require.NotEmpty(t, r.errs, name)
		require.Empty(t, r.out, name)
		require.NotContains(t, r.errs, "hunter2", name)
	}
}

func TestExitCodeOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	for _, args := range [][]string{{"doctor"}, {"instances", "list"}, {"migrate", "up"}, {"release", "x"}} {
		r := start(t, []string{"PGSTORE_DSN=postgres://somebody:hunter2-is-secret@" + address + "/bots"}, args...)
		require.Equal(t, 5, r.code, r.errs)
		require.Contains(t, r.errs, "bots")
		require.NotContains(t, r.errs, "hunter2")
	}
}

func TestAWrongPasswordIsNoOutageAndIsNotPrinted(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	r := pgRole(s, "nobody", "")
	said := start(t, nil, "instances", "list", "--verbose", "--dsn", strings.Replace(r.dsn, r.password, "correct-horse-battery", 1))
	require.Contains(t, []int{1}, said.code, said.errs)
	require.NotContains(t, said.out+said.errs, "correct-horse-battery")
}

func TestARoleWithoutRightsIsTold(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.open()
	r := pgRole(s, "stranger", "")
	said := start(t, []string{"PGSTORE_DSN=" + r.dsn}, "instances", "list")
	require.Equal(t, 1, said.code)
	require.Contains(t, said.errs, "roles.sql")
	require.NotContains(t, said.errs, r.password)
}

func TestAnotherRealmIsRefused(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	for _, args := range [][]string{{"heal", "shop-1", "--yes", "--force"}, {"release", "shop-1", "--force"}, {"prune", "shop-1", "--force", "--message-secrets", "1d"}, {"prune", "--audit", "1d"}, {"migrate", "up"}, {"drill", "--i-know"}} {
		require.Contains(t, s.fails(4, append(args, "--realm", "staging")...), "realm", args)
	}
	require.NoError(t, c.Flush(ctx), "nothing was taken")
}

func TestASchemaThatIsMissingIsTold(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.open()
	s.exec(`DELETE FROM whatsmeow.schema_info WHERE version > 1`, `INSERT INTO whatsmeow.instances (id, jid, epoch, timeline) VALUES ('shop-1', 'x', 1, '')`)
	require.Contains(t, s.fails(1, "release", "shop-1"), "migrate up")
}

// Every command says what it does, with examples, and how it ends.
func TestHelp(t *testing.T) {
	t.Parallel()
	commands := [][]string{
		{},
		{"migrate"},
		{"migrate", "up"},
		{"migrate", "status"},
		{"instances"},
		{"instances", "list"},
		{"instances", "show"},
		{"stats"},
		{"top"},
		{"audit"},
		{"audit", "tail"},
		{"audit", "verify"},
		{"heal"},
		{"release"},
		{"prune"},
		{"doctor"},
		{"drill"},
	}
	for _, c := range commands {
		r := start(t, nil, append(c, "--help")...)
		require.Zero(t, r.code, c)
		require.Contains(t, r.out, "Examples:", c)
		require.Contains(t, r.out, "Exit codes:", c)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.Contains(t, start(t, nil, "completion", shell).out, "whatsmeow-pgstore")
	}
	require.Contains(t, start(t, nil, "--version").out, "whatsmeow-pgstore version")
}
