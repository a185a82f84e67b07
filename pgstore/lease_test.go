package pgstore_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// half is a connection that can be made half open: what is sent goes nowhere, and nothing comes back.
type half struct {
	net.Conn
	open chan struct{} // closed when it is
}

func (h *half) Write(b []byte) (int, error) {
	select {
	case <-h.open:
		return len(b), nil
	default:
		return h.Conn.Write(b)
	}
}

func (h *half) Read(b []byte) (int, error) {
	for {
		n, err := h.Conn.Read(b)
		select {
		case <-h.open:
			if err == nil {
				continue
			}
			return 0, err
		default:
			return n, err
		}
	}
}

// A process all of whose connections hang, as behind a router that has forgotten them, finds out about one after the other in time.
func TestP6ConnectionsThatHangCostNoLease(t *testing.T) {
	t.Parallel()
	const lease, connections = 6 * time.Second, 2
	dsn := pgtest.Open(t)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	var mu sync.Mutex
	hang := make(chan struct{}) // those that are dialled before it is closed
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		return &half{Conn: conn, open: hang}, err
	}
	cfg.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	c := process(t, "", func(cfg *pgstore.Config) { cfg.Pool, cfg.Lease = pool, lease })
	pair(t, c.NewDevice())
	var all []*pgxpool.Conn // so that as many are there
	for range connections {
		conn, err := pool.Acquire(ctx)
		require.NoError(t, err)
		all = append(all, conn)
	}
	for _, conn := range all {
		conn.Release()
	}
	mu.Lock()
	close(hang)
	hang = make(chan struct{})
	mu.Unlock()
	for began := time.Now(); time.Since(began) < 2*lease; time.Sleep(lease / 50) {
		require.True(t, scalar[bool](t, dsn, `SELECT alive FROM whatsmeow.owners`), "after %v", time.Since(began))
	}
	require.NoError(t, c.Flush(ctx))
}

// What others have learnt is found out also by a process that learns all the time, as in the history of a new device.
func TestP6AnswersAreCorrectedWhileMuchIsLearnt(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, b := process(t, dsn), process(t, dsn)
	lid, pn := func(n int) types.JID { return types.NewJID(fmt.Sprint(n), types.HiddenUserServer) }, types.NewJID("1", types.DefaultUserServer)
	require.NoError(t, a.LIDMap.PutLIDMapping(ctx, lid(1), pn))
	require.NoError(t, a.Flush(ctx))
	learning, stop := context.WithCancel(ctx)
	var learners sync.WaitGroup
	defer learners.Wait()
	defer stop()
	learners.Go(func() {
		for n := 1000; learning.Err() == nil; n += 10 {
			time.Sleep(time.Millisecond)
			pairs := make([]store.LIDMapping, 10)
			for i := range pairs {
				pairs[i] = store.LIDMapping{LID: lid(n + i), PN: types.NewJID(fmt.Sprint(n+i), types.DefaultUserServer)}
			}
			if err := a.LIDMap.PutManyLIDMappings(ctx, pairs); err != nil {
				t.Error(err)
				return
			}
		}
	})
	require.NoError(t, b.LIDMap.PutLIDMapping(ctx, lid(2), pn))
	require.NoError(t, b.Flush(ctx))
	require.Eventually(t, func() bool {
		got, err := a.LIDMap.GetLIDForPN(ctx, pn)
		return err == nil && got == lid(2)
	}, 30*time.Second, 50*time.Millisecond)
}

// The hashes of an instance that another process has are its owner's to prune.
func TestP6OldBufferedHashesOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, b := process(t, dsn), process(t, dsn)
	mine, theirs := pair(t, a.NewDevice()), pair(t, b.NewDevice())
	for _, d := range []*store.Device{mine, theirs} {
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("p"), time.Now()))
	}
	require.NoError(t, a.Close())
	require.NoError(t, b.Flush(ctx))
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', '0') WHERE key_type = 'buffered_event'`))
	a = process(t, dsn)
	mine = mustDevice(t, a, *mine.ID)
	require.NoError(t, mine.EventBuffer.DeleteOldBufferedHashes(ctx))
	require.NoError(t, a.Flush(ctx))
	require.Equal(t, theirs.ID.String(), scalar[string](t, dsn, `SELECT string_agg(instance_id, ',') FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`))
}

// Each client asks for it after its start: that is no reason to look through the hashes of all instances each time, and one that is being released none to leave
// out the others.
func TestP6OldBufferedHashesOfManyInstancesArePrunedOnce(t *testing.T) {
	t.Parallel()
	const instances = 20
	count := new(statements)
	dsn := pgtest.Open(t)
	c := process(t, dsn)
	devices := make([]*store.Device, instances)
	for i := range devices {
		devices[i] = pair(t, c.NewDevice())
		require.NoError(t, devices[i].EventBuffer.PutBufferedEvent(ctx, [32]byte{byte(i)}, []byte("p"), time.Now()))
	}
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', '0') WHERE key_type = 'buffered_event'`))
	c = counting(t, dsn, 4, count, func(cfg *pgstore.Config) { cfg.Lease = time.Hour })
	for i, d := range devices {
		devices[i] = mustDevice(t, c, *d.ID)
	}
	before := count.sent.Load()
	for _, d := range devices {
		require.NoError(t, d.EventBuffer.DeleteOldBufferedHashes(ctx))
	}
	require.NoError(t, c.Flush(ctx))
	require.Less(t, count.sent.Load()-before, int64(5*instances))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`))
}

// A process that needs longer than its lease to save what it has, when it ends, does not look dead meanwhile.
func TestP6TheLeaseIsKeptWhileTheRestIsSaved(t *testing.T) {
	t.Parallel()
	const lease = time.Second
	dsn := pgtest.Open(t)
	c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = lease })
	d := pair(t, c.NewDevice())
	closed := make(chan error, 1)
	atOnce(t, dsn, func() { // nothing is saved
		trust(t, "1:0", d)
		began := scalar[time.Time](t, dsn, `SELECT clock_timestamp()`)
		go func() { closed <- c.Shutdown(within(t, time.Minute)) }()
		require.Eventually(t, func() bool {
			return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.processes WHERE expires > $1::timestamptz + make_interval(secs => $2)`, began, 4*lease.Seconds()) == 1
		}, 30*time.Second, 50*time.Millisecond)
	})
	require.NoError(t, <-closed)
	require.Equal(t, 1, trusted(t, dsn, "1:0"))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE released`))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.processes`))
}
