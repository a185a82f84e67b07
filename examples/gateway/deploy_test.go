package main

import (
	"context"
	"flag"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

var (
	deploys   = flag.Int("gateway.deploys", 3, "how often all processes are replaced")
	instances = flag.Int("gateway.instances", 12, "how many instances there are meanwhile")
)

// gaps measures how long devices were not connected.
type gaps struct {
	mu    sync.Mutex
	times []time.Duration
}

// watch notes the gaps of a device until the context ends.
func (g *gaps) watch(ctx context.Context, server *waserver.Server, d *waserver.Device) {
	for ctx.Err() == nil {
		if server.Wait(ctx, func() bool { return !d.Connected() }) != nil {
			return
		}
		began := time.Now()
		if server.Wait(ctx, d.Connected) != nil {
			return
		}
		g.mu.Lock()
		g.times = append(g.times, time.Since(began))
		g.mu.Unlock()
	}
}

// A deploy replaces one process after the other: a new one is started, and an old one gets SIGTERM. All of that three times, while contacts
// write and instances send through the load balancer: nothing is lost, nobody scans a code, and no message key comes twice.
func TestARollingDeployLosesNothing(t *testing.T) {
	t.Parallel()
	for name, through := range map[string]func(t *testing.T, dsn string) string{
		"directly":          func(_ *testing.T, dsn string) string { return dsn },
		"through PgBouncer": func(t *testing.T, dsn string) string { t.Helper(); return pgtest.PgBouncer(t, dsn, 20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, err := waserver.New(waserver.Config{})
			require.NoError(t, err)
			defer func() { require.NoError(t, server.Close()) }()
			c := &cluster{program: program(t), dsn: through(t, pgtest.Open(t)), endpoint: server.Endpoint(), flags: []string{"-lease", demoLease}}
			front := httptest.NewServer(c)
			defer front.Close()
			s, err := newStage(server, c, front.URL)
			require.NoError(t, err)
			defer s.close()
			s.rhythm = 20 * time.Millisecond
			for range demoProcesses {
				_, err = c.start()
				require.NoError(t, err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			require.NoError(t, s.link(ctx, *instances))
			require.NoError(t, s.settled(ctx))

			logins := make(map[string]int)
			for id, n := range s.numbers {
				logins[id] = n.linked.Logins()
			}
			writing, stop := context.WithCancel(ctx)
			defer stop()
			var talking errgroup.Group
			talking.Go(func() error { return s.talk(writing) })
			var measured gaps
			var watching sync.WaitGroup
			for _, n := range s.numbers {
				watching.Go(func() { measured.watch(writing, server, n.linked) })
			}
			var ends []time.Duration
			for range *deploys * demoProcesses {
				_, err := c.start()
				require.NoError(t, err)
				began := time.Now()
				require.NoError(t, c.oldest().stop())
				ends = append(ends, time.Since(began))
				require.NoError(t, s.settled(ctx))
			}
			stop()
			watching.Wait()
			require.NoError(t, talking.Wait())
			require.NoError(t, s.end(ctx))

			written, told, sent, arrived := s.tally()
			require.Greater(t, written, 100)
			require.Equal(t, written, told)
			require.Equal(t, sent, arrived)
			require.Equal(t, *instances, server.Stats().QRCodes)
			require.Zero(t, server.Stats().RefusedLogins)
			require.Empty(t, server.Record().Reused())
			for id, n := range s.numbers {
				require.GreaterOrEqual(t, n.linked.Logins()-logins[id], *deploys, "%s was handed over in each deploy", id)
			}
			require.NotEmpty(t, measured.times)
			require.Zero(t, s.hooks.bad)
			slices.Sort(measured.times)
			slices.Sort(ends)
			t.Logf("%d replacements, %d messages in, %d out: %d hand-overs, an instance was away for %v in the median, %v at most; a process ended within %v",
				len(ends), written, sent, len(measured.times), measured.times[len(measured.times)/2].Round(time.Millisecond),
				measured.times[len(measured.times)-1].Round(time.Millisecond), ends[len(ends)-1].Round(time.Millisecond))
		})
	}
}

// settled waits until every process has its share, and every instance is connected.
func (s *stage) settled(ctx context.Context) error {
	return s.server.Wait(ctx, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, n := range s.numbers {
			if !n.linked.Connected() {
				return false
			}
		}
		return true
	})
}
