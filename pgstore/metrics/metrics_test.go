package metrics_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/metrics"
)

var ctx = context.Background()

// watched is a container on a database of its own, behind a network that can be broken, with its metrics.
type watched struct {
	*testing.T
	*pgstore.Container
	dsn     string // past the network
	network *pgtest.Proxy
	from    *prometheus.Registry
	moved   func(name string)
}

// open opens a container.
func (w *watched) open(edit func(*pgstore.Config)) {
	w.Helper()
	cfg := pgstore.Config{DSN: w.network.DSN, FlushTimeout: 2 * time.Second, OutageWait: 50 * time.Millisecond, NewChainWait: 50 * time.Millisecond}
	edit(&cfg)
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(w, err)
	w.Cleanup(func() { _ = c.Close() }) // some end with what cannot be saved
	w.Container, w.from = c, prometheus.NewPedanticRegistry()
	require.NoError(w, w.from.Register(metrics.New(c)))
}

func asItIs(*pgstore.Config) {}

// value is a metric's, of all series that have the label values; of a histogram it is how often it was observed.
func (w *watched) value(name string, labels ...string) (sum float64) {
	w.Helper()
	families, err := w.from.Gather()
	require.NoError(w, err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(values, l) }) {
				continue
			}
			sum += float64(m.GetHistogram().GetSampleCount()) + m.GetCounter().GetValue() + m.GetGauge().GetValue() // it has one of them
		}
	}
	return sum
}

// moves requires that what happens in do raises a metric, at once or a little later.
func (w *watched) moves(do func(), name string, labels ...string) {
	w.Helper()
	before := w.value(name, labels...)
	do()
	w.above(before, name, labels...)
}

func (w *watched) above(before float64, name string, labels ...string) {
	w.Helper()
	require.Eventually(w, func() bool { return w.value(name, labels...) > before }, 20*time.Second, 5*time.Millisecond, "%s%v", name, labels)
	w.moved(name)
}

// pair saves a new device.
func (w *watched) pair() *store.Device {
	w.Helper()
	d := w.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(w, d.Save(ctx))
	return d
}

func (w *watched) sql(statement string) {
	w.Helper()
	conn, err := pgx.Connect(ctx, w.dsn)
	require.NoError(w, err)
	defer func() { require.NoError(w, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	require.NoError(w, err)
}

// talk is two devices of the container that have sessions with each other.
func (w *watched) talk() (ours, theirs *signaltest.Peer) {
	w.Helper()
	ours, theirs = signaltest.NewPeer(w.pair()), signaltest.NewPeer(w.pair())
	signaltest.Meet(w, ours, theirs)
	require.NoError(w, w.Flush(ctx))
	return ours, theirs
}

func names(d *store.Device, from, to int) error {
	for i := from; i < to; i++ {
		within, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		_, _, err := d.Contacts.PutPushName(within, types.NewJID(fmt.Sprint(i), types.DefaultUserServer), "Ada")
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// cases are what happens to a container, each with the metrics that it moves.
var cases = map[string]func(w *watched){
	"writes": func(w *watched) {
		w.open(asItIs)
		w.moves(func() { w.pair() }, "pgstore_instances")
		w.above(0, "pgstore_fetch_duration_seconds", "instance")
		w.above(0, "pgstore_fetched_keys_total", "instance")
		d := w.pair()
		w.moves(func() { require.NoError(w, names(d, 0, 100)) }, "pgstore_flush_duration_seconds", "ok")
		for _, name := range []string{"pgstore_flush_keys", "pgstore_flush_bytes", "pgstore_flushed_keys_total", "pgstore_cache_bytes"} {
			w.above(0, name)
		}
		w.moves(func() {
			_, err := d.Contacts.GetContact(ctx, types.NewJID("1", types.DefaultUserServer))
			require.NoError(w, err)
		}, "pgstore_cache_hits_total")
		d.PushName = "Grace"
		w.moves(func() { require.NoError(w, d.Save(ctx)) }, "pgstore_wait_duration_seconds", "durable")
		w.moves(func() {
			require.NoError(w, d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte{2}, Fingerprint: []byte{3}}))
		},
			"pgstore_wait_duration_seconds", "once")
		w.moves(func() {
			require.NoError(w, w.LIDMap.PutLIDMapping(ctx, types.NewJID("1", types.HiddenUserServer), types.NewJID("2", types.DefaultUserServer)))
		}, "pgstore_wait_duration_seconds", "lid_pair")
		for name, limit := range map[string]float64{
			"pgstore_pending_keys_limit": pgstore.DefaultPendingLimit, "pgstore_pending_limit_bytes": pgstore.DefaultPendingBytes,
			"pgstore_cache_budget_bytes": pgstore.DefaultMemoryBudget,
		} {
			w.above(limit-1, name)
			require.InDelta(w, limit, w.value(name), 0)
		}
	},
	"an outage": func(w *watched) {
		w.open(func(cfg *pgstore.Config) { cfg.PendingLimit, cfg.Lease = 50, time.Second })
		d := w.pair()
		w.network.Down()
		require.Error(w, names(d, 0, 51))
		for _, name := range []string{"pgstore_pending_keys", "pgstore_pending_bytes", "pgstore_pending_age_seconds", "pgstore_lease_lapses_total"} {
			w.above(0, name)
		}
		w.above(0, "pgstore_flush_duration_seconds", "failed")
		w.above(0, "pgstore_retries_total", "flush", "connection")
		w.above(0, "pgstore_wait_duration_seconds", "backlog")
		w.above(0, "pgstore_waits_in_vain_total", "backlog")
		w.above(0, "pgstore_errors_total", "unavailable")
		require.NoError(w, w.LIDMap.PutLIDMapping(ctx, types.NewJID("1", types.HiddenUserServer), types.NewJID("2", types.DefaultUserServer)))
		w.above(0, "pgstore_pending_lid_pairs")
		w.above(0, "pgstore_waits_in_vain_total", "lid_pair")
		w.moves(func() {
			within, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			_, err := w.Instances(within)
			require.ErrorIs(w, err, pgstore.ErrUnavailable)
		}, "pgstore_retries_total", "statement", "connection")
		var blocked sync.WaitGroup
		blocked.Go(func() {
			_, _, err := d.Contacts.PutPushName(ctx, types.NewJID("99", types.DefaultUserServer), "Ada")
			require.NoError(w, err)
		})
		w.above(0, "pgstore_blocked_writers")
		w.network.Up()
		blocked.Wait()
		require.NoError(w, w.Flush(ctx))
		require.Zero(w, w.value("pgstore_pending_keys")+w.value("pgstore_pending_bytes")+w.value("pgstore_blocked_writers"))
	},
	"a server that is slow": func(w *watched) {
		w.sql(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET statement_timeout = 800'; END $$`)
		w.open(asItIs)
		d := w.pair()
		conn, err := pgx.Connect(ctx, w.dsn)
		require.NoError(w, err)
		defer func() { require.NoError(w, conn.Close(ctx)) }()
		tx, err := conn.Begin(ctx)
		require.NoError(w, err)
		_, err = tx.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys`)
		require.NoError(w, err)
		require.NoError(w, names(d, 0, 1))
		w.above(0, "pgstore_retries_total", "flush", "57")
		require.NoError(w, tx.Rollback(ctx))
	},
	"memory for nothing": func(w *watched) {
		w.open(func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 })
		d := w.pair()
		require.NoError(w, names(d, 0, 10))
		require.NoError(w, w.Flush(ctx))
		w.above(0, "pgstore_cache_evictions_total")
		_, err := d.Contacts.GetContact(ctx, types.NewJID("1", types.DefaultUserServer))
		require.NoError(w, err)
		w.above(0, "pgstore_cache_fetches_total")
		w.above(0, "pgstore_fetch_duration_seconds", "keys")
		w.above(0, "pgstore_fetched_keys_total", "keys")
	},
	"sends": func(w *watched) {
		w.open(func(cfg *pgstore.Config) {
			cfg.Reserve, cfg.DurableAcks, cfg.FlushInterval, cfg.NewChainWait = 4, true, time.Second, time.Minute
		})
		w.network.Slow(200 * time.Millisecond) // no flush is over before the send that needs it
		ours, theirs := w.talk()
		w.above(0, "pgstore_wait_duration_seconds", "new_chain")
		w.above(0, "pgstore_wait_duration_seconds", "acknowledgement")
		w.above(0, "pgstore_waiting_puts_total")
		for range 12 {
			_, err := ours.Send(ctx, []types.JID{theirs.Address()}, []byte("hello"))
			require.NoError(w, err)
		}
		w.above(0, "pgstore_wait_duration_seconds", "reserve")
		w.above(0, "pgstore_ceilings_raised_total")
	},
	"races": func(w *watched) {
		w.open(asItIs)
		ours, theirs := w.talk()
		to := theirs.Address()
		nodes, err := theirs.Send(ctx, []types.JID{ours.Address()}, []byte("crosses"))
		require.NoError(w, err)
		w.moves(func() {
			require.NoError(w, ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				if _, err := ours.Receive(inside, to, nodes[ours.Address()]); err != nil {
					return err
				}
				_, err := ours.Send(ctx, []types.JID{to}, []byte("the other"))
				return err
			}))
		}, "pgstore_records_merged_total")
		address := to.SignalAddress().String()
		_, err = ours.Device.Sessions.GetManySessions(ctx, []string{address}) // the send that will be refused holds it
		require.NoError(w, err)
		_, err = ours.Send(ctx, []types.JID{to}, []byte("overtakes"))
		require.NoError(w, err)
		sent, err := ours.Device.Sessions.GetSession(ctx, address)
		require.NoError(w, err)
		w.moves(func() {
			require.ErrorIs(w, ours.Device.Sessions.PutManySessions(ctx, map[string][]byte{address: sent}), pgstore.ErrMessageKeyUsed)
		}, "pgstore_sends_refused_total")
		w.above(0, "pgstore_errors_total", "message_key_used")
		_, err = ours.Device.Sessions.GetManySessions(ctx, []string{address, "1:0"})
		require.NoError(w, err)
		w.moves(func() { _, err = ours.Device.Sessions.GetSession(ctx, address) }, "pgstore_wait_duration_seconds", "turn")
		require.NoError(w, err)
	},
	"a database that went back": func(w *watched) {
		w.open(asItIs)
		ours, theirs := w.talk()
		require.NoError(w, w.Close())
		w.sql(`UPDATE whatsmeow.instances SET timeline = '000000FF'`)
		w.open(asItIs)
		d, err := w.GetDevice(ctx, *ours.Device.ID)
		require.NoError(w, err)
		w.above(0, "pgstore_instances_healed_total")
		_, err = d.Sessions.GetManySessions(ctx, []string{theirs.Address().SignalAddress().String()})
		require.NoError(w, err)
		w.above(0, "pgstore_wait_duration_seconds", "bundles")
		require.NoError(w, names(d, 0, 10))
		require.NoError(w, w.Flush(ctx))
		w.sql(`UPDATE whatsmeow.instances SET seq = seq - 1`)
		w.moves(func() { require.NoError(w, names(d, 10, 20)) }, "pgstore_instances_replayed_total")
	},
	"instances that stop": func(w *watched) {
		w.open(asItIs)
		taken, refused := w.pair(), w.pair()
		other, err := pgstore.New(ctx, w.dsn, nil)
		require.NoError(w, err)
		defer func() { require.NoError(w, other.Close()) }()
		_, err = other.GetDevice(ctx, *taken.ID)
		require.NoError(w, err)
		require.NoError(w, names(taken, 0, 1))
		w.above(0, "pgstore_stops_total", "ownership_lost")
		require.ErrorIs(w, names(taken, 0, 1), pgstore.ErrOwnershipLost)
		w.above(0, "pgstore_errors_total", "ownership_lost")
		w.sql(`ALTER TABLE whatsmeow.auth_keys ADD CHECK (key_type <> 'contact') NOT VALID`)
		require.NoError(w, names(refused, 0, 1))
		w.above(0, "pgstore_stops_total", "refused")
		w.above(1, "pgstore_stopped_instances")
	},
	"a row that cannot be read": func(w *watched) {
		w.open(asItIs)
		d := w.pair()
		chat := types.NewJID("1", types.GroupServer)
		require.NoError(w, d.EventBuffer.AddOutgoingEvent(ctx, chat, "A", "wa", []byte("plaintext")))
		require.NoError(w, w.Flush(ctx))
		w.sql(`UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_type = 'outgoing_event'`)
		_, _, err := d.EventBuffer.GetOutgoingEvent(ctx, chat, types.EmptyJID, "A")
		require.Error(w, err)
		w.above(0, "pgstore_rows_set_aside_total")
	},
	"an owner that does not let go": func(w *watched) {
		w.open(func(cfg *pgstore.Config) { cfg.TakeWait = 50 * time.Millisecond })
		owner, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: w.dsn})
		require.NoError(w, err)
		defer func() { _ = owner.Close() }() // it has lost its instance
		d := owner.NewDevice()
		signaltest.FillPairing(d)
		require.NoError(w, d.Save(ctx))
		_, err = w.GetDevice(ctx, *d.ID)
		require.NoError(w, err)
		w.above(0, "pgstore_wait_duration_seconds", "owner")
	},
}

// No metric is dead: each moves with what happens to a container, and nothing is measured that Describe does not tell.
func TestEveryMetricMoves(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	moved := make(map[string]bool)
	t.Run("cases", func(t *testing.T) {
		for name, happens := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dsn := pgtest.Open(t)
				happens(&watched{T: t, dsn: dsn, network: pgtest.NewProxy(t, dsn), moved: func(name string) {
					mu.Lock()
					defer mu.Unlock()
					moved[name] = true
				}})
			})
		}
	})
	c, err := pgstore.New(ctx, pgtest.Open(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	for _, name := range described(metrics.New(c)) {
		require.True(t, moved[name], "%s never moved", name)
	}
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

// described are the names of a collector's metrics.
func described(c prometheus.Collector) (names []string) {
	descs := make(chan *prometheus.Desc)
	go func() {
		c.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		names = append(names, fqName.FindStringSubmatch(d.String())[1])
	}
	return names
}

// Names, units and help are as Prometheus's own linter wants them, and what is off by default names no instance.
func TestP12MetricsAreWellNamedAndNameNoInstance(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	w := &watched{T: t, dsn: dsn, network: pgtest.NewProxy(t, dsn), moved: func(string) {}}
	w.open(asItIs)
	d := w.pair()
	require.NoError(t, d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte(rand.Text()), Fingerprint: []byte{3}}))
	problems, err := testutil.GatherAndLint(w.from)
	require.NoError(t, err)
	require.Empty(t, problems)
	text := func() string {
		families, err := w.from.Gather()
		require.NoError(t, err)
		return fmt.Sprint(families)
	}
	require.NotContains(t, text(), d.ID.User)
	named := prometheus.NewPedanticRegistry()
	require.NoError(t, named.Register(metrics.New(w.Container, metrics.WithInstances())))
	w.from = named
	require.NoError(t, d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{2}, store.AppStateSyncKey{Data: []byte(rand.Text()), Fingerprint: []byte{3}}))
	require.Contains(t, text(), d.ID.String())
	require.Positive(t, w.value("pgstore_wait_duration_seconds", "once", d.ID.String()))
}

// seriesOf are the names and the values of the labels of all series that a collector has.
func seriesOf(t *testing.T, c prometheus.Collector) (names, values []string) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				names, values = append(names, l.GetName()), append(values, l.GetValue())
			}
		}
	}
	return names, values
}
