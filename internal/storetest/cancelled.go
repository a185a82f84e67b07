package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Cancelled makes every call that writes, with a context that is cancelled when statement 0 begins, when it ends, when statement 1 begins and
// so on, until no statement is left: the call that waits for that statement has a context that ends in the middle, and those after it one
// that has ended. A call may fail, with an error that says so. What any of them made visible in memory becomes durable: another container
// finds it. A ratchet advances in memory whatever its context says.
func Cancelled(t *testing.T, edit func(*pgstore.Config)) {
	w := new(cancelling)
	pool := w.pool(t, pgtest.Open(t))
	open := func() *pgstore.Container {
		config := pgstore.Config{Pool: pool, FlushInterval: time.Hour} // statements are those that somebody waits for
		edit(&config)
		c, err := pgstore.NewWithConfig(ctx, config)
		require.NoError(t, err)
		return c
	}
	for name, methods := range map[string][]method{"puts": puts, "puts and removals": slices.Concat(puts, removals)} {
		ratchets := []string{"IsTrustedIdentity", "GetSession", "HasSession", "GetManySessions", "GetSenderKey"}
		if evicting := new(pgstore.Config); len(methods) > len(puts) {
			if edit(evicting); evicting.MemoryBudget > 0 {
				ratchets = nil // what is moved from a phone number to a LID has to be fetched
			}
		}
		var want map[string]any
		for moment := 0; ; moment++ {
			ending, stop := context.WithCancel(ctx)
			c := open()
			d := c.NewDevice()
			signaltest.FillPairing(d)
			require.NoError(t, d.Save(ctx))
			if moment == 0 { // what there is if no context ends
				all(t, ctx, d, methods)
				want = snapshot(t, d)
				require.NoError(t, d.Delete(ctx))
				d = c.NewDevice()
				signaltest.FillPairing(d)
				require.NoError(t, d.Save(ctx))
			}
			w.arm(moment, stop)
			for _, m := range methods {
				if _, err := m.call(ending, d); err != nil {
					require.ErrorIs(t, ending.Err(), context.Canceled, "%s: %v", m.name, err)
					require.ErrorIs(t, err, context.Canceled, m.name)
				}
			}
			at := w.disarm()
			where := fmt.Sprintf("%s, moment %d: %s", name, moment, at)
			got := snapshot(t, d)
			for _, ratchet := range ratchets {
				require.Equal(t, want[ratchet], got[ratchet], "%s after %s", ratchet, where)
			}
			require.NoError(t, c.Flush(ctx))
			require.Equal(t, got, snapshot(t, d), where)

			// As after a clean end, which moves no sending chain to its ceiling, but with nothing flushed by it.
			_, err := pool.Exec(ctx, `UPDATE whatsmeow.instances SET clean_at_epoch = epoch`)
			require.NoError(t, err)
			another := open()
			found, err := another.GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			again := snapshot(t, found)
			if mac, ok := got["GetAppStateMutationMAC"].([]byte); ok && mac == nil {
				again["GetAppStateVersion"] = got["GetAppStateVersion"] // a patch whose last call failed is dropped as a whole
			}
			require.Equal(t, got, again, where)
			require.NoError(t, another.Close())
			require.NoError(t, c.Close())
			over := ending.Err() == nil
			stop()
			if over {
				require.Greater(t, moment, 10, "a statement has two, and some calls always wait for one")
				t.Logf("%s: cancelled at %d moments", name, moment)
				break
			}
		}
	}
}

// cancelling cancels a context when a statement begins or ends.
type cancelling struct {
	mu     sync.Mutex
	cancel context.CancelFunc // nil unless it counts
	left   int                // beginnings and ends until then
	at     string             // the statement
}

func (w *cancelling) pool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = w
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// arm begins to count.
func (w *cancelling) arm(moment int, cancel context.CancelFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel, w.left, w.at = cancel, moment, "nowhere"
}

// disarm ends that, and says which statement cancelled.
func (w *cancelling) disarm() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel = nil
	return w.at
}

func (w *cancelling) count(moment string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel == nil {
		return
	}
	if w.left--; w.left < 0 {
		w.cancel()
		w.cancel, w.at = nil, moment
	}
}

// TraceQueryStart implements [pgx.QueryTracer].
func (w *cancelling) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	w.count("before " + data.SQL)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (w *cancelling) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	w.count("after a statement")
}
