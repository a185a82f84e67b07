package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// BenchmarkRace counts what goes wrong when a device sends and receives at once, of 3,000 messages to two peers.
func BenchmarkRace(b *testing.B) {
	behind := storetest.Pgstore("pgstore", func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
	for _, s := range []storetest.Backend{behind, sqlstoreNamed("sqlstore"), {Name: "maps"}} {
		for _, answerers := range []int{0, 1} {
			b.Run(fmt.Sprintf("%s/%d goroutines with retry answers", s.Name, answerers), func(b *testing.B) {
				for range b.N {
					r := runRace(b, signaltest.NewPeer(subjects(b, s, 1)[0].Device), raceConfig{peers: 2, sends: 3000, senders: 1, answerers: answerers})
					b.ReportMetric(float64(r.repeated), "keys-used-twice")
					b.ReportMetric(float64(r.unread.Load()), "peers-cannot-read")
					b.ReportMetric(float64(r.lost.Load()), "we-cannot-read")
					b.ReportMetric(float64(r.refused.Load()), "refused")
				}
			})
		}
	}
}

// BenchmarkRefused says how many sends are refused because one of the devices was sent a retry answer while they were encrypted, for so many
// retry answers a second to any of the devices.
func BenchmarkRefused(b *testing.B) {
	for _, devices := range []int{1, 512} {
		for _, rate := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%d devices/%d answers a second", devices, rate), func(b *testing.B) {
				c, _ := open(b, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
				ours := signaltest.NewPeer(pair(b, c.NewDevice()))
				var to []types.JID
				for _, p := range memoryPeers(devices) {
					signaltest.Meet(b, p, ours)
					to = append(to, p.Address())
				}
				answering, stop := context.WithCancel(ctx)
				var answers sync.WaitGroup
				answers.Go(func() {
					tick := time.NewTicker(time.Second / time.Duration(rate))
					defer tick.Stop()
					for {
						select {
						case <-answering.Done():
							return
						case <-tick.C:
							_, _ = ours.Answer(ctx, to[rand.IntN(devices)], []byte("again"))
						}
					}
				})
				refused := 0
				for b.Loop() {
					_, err := ours.Send(ctx, to, []byte("message"))
					if errors.Is(err, pgstore.ErrMessageKeyUsed) {
						refused++
					} else {
						require.NoError(b, err)
					}
				}
				stop()
				answers.Wait()
				b.ReportMetric(100*float64(refused)/float64(b.N), "%refused")
			})
		}
	}
}
