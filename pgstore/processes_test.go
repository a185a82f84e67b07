package pgstore_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Processes, each the test binary once more, do what they are told on their standard input, all at once, and say on their standard output how it went.

const openingDSN = "PGSTORE_TEST_OPENING_DSN"

// answered begins what a process says, "ok" or an error.
const answered = "answered: "

// what an opening process can be told.
const (
	toStart = "start" // connect, and migrate if nobody has
	toPair  = "pair"  // pair an instance that is called shared
	toTake  = "take"  // take it
	toWrite = "write" // write something of its own in it, and flush it
	toClose = "close"
)

// lost is the answer of a process that another one has overtaken.
const lost = "lost"

// TestOpeningProcess is one of the processes; alone it does nothing.
func TestOpeningProcess(_ *testing.T) {
	dsn := os.Getenv(openingDSN)
	if dsn == "" {
		return
	}
	var c *pgstore.Container
	var d *store.Device
	turn := 0
	do := func(what string) (err error) {
		switch what {
		case toStart:
			c, err = pgstore.New(ctx, dsn, nil)
			return err
		case toPair:
			if d, err = c.Instance(ctx, "shared"); err != nil {
				return err
			}
			signaltest.FillPairing(d)
			return d.Save(ctx)
		case toTake:
			d, err = c.Instance(ctx, "shared")
			return err
		case toWrite:
			turn++
			if d == nil { // it was overtaken when it took it
				return pgstore.ErrOwnershipLost
			}
			if err = d.Identities.PutIdentity(ctx, "1:0", writtenBy(os.Getpid(), turn)); err != nil {
				return err
			}
			return c.Flush(ctx)
		case toClose:
			err = c.Close()
			var unsaved *batcher.UnsavedError
			if errors.As(err, &unsaved) && len(unsaved.Pending) == 1 && unsaved.Pending["shared"] == 1 {
				return unsaved.Cause // what toWrite did not save
			}
			return err
		}
		return fmt.Errorf("unknown: %q", what)
	}
	obey(do)
}

// obey does all that it is told.
func obey(do func(what string) error) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch err := do(lines.Text()); {
		case err == nil:
			fmt.Println(answered + "ok")
		case errors.Is(err, pgstore.ErrOwnershipLost):
			fmt.Println(answered + lost)
		default:
			fmt.Println(answered + err.Error())
		}
	}
}

// writtenBy is what a process writes in its n-th turn: what is there already would not be written.
func writtenBy(pid, turn int) [32]byte {
	return [32]byte{byte(pid), byte(pid >> 8), byte(pid >> 16), byte(turn)}
}

// toldProcess is such a process, seen from outside.
type toldProcess struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

// startProcesses starts processes that are a test, with a database.
func startProcesses(t *testing.T, n int, test, dsn string) (all []*toldProcess) {
	for range n {
		p := &toldProcess{cmd: exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=1h")}
		p.cmd.Env, p.cmd.Stderr = append(os.Environ(), openingDSN+"="+dsn), os.Stderr
		in, err := p.cmd.StdinPipe()
		require.NoError(t, err)
		out, err := p.cmd.StdoutPipe()
		require.NoError(t, err)
		p.in, p.lines = in, bufio.NewScanner(out)
		require.NoError(t, p.cmd.Start())
		t.Cleanup(func() {
			_ = p.in.Close()
			for p.lines.Scan() {
			}
			if err := p.cmd.Wait(); err != nil && !t.Failed() { // it found a race, or goroutines that were left
				t.Error(err)
			}
		})
		all = append(all, p)
	}
	return all
}

// tell tells all processes to do something at once, and returns their answers.
func tell(processes []*toldProcess, what string) []string {
	answers := make([]string, len(processes))
	var wg sync.WaitGroup
	for i, p := range processes {
		wg.Go(func() {
			_, _ = fmt.Fprintln(p.in, what)
			for answers[i] == "" && p.lines.Scan() {
				_, answers[i], _ = strings.Cut(p.lines.Text(), answered)
			}
		})
	}
	wg.Wait()
	return answers
}

func requireAll(t *testing.T, answer string, answers []string) {
	t.Helper()
	require.Equal(t, slices.Repeat([]string{answer}, len(answers)), answers)
}

func TestManyProcessesMigrateAtOnce(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t) // nothing is there yet
	processes := startProcesses(t, 10, "TestOpeningProcess", dsn)
	requireAll(t, "ok", tell(processes, toStart))
	require.True(t, scalar[bool](t, dsn, `SELECT count(*) = max(version) FROM whatsmeow.schema_info`), "each migration ran once")
	require.Equal(t, 10, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.processes`), "all run")
	requireAll(t, "ok", tell(processes, toClose))
}

func TestP6OfManyProcessesThatOpenAnInstanceOneHasIt(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	processes := startProcesses(t, 10, "TestOpeningProcess", dsn)
	requireAll(t, "ok", tell(processes, toStart))
	requireAll(t, "ok", tell(processes[:1], toPair))
	for turn := 1; turn <= 3; turn++ {
		for _, answer := range tell(processes, toTake) {
			require.Contains(t, []string{"ok", lost}, answer)
		}
		answers := tell(processes, toWrite)
		owner := slices.Index(answers, "ok")
		require.GreaterOrEqual(t, owner, 0, answers)
		requireAll(t, lost, slices.Delete(answers, owner, owner+1))
		want := writtenBy(processes[owner].cmd.Process.Pid, turn)
		require.Equal(t, want[:], scalar[[]byte](t, dsn, `SELECT decode(data->>'value', 'base64') FROM whatsmeow.auth_keys WHERE key_type = 'identity'`))
	}
	for _, answer := range tell(processes, toClose) {
		require.Contains(t, []string{"ok", lost}, answer)
	}
}
