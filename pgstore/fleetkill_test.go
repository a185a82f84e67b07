package pgstore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Three processes share sixty instances, and one is killed. An instance runs when the process that has it has claimed it, has its device, and
// has written with it: then there is a row of the process that is younger than the take. All times are by the database's clock, and count from the moment at
// which the dead one's lease expired.

const (
	workerDSN    = "PGSTORE_TEST_WORKER_DSN"
	workerName   = "PGSTORE_TEST_WORKER_NAME"
	workerLease  = 3 * time.Second
	takeOver     = time.Second // how long after the lease has expired all have to run
	perTakeOver  = 5           // statements, for each instance
	shared60     = 60
	runningQuery = `SELECT count(*) FROM whatsmeow.instances i JOIN whatsmeow.processes p ON p.id = i.process AND p.expires > clock_timestamp()
		JOIN whatsmeow.auth_keys k ON k.instance_id = i.id AND k.key_type = 'identity' AND k.key_id = p.owner || ':0' AND k.updated_at >= i.taken_at`
)

// byCaller counts statements: all, and those whose context comes from a call of Claim.
type byCaller struct{ all, claiming, takes atomic.Int64 }

type claimingKey struct{}

func (b *byCaller) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	b.all.Add(1)
	if ctx.Value(claimingKey{}) != nil {
		b.claiming.Add(1)
		if strings.Contains(data.SQL, "taken_at = now()") {
			b.takes.Add(1)
		}
	}
	return ctx
}

func (b *byCaller) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestWorkerProcess is a process that shares; alone it does nothing. It says how many statements it has sent whenever it is asked.
func TestWorkerProcess(t *testing.T) {
	dsn := os.Getenv(workerDSN)
	if dsn == "" {
		return
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	count := new(byCaller)
	cfg.ConnConfig.Tracer, cfg.MaxConns = count, 4
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool, Owner: os.Getenv(workerName), Lease: workerLease})
	require.NoError(t, err)
	events, err := c.Watch(ctx)
	require.NoError(t, err)
	go func() {
		asked := bufio.NewScanner(os.Stdin)
		for asked.Scan() {
			fmt.Println(count.all.Load(), count.claiming.Load(), count.takes.Load())
		}
		os.Exit(0) // who has started it is gone
	}()
	var has []string
	for e := range events {
		switch e.Kind {
		case pgstore.Claimable:
			devices, err := c.Claim(context.WithValue(ctx, claimingKey{}, true), e.Count)
			require.NoError(t, err)
			for _, d := range devices {
				var mark [32]byte
				_, _ = rand.Read(mark[:])
				require.NoError(t, d.Identities.PutIdentity(ctx, os.Getenv(workerName)+":0", mark))
				has = append(has, pgstore.InstanceID(d))
			}
			require.NoError(t, c.Flush(ctx))
		case pgstore.Surplus:
			for ; e.Count > 0 && len(has) > 0; e.Count-- {
				require.NoError(t, c.Release(ctx, has[0]))
				has = has[1:]
			}
		case pgstore.Stopped:
			require.NoError(t, e.Err)
		}
	}
}

// worker is such a process, seen from outside.
type worker struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	ask  io.Writer
	said *bufio.Scanner
	end  func()
}

func startWorker(t testing.TB, dsn, name string) *worker {
	t.Helper()
	w := &worker{t: t, name: name, cmd: exec.Command(os.Args[0], "-test.run=^TestWorkerProcess$", "-test.timeout=5m")}
	w.cmd.Env = append(os.Environ(), workerDSN+"="+dsn, workerName+"="+name)
	w.cmd.Stderr = os.Stderr
	in, err := w.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := w.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, w.cmd.Start())
	w.ask, w.said = in, bufio.NewScanner(out)
	w.end = sync.OnceFunc(func() {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	})
	t.Cleanup(w.end)
	return w
}

// counts is what the worker has counted.
func (w *worker) counts() (counts [3]int) {
	w.t.Helper()
	_, err := fmt.Fprintln(w.ask)
	require.NoError(w.t, err)
	require.True(w.t, w.said.Scan(), "worker %s has ended", w.name)
	_, err = fmt.Sscan(w.said.Text(), &counts[0], &counts[1], &counts[2])
	require.NoError(w.t, err, w.said.Text())
	return counts
}

// haveSessions gives each instance two sessions, with people of its own (what a process knows of them already costs no statement): one by number and
// one by LID.
func haveSessions(t testing.TB, dsn string) {
	t.Helper()
	c := process(t, dsn)
	d, err := c.GetFirstDevice(ctx)
	require.NoError(t, err)
	signaltest.Meet(t, signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice())), signaltest.NewPeer(d))
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq)
		SELECT i.id, k.key_type, 4911000000 + row_number() OVER () || device, k.data, 0
		FROM whatsmeow.auth_keys k, whatsmeow.instances i, unnest('{:0,_1:0}'::text[]) AS device WHERE k.key_type = 'session'`))
}

func TestP6WhatAKilledProcessHadRunsAgainASecondAfterItsLease(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, shared60-1)
	haveSessions(t, dsn)
	f := &workers{TB: t, dsn: dsn, running: make(map[string]*worker)}
	for _, name := range []string{"1", "2", "3"} {
		f.running[name] = startWorker(t, dsn, name)
	}
	for try := range 5 { // a machine that is busy with other tests may need longer
		f.settles(20, 20, 20)
		if f.killOne("2") <= takeOver {
			return
		}
		t.Logf("attempt %d took too long", try+1)
		f.running["2"] = startWorker(t, dsn, "2")
	}
	require.Fail(t, "what the killed process had did not run in time")
}

// workers are those that run.
type workers struct {
	testing.TB
	dsn     string
	running map[string]*worker
}

// settles waits until the shares of those that live are as given, most first, and all instances run.
func (f *workers) settles(shares ...int64) {
	f.Helper()
	require.Eventually(f, func() bool {
		now := scalar[[]int64](f, f.dsn, `SELECT array_agg(n ORDER BY n DESC) FROM (SELECT count(i.id) AS n FROM whatsmeow.processes p
			LEFT JOIN whatsmeow.instances i ON i.process = p.id WHERE p.claims AND p.expires > clock_timestamp() GROUP BY p.id) AS shares`)
		return slices.Equal(now, shares) && scalar[int](f, f.dsn, runningQuery) == shared60
	}, time.Minute, 20*time.Millisecond)
}

// killOne kills a worker, and returns how long after its lease had expired all that it had ran again.
func (f *workers) killOne(name string) (took time.Duration) {
	f.Helper()
	victim := f.running[name]
	delete(f.running, name)
	process := scalar[string](f, f.dsn, `SELECT id::text FROM whatsmeow.processes WHERE owner = $1 ORDER BY started_at DESC LIMIT 1`, name)
	had := scalar[[]string](f, f.dsn, `SELECT array_agg(id) FROM whatsmeow.instances WHERE process = $1`, process)
	require.Len(f, had, shared60/3)
	before := f.counts()
	killed := scalar[time.Time](f, f.dsn, `SELECT clock_timestamp()`)
	victim.end()
	require.Equal(f, syscall.SIGKILL, victim.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	f.settles(30, 30)
	after := f.counts()
	all, claiming, takes := after[0]-before[0], after[1]-before[1], after[2]-before[2]

	expired := scalar[time.Time](f, f.dsn, `SELECT expires FROM whatsmeow.processes WHERE id = $1`, process)
	taken := scalar[time.Time](f, f.dsn, `SELECT min(taken_at) FROM whatsmeow.instances WHERE id = ANY($1)`, had)
	ran := scalar[time.Time](f, f.dsn, `SELECT max(k.updated_at) FROM whatsmeow.instances i JOIN whatsmeow.processes p ON p.id = i.process
		JOIN whatsmeow.auth_keys k ON k.instance_id = i.id AND k.key_type = 'identity' AND k.key_id = p.owner || ':0' WHERE i.id = ANY($1)`, had)
	f.Logf("%d of %d instances were taken over; the lease of %v expired %v after the kill; the first was taken %v later, the last ran %v later",
		len(had), shared60, workerLease, expired.Sub(killed), taken.Sub(expired), ran.Sub(expired))
	f.Logf("%d statements to claim, take and load them, %.2f an instance; %d more by everything else of the two processes meanwhile",
		claiming, float64(claiming)/float64(len(had)), all-claiming)
	require.Zero(f, scalar[int](f, f.dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
	require.Equal(f, len(had), takes, "each was taken once, and the counter sees that")
	require.LessOrEqual(f, claiming, perTakeOver*len(had))
	require.False(f, taken.Before(expired), "nobody takes what is leased")
	return ran.Sub(expired)
}

// counts is how many statements the workers have sent, how many of them to claim, and how many to take.
func (f *workers) counts() (sum [3]int) {
	f.Helper()
	for _, w := range f.running {
		for i, n := range w.counts() {
			sum[i] += n
		}
	}
	return sum
}
