package pgstore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
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

// counts is how many statements the worker has sent, how many of them to claim, and how many to take.
func (w *worker) counts() (all, claiming, takes int) {
	w.t.Helper()
	_, err := fmt.Fprintln(w.ask)
	require.NoError(w.t, err)
	require.True(w.t, w.said.Scan(), "worker %s has ended", w.name)
	_, err = fmt.Sscan(w.said.Text(), &all, &claiming, &takes)
	require.NoError(w.t, err, w.said.Text())
	return all, claiming, takes
}

func TestP6WhatAKilledProcessHadRunsAgainASecondAfterItsLease(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, shared60-1)
	// Each has sessions with people of its own, one by number and one by LID: what a process knows of them already costs no statement.
	require.NoError(t, execSQL(t, dsn, `INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq)
		SELECT id, 'session', 4911000000 + row_number() OVER () || device, '{"record": "{}"}', 0 FROM whatsmeow.instances, unnest('{:0,_1:0}'::text[]) AS device`))
	workers := make(map[string]*worker)
	for i := range 3 {
		name := strconv.Itoa(i + 1)
		workers[name] = startWorker(t, dsn, name)
	}
	shares := func() []int64 {
		return scalar[[]int64](t, dsn, `SELECT array_agg(n ORDER BY n DESC) FROM (SELECT count(i.id) AS n FROM whatsmeow.processes p
			LEFT JOIN whatsmeow.instances i ON i.process = p.id WHERE p.claims AND p.expires > clock_timestamp() GROUP BY p.id) AS shares`)
	}
	allRun := func() bool { return scalar[int](t, dsn, runningQuery) == shared60 }
	settled := func(each int64, of int) func() bool {
		return func() bool {
			now := shares()
			for _, n := range now {
				if n != each {
					return false
				}
			}
			return len(now) == of && allRun()
		}
	}
	require.Eventually(t, settled(20, 3), time.Minute, 50*time.Millisecond)

	victim := workers["2"]
	delete(workers, "2")
	process := scalar[string](t, dsn, `SELECT id::text FROM whatsmeow.processes WHERE owner = $1`, victim.name)
	had := scalar[[]string](t, dsn, `SELECT array_agg(id) FROM whatsmeow.instances WHERE process = $1`, process)
	require.Len(t, had, shared60/3)
	before := make(map[string][3]int)
	for name, w := range workers {
		all, claiming, takes := w.counts()
		before[name] = [3]int{all, claiming, takes}
	}
	killed := scalar[time.Time](t, dsn, `SELECT clock_timestamp()`)
	victim.end()
	require.Equal(t, syscall.SIGKILL, victim.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	require.Eventually(t, settled(shared60/2, 2), time.Minute, 20*time.Millisecond)

	all, claiming, takes := 0, 0, 0
	for name, w := range workers {
		a, c, n := w.counts()
		all, claiming, takes = all+a-before[name][0], claiming+c-before[name][1], takes+n-before[name][2]
	}
	expired := scalar[time.Time](t, dsn, `SELECT expires FROM whatsmeow.processes WHERE id = $1`, process)
	var first, last time.Time
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	require.NoError(t, conn.QueryRow(ctx, `SELECT min(i.taken_at), max(k.updated_at) FROM whatsmeow.instances i JOIN whatsmeow.processes p ON p.id = i.process
		JOIN whatsmeow.auth_keys k ON k.instance_id = i.id AND k.key_type = 'identity' AND k.key_id = p.owner || ':0' WHERE i.id = ANY($1)`, had).Scan(&first, &last))
	t.Logf("%d of %d instances were taken over; the lease of %v expired %v after the kill; the first was taken %v later, the last ran %v later",
		len(had), shared60, workerLease, expired.Sub(killed), first.Sub(expired), last.Sub(expired))
	t.Logf("%d statements to claim, take and load them, %.2f an instance; %d more by everything else of the two processes meanwhile",
		claiming, float64(claiming)/float64(len(had)), all-claiming)
	require.Equal(t, len(had), takes, "each was taken once, and the counter sees that")
	require.LessOrEqual(t, claiming, perTakeOver*len(had))
	require.False(t, first.Before(expired), "nobody takes what is leased")
	require.LessOrEqual(t, last.Sub(expired), takeOver)
}
