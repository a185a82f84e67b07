package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// everywhere is a witness that all processes reach.
type everywhere struct {
	mu    sync.Mutex
	marks map[string]pgstore.Mark
}

func (w *everywhere) Load(_ context.Context, instance string) (pgstore.Mark, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.marks[instance], nil
}

func (w *everywhere) Save(_ context.Context, marks map[string]pgstore.Mark) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, m := range marks {
		w.marks[id] = m
	}
	return nil
}

func shared() (*everywhere, func(*pgstore.Config)) {
	w := &everywhere{marks: make(map[string]pgstore.Mark)}
	return w, func(cfg *pgstore.Config) { cfg.Witness = w }
}

// A snapshot that was put back gives epochs out again, on the same timeline: two owners with one fence.
func TestP6AnEpochDoesNotComeBackWithTheDatabase(t *testing.T) {
	t.Parallel()
	_, witnessed := shared()
	m := newMoving(t, witnessed)
	m.remember()
	last := scalar[int](t, m.dsn, `SELECT last_value FROM whatsmeow.epochs`)
	require.NoError(t, m.c.Close())
	m.open(witnessed)
	a, da := m.c, m.d
	for i := range 9 {
		trust(t, string(rune('1'+i))+":0", da)
		require.NoError(t, a.Flush(ctx))
	}
	seq := scalar[int](t, m.dsn, `SELECT seq FROM whatsmeow.instances`)
	m.goBack(false)
	scalar[int](t, m.dsn, `SELECT setval('whatsmeow.epochs', $1)`, last)

	m.open(witnessed) // another process, while the first lives
	b, db := m.c, m.d
	require.Equal(t, int64(1), b.Stats().Healed)
	for i := 0; scalar[int](t, m.dsn, `SELECT seq FROM whatsmeow.instances`) < seq; i++ {
		trust(t, string(rune('a'+i))+":0", db)
		require.NoError(t, b.Flush(ctx))
	}
	if err := da.Identities.PutIdentity(ctx, "theirs:0", [32]byte{1}); err != nil { // the witness was quicker
		require.ErrorIs(t, err, pgstore.ErrOwnershipLost)
	}
	require.Error(t, a.Flush(ctx), "the instance is B's")
	trust(t, "ours:0", db)
	require.NoError(t, b.Flush(ctx))
	require.Equal(t, 1, trusted(t, m.dsn, "ours:0"))
	require.Zero(t, trusted(t, m.dsn, "theirs:0"))
}

// Who was fenced without knowing tells the witness of an older mark than it has.
func TestP6AZombieDoesNotTellTheWitness(t *testing.T) {
	t.Parallel()
	w, witnessed := shared()
	m := newMoving(t, witnessed)
	trust(t, "1:0", m.d)
	require.NoError(t, m.c.Flush(ctx)) // told within a second
	m.open(witnessed)                  // another process, while the first lives
	epoch := scalar[int64](t, m.dsn, `SELECT epoch FROM whatsmeow.instances`)
	time.Sleep(2500 * time.Millisecond)
	for _, mark := range w.marks {
		require.Equal(t, epoch, mark.Epoch)
	}
}

// A restore that undoes a take leaves an earlier owner, which lives and does not know, as if nothing had been. The witness knows better.
func TestP6ARestoreThatUndoesATakeIsNoticedByTheWitness(t *testing.T) {
	t.Parallel()
	_, witnessed := shared()
	m := newMoving(t, witnessed)
	m.remember()
	earlier := m.d
	m.open(witnessed)
	require.NoError(t, m.c.Close())
	m.goBack(false)
	require.Eventually(t, func() bool {
		return errors.Is(earlier.Identities.PutIdentity(ctx, "1:0", [32]byte{1}), pgstore.ErrOwnershipLost)
	}, 10*time.Second, 10*time.Millisecond)
}

// An owner that leaves sees that its database went back, and says so where the next one looks.
func TestP4AnOwnerThatLeavesTellsOfADatabaseThatWentBack(t *testing.T) {
	t.Parallel()
	for _, pending := range []bool{false, true} {
		for name, leave := range map[string]func(*moving) error{
			"Close":   func(m *moving) error { return m.c.Close() },
			"Release": func(m *moving) error { return m.c.Release(ctx, pgstore.InstanceID(m.d)) },
			"Release, and Close": func(m *moving) error {
				return errors.Join(m.c.Release(ctx, pgstore.InstanceID(m.d)), m.c.Close())
			},
		} {
			t.Run(fmt.Sprintf("%s, pending=%t", name, pending), func(t *testing.T) {
				t.Parallel()
				m := newMoving(t)
				m.send("one")
				require.NoError(t, m.c.Close())
				m.open(func(cfg *pgstore.Config) { cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour })
				m.remember()
				for range 100 {
					m.send("lost")
				}
				require.NoError(t, m.c.Flush(ctx))
				m.goBack(false)
				if pending {
					trust(t, "1:0", m.d)
				}
				_ = leave(m)
				m.open()
				for range 100 {
					m.send("again")
				}
			})
		}
	}
}

// A commit that waits for its synchronous standby and is cancelled is visible, and may be lost when the standby is promoted.
func TestP5ACommitThatIsOnlySeenIsNotDurable(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	if server == nil {
		pgtest.Missing(t, "Docker, or a PostgreSQL that is installed")
	}
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: server.DSN, OnTimelineChange: pgstore.Trust, FlushTimeout: time.Second})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	require.NoError(t, execSQL(t, server.DSN, `ALTER SYSTEM SET synchronous_standby_names = 'away'`, `SELECT pg_reload_conf()`))
	time.Sleep(500 * time.Millisecond)
	trust(t, "1:0", d)
	require.Error(t, c.Flush(within(t, 10*time.Second)), "no standby has it")
	_ = execSQL(t, server.DSN, `SET synchronous_commit = local`, `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	require.NoError(t, c.Close())
}
