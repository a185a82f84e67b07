package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// unfenced is the flush statement without its fence: the rows of all lanes are written, whoever has the instances.
func unfenced(b *testing.B) string {
	head, rest, ok := strings.Cut(flushStatement, "), op AS (")
	require.True(b, ok)
	require.Contains(b, head, "UPDATE")
	return `WITH lane AS (SELECT id, seq + 1 AS seq FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS l (id, epoch, seq, timeline)
		), op AS (` + rest
}

// BenchmarkFence sends flushes of so many rows of so many lanes, with the fence and without it, in turns and under the same conditions. It reports what a flush
// with its commit takes in multiples of one without a fence; and of the statement alone what each lane after the first adds, with the fence and without.
func BenchmarkFence(b *testing.B) {
	ctx := context.Background()
	const most = 51
	c, err := New(ctx, pgtest.Open(b), nil)
	require.NoError(b, err)
	defer func() { require.NoError(b, c.Close()) }()
	var all []*instance
	for range most {
		d := c.NewDevice()
		signaltest.FillPairing(d)
		require.NoError(b, d.Save(ctx))
		all = append(all, c.mu.instances[d.ID.String()])
	}
	slices.SortFunc(all, func(x, y *instance) int { return strings.Compare(x.id, y.id) })
	require.NoError(b, c.Flush(ctx))
	conn, err := c.pool.Acquire(ctx)
	require.NoError(b, err)
	defer conn.Release()
	for _, rows := range []int{most, 20 * most} {
		alone := make(map[bool]float64) // the statement for one lane, by whether it is fenced
		for _, lanes := range []int{1, 11, most} {
			b.Run(fmt.Sprintf("%d rows/%d lanes", rows, lanes), func(b *testing.B) {
				took, whole := make(map[bool][]time.Duration), make(map[bool][]time.Duration)
				for i := range 2 * b.N {
					with := i%2 == 0
					statement := unfenced(b)
					if with {
						statement = flushStatement
					}
					s, w := fenceOnce(b, conn.Conn(), c, statement, all[:lanes], rows)
					if i >= 2*min(5, b.N-1) { // the first ones plan
						took[with], whole[with] = append(took[with], s), append(whole[with], w)
					}
				}
				median := func(of []time.Duration) float64 { return float64(slices.Sorted(slices.Values(of))[len(of)/2]) / 1e3 }
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(whole[true]), "µs")
				b.ReportMetric(median(whole[true])/median(whole[false]), "x-unfenced")
				if lanes == 1 {
					alone[true], alone[false] = median(took[true]), median(took[false])
					return
				}
				for with, name := range map[bool]string{true: "µs/lane", false: "µs/lane-unfenced"} {
					b.ReportMetric((median(took[with])-alone[with])/float64(lanes-1), name)
				}
			})
		}
	}
}

// fenceOnce sends one flush, of identities that change, and returns how long the statement took, and the same with the commit.
func fenceOnce(b *testing.B, conn *pgx.Conn, c *Container, statement string, lanes []*instance, rows int) (took, whole time.Duration) {
	ctx := context.Background()
	var columns laneColumns
	var ops opColumns
	for _, in := range lanes {
		columns.add(in)
	}
	for i := range rows {
		ops.instances = append(ops.instances, lanes[i*len(lanes)/rows].id)
		ops.types, ops.ids = append(ops.types, "session"), append(ops.ids, fmt.Sprintf("%06d:0", i))
		ops.kinds = append(ops.kinds, 0)
		ops.data = append(ops.data, fmt.Sprintf(`{"record": "%s%d"}`, strings.Repeat("x", 200), time.Now().UnixNano()))
	}
	began := time.Now()
	tx, err := conn.Begin(ctx)
	require.NoError(b, err)
	before := time.Now()
	answer, err := tx.Query(ctx, c.sql(statement), pgx.QueryExecModeCacheStatement, columns.ids, columns.epochs, columns.seqs, columns.timelines,
		ops.instances, ops.types, ops.ids, ops.kinds, ops.data)
	require.NoError(b, err)
	held := 0
	_, err = pgx.ForEachRow(answer, []any{nil, nil}, func() error {
		held++
		return nil
	})
	require.NoError(b, err)
	took = time.Since(before)
	require.NoError(b, tx.Commit(ctx))
	whole = time.Since(began)
	require.Equal(b, len(lanes), held)
	if statement == flushStatement {
		for _, in := range lanes {
			in.advance()
		}
	}
	return took, whole
}

// BenchmarkHeartbeat is what a process's sign of life costs that has so many instances, and what it does besides: finding out which of them it has lost, and
// what others have learnt of LIDs.
func BenchmarkHeartbeat(b *testing.B) {
	ctx := context.Background()
	for _, instances := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d instances", instances), func(b *testing.B) {
			c, err := NewWithConfig(ctx, Config{DSN: pgtest.Open(b), Lease: time.Hour})
			require.NoError(b, err)
			defer func() { require.NoError(b, c.Close()) }()
			for range instances {
				d := c.NewDevice()
				signaltest.FillPairing(d)
				require.NoError(b, d.Save(ctx))
			}
			require.NoError(b, c.Flush(ctx))
			require.Len(b, c.taken(), instances)
			var renewals, whole time.Duration
			before := c.pool.Stat().AcquireCount()
			for range b.N {
				began := time.Now()
				require.NoError(b, c.renewLease(ctx))
				renewals += time.Since(began)
			}
			renewed := c.pool.Stat().AcquireCount()
			for range b.N {
				began := time.Now()
				require.NoError(b, errors.Join(c.renewLease(ctx), c.findLost(ctx), c.LIDMap.sync(ctx)))
				whole += time.Since(began)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(renewals.Microseconds())/1e3/float64(b.N), "ms/sign-of-life")
			b.ReportMetric(float64(whole.Microseconds())/1e3/float64(b.N), "ms/heartbeat")
			b.ReportMetric(float64(renewed-before)/float64(b.N), "statements/sign-of-life")
			b.ReportMetric(float64(c.pool.Stat().AcquireCount()-renewed)/float64(b.N), "statements/heartbeat")
		})
	}
}

// BenchmarkHandOver hands an instance from one process to another that waits for it already, and back: from the call of Release until the other one has its
// device, with all its keys. It reports p50 and p99.
func BenchmarkHandOver(b *testing.B) {
	ctx := context.Background()
	for _, sessions := range []int{10, 1000} {
		b.Run(fmt.Sprintf("%d sessions", sessions), func(b *testing.B) {
			dsn := pgtest.Open(b)
			var both [2]*Container
			for i := range both {
				c, err := NewWithConfig(ctx, Config{DSN: dsn, TakeWait: time.Hour, Sends: WriteBehind})
				require.NoError(b, err)
				defer func() { require.NoError(b, c.Close()) }()
				both[i] = c
			}
			d := both[0].NewDevice()
			signaltest.FillPairing(d)
			require.NoError(b, d.Save(ctx))
			jid := *d.ID
			signaltest.Meet(b, signaltest.NewPeer(signaltest.NewMemoryDevice(both[0].NewDevice())), signaltest.NewPeer(d))
			require.NoError(b, both[0].Flush(ctx))
			_, err := both[0].pool.Exec(ctx, both[0].sql(`INSERT INTO {schema}.auth_keys SELECT instance_id, key_type, n || ':0', data, seq FROM {schema}.auth_keys, generate_series(1, $1::int) AS n WHERE key_type = 'session'`), sessions)
			require.NoError(b, err)
			took := make([]time.Duration, b.N)
			for i := range took {
				owner, next := both[i%2], both[(i+1)%2]
				taken := make(chan time.Time, 1)
				go func() {
					d, err := next.GetDevice(ctx, jid)
					if err != nil || d == nil {
						b.Error("not taken", err)
					}
					taken <- time.Now()
				}()
				time.Sleep(300 * time.Millisecond) // it waits already
				began := time.Now()
				require.NoError(b, owner.Release(ctx, jid.String()))
				took[i] = (<-taken).Sub(began)
			}
			slices.Sort(took)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[len(took)/2])/1e6, "ms-p50")
			b.ReportMetric(float64(took[(len(took)*99+99)/100-1])/1e6, "ms-p99")
		})
	}
}
