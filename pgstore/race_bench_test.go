package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
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

// refusedSettings are how sessions are read and sends wait. With all sessions evicted each is read from the database, as after a restart or
// with more of them than fit.
var refusedSettings = []struct {
	name string
	edit func(*pgstore.Config)
}{
	{"in memory", func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind }},
	{"evicted", func(cfg *pgstore.Config) { cfg.Sends, cfg.MemoryBudget = pgstore.WriteBehind, 1 }},
	{"durable", func(cfg *pgstore.Config) { cfg.Sends = pgstore.Durable }},
}

// BenchmarkRefused says how many sends are refused because one of the devices was sent a retry answer while they were encrypted, for so many
// retry answers a second to any of the devices, by one goroutine or by two at once; and how many of the answers.
func BenchmarkRefused(b *testing.B) {
	for _, setting := range refusedSettings {
		for _, devices := range []int{1, 512} {
			for _, rate := range []int{1, 10, 100} {
				for _, answerers := range []int{1, 2} {
					b.Run(fmt.Sprintf("%s/%d devices/%d answers a second/%d at once", setting.name, devices, rate, answerers), func(b *testing.B) {
						c, _ := open(b, setting.edit)
						benchmarkRefused(b, signaltest.NewPeer(pair(b, c.NewDevice())), devices, rate, answerers)
					})
				}
			}
		}
	}
}

func benchmarkRefused(b *testing.B, ours *signaltest.Peer, devices, rate, answerers int) {
	var to []types.JID
	for _, p := range memoryPeers(devices) {
		signaltest.Meet(b, p, ours)
		to = append(to, p.Address())
	}
	answering, stop := context.WithCancel(ctx)
	var goroutines sync.WaitGroup
	var answers, answersRefused atomic.Int64
	for range answerers {
		goroutines.Go(func() {
			tick := time.NewTicker(time.Second * time.Duration(answerers) / time.Duration(rate))
			defer tick.Stop()
			for {
				select {
				case <-answering.Done():
					return
				case <-tick.C:
				}
				answers.Add(1)
				if _, err := ours.Answer(ctx, to[rand.IntN(devices)], []byte("again")); errors.Is(err, pgstore.ErrMessageKeyUsed) {
					answersRefused.Add(1)
				}
			}
		})
	}
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
	goroutines.Wait()
	b.ReportMetric(100*float64(refused)/float64(b.N), "%refused")
	b.ReportMetric(100*float64(answersRefused.Load())/float64(max(1, answers.Load())), "%answers-refused")
}

// BenchmarkRefusedOnOneSession says how many of 3,000 messages are refused that two goroutines send on one session as fast as they can, while
// a third one receives on it.
func BenchmarkRefusedOnOneSession(b *testing.B) {
	for _, setting := range refusedSettings {
		b.Run(setting.name, func(b *testing.B) {
			for range b.N {
				c, _ := open(b, setting.edit)
				r := runRace(b, signaltest.NewPeer(pair(b, c.NewDevice())), raceConfig{peers: 1, sends: 3000, senders: 1, answerers: 1})
				b.ReportMetric(100*float64(r.refused.Load())/3000, "%refused")
				b.ReportMetric(float64(r.repeated), "keys-used-twice")
				b.ReportMetric(float64(r.unread.Load()), "peers-cannot-read")
				b.ReportMetric(float64(r.lost.Load()), "we-cannot-read")
			}
		})
	}
}
