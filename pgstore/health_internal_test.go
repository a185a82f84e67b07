package pgstore

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// A lock that is never given back, and a flush that its own time limit does not end: only a restart helps.
func TestAContainerThatHangsDoesNotLive(t *testing.T) {
	t.Parallel()
	ctx, dsn := context.Background(), pgtest.Open(t)
	c, err := New(ctx, dsn, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	dead := func() {
		t.Helper()
		h := c.Liveness()
		require.False(t, h.Live)
		require.False(t, h.Ready)
		require.Equal(t, ReasonStuck, h.Reasons[0].Code)
		require.False(t, c.Health(ctx).Live)
	}
	require.Equal(t, Health{Live: true, Ready: true}, c.Health(ctx))
	c.mu.Lock()
	dead()
	c.mu.Unlock()
	require.True(t, c.Liveness().Live)

	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	lock, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = lock.Exec(ctx, `LOCK TABLE whatsmeow.auth_keys`)
	require.NoError(t, err)
	_, _, err = d.Contacts.PutPushName(ctx, types.NewJID("1", types.DefaultUserServer), "Ada")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return c.Stats().Batcher.Flying > 10*time.Millisecond }, time.Minute, time.Millisecond)
	require.True(t, c.Liveness().Live, "within its limit")
	limit := c.cfg.FlushTimeout
	c.cfg.FlushTimeout = time.Millisecond // long ago
	dead()
	c.cfg.FlushTimeout = limit
	require.NoError(t, lock.Rollback(ctx))
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, c.Stats().Batcher.Flying)
	require.True(t, c.Health(ctx).Ready)
}
