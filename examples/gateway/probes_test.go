package main

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// healthAnswer is what a probe gets.
type healthAnswer struct {
	Status string
	Checks map[string][]struct{ Status, Output string }
}

// probe asks /healthz or /readyz.
func (g *runningGateway) probe(t *testing.T, path string) (status int, a healthAnswer) {
	t.Helper()
	r := g.try(t, http.MethodGet, path, "", nil)
	require.Equal(t, "application/health+json", r.header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal(r.body, &a), "%s", r.body)
	return r.status, a
}

// says waits until /readyz answers with a status, and a check of a reason has one.
func (g *runningGateway) says(t *testing.T, status int, reason pgstore.ReasonCode, of string) {
	t.Helper()
	var last healthAnswer
	require.Eventually(t, func() bool {
		got, a := g.probe(t, "/readyz")
		last = a
		return got == status && (reason == "" && a.Status == of || len(a.Checks[string(reason)]) == 1 && a.Checks[string(reason)][0].Status == of)
	}, atMost, 50*time.Millisecond, "%d, %s: %s; it says %v", status, reason, of, &last)
}

// A database that is away takes no process out of the load balancer, and is told. A lease that has lapsed does. To start it again helps in neither case.
func TestReadyFollowsTheLeaseAndNotTheDatabase(t *testing.T) {
	t.Parallel()
	for lease, ready := range map[string]bool{"10m": true, "1s": false} {
		t.Run(lease, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			network := pgtest.NewProxy(t, b.dsn)
			b.dsn = network.DSN
			g := b.gateway("one", "-lease", lease)
			g.says(t, http.StatusOK, "", "pass")
			network.Down()
			if ready {
				g.says(t, http.StatusOK, pgstore.ReasonDatabaseUnreachable, "warn")
			} else {
				g.says(t, http.StatusServiceUnavailable, pgstore.ReasonLeaseLapsed, "fail")
			}
			status, a := g.probe(t, "/healthz")
			require.Equal(t, http.StatusOK, status, a)
			require.Equal(t, "pass", a.Status)
			network.Up()
			g.says(t, http.StatusOK, "", "pass")
		})
	}
}

// probedStore counts how often it is asked, and goes on after its end when it may.
type probedStore struct {
	deviceStore
	asked  atomic.Int64
	closed chan struct{}
	goOn   chan struct{}
}

// Health implements deviceStore.
func (s *probedStore) Health(ctx context.Context) pgstore.Health {
	s.asked.Add(1)
	return s.deviceStore.Health(ctx)
}

// Close implements deviceStore.
func (s *probedStore) Close() error {
	err := s.deviceStore.Close()
	close(s.closed)
	<-s.goOn
	return err
}

// A process that hands over is not ready, and lives. Probes need no key, and keep the database busy nevertheless only once a second.
func TestAProcessThatLeavesIsNotReadyAndLives(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	store := &probedStore{closed: make(chan struct{}), goOn: make(chan struct{})}
	g := b.gatewayWith(seams{store: func(cfg config, pool *pgxpool.Pool) (deviceStore, error) {
		s, err := openStore(context.Background(), cfg, pool, cfg.logger(t.Output()))
		store.deviceStore = s
		return store, err
	}}, "one")
	goOn := sync.OnceFunc(func() { close(store.goOn) })
	defer goOn()
	before, began := store.asked.Load(), time.Now()
	for range 100 {
		status, a := g.probe(t, "/readyz")
		require.Equal(t, http.StatusOK, status, a)
	}
	require.LessOrEqual(t, store.asked.Load()-before, int64(time.Since(began).Seconds())+1)

	go g.stop()
	<-store.closed
	status, a := g.probe(t, "/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Equal(t, "fail", a.Checks[string(reasonLeaving)][0].Status)
	status, a = g.probe(t, "/healthz")
	require.Equal(t, http.StatusOK, status, a)
	goOn()
	g.stop()

	starting := &gateway{store: store}
	starting.probed.g = starting
	h := starting.probed.Health(t.Context())
	require.False(t, h.Ready)
	require.Equal(t, reasonStarting, h.Reasons[0].Code)
}
