package pgstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// BenchmarkAnswers measures how many answers wait, and how long, by how long a bot thinks about each: every answer is the first message on a
// new sending chain, which the decrypt of the question began. After them come messages on chains that are durable.
func BenchmarkAnswers(b *testing.B) {
	for _, peers := range []int{1, 100} {
		for _, think := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
			b.Run(fmt.Sprintf("%d peers, %v", peers, think), func(b *testing.B) {
				c, _ := open(b)
				ours, theirs := signaltest.NewPeer(pair(b, c.NewDevice())), memoryPeers(peers)
				for _, p := range theirs {
					signaltest.Meet(b, p, ours)
				}
				require.NoError(b, c.Flush(ctx))
				send := func(p *signaltest.Peer) (*waBinary.Node, time.Duration) {
					began := time.Now()
					out, err := ours.Send(ctx, []types.JID{p.Address()}, []byte("answer"))
					require.NoError(b, err)
					return out[p.Address()], time.Since(began)
				}
				read := func(p *signaltest.Peer, node *waBinary.Node) {
					_, err := p.Receive(ctx, ours.Address(), node)
					require.NoError(b, err)
				}
				var took []time.Duration
				before := c.Stats().Waited
				for i := range b.N {
					p := theirs[i%peers]
					in, err := p.Send(ctx, []types.JID{ours.Address()}, []byte("question"))
					require.NoError(b, err)
					_, err = ours.Receive(ctx, p.Address(), in[ours.Address()])
					require.NoError(b, err)
					if think > 0 {
						time.Sleep(think)
					}
					out, d := send(p)
					took = append(took, d)
					read(p, out)
				}
				answers := c.Stats().Waited
				require.NoError(b, c.Flush(ctx))
				for i := range b.N {
					p := theirs[i%peers]
					out, _ := send(p)
					read(p, out)
				}
				slices.Sort(took)
				b.ReportMetric(100*float64(answers-before)/float64(b.N), "%waited")
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
				b.ReportMetric(100*float64(c.Stats().Waited-answers)/float64(b.N), "%waited-durable")
			})
		}
	}
}

// BenchmarkRow measures what the ceiling of a session takes in its row, after a conversation with a hundred contacts.
func BenchmarkRow(b *testing.B) {
	for range b.N {
		c, dsn := open(b)
		ours := signaltest.NewPeer(pair(b, c.NewDevice()))
		for _, p := range memoryPeers(100) {
			signaltest.Meet(b, p, ours)
			_, err := ours.Send(ctx, []types.JID{p.Address()}, []byte("hello"))
			require.NoError(b, err)
		}
		require.NoError(b, c.Flush(ctx))
		size := func(of string) float64 {
			return scalar[float64](b, dsn, `SELECT avg(pg_column_size(`+of+`))::float8 FROM whatsmeow.auth_keys WHERE key_type = 'session' AND data ? 'ceiling'`)
		}
		b.ReportMetric(size(`(data::text)::jsonb`), "B/row")
		b.ReportMetric(size(`(data - 'ceiling')`), "B/row-without")
	}
}
