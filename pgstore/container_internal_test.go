package pgstore

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/cache"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// Whatever keeps an instance from being opened, a call that waits for it ends with its context.
func TestP8OpeningAnInstanceInVainEndsWithTheContext(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c, err := New(ctx, pgtest.Open(t), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	c.mu.Lock()
	in := c.mu.instances[d.ID.String()]
	delete(c.mu.instances, in.id) // and in.keys stays where it is: every round finds it, and nobody whose it is
	c.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = c.instance(limited, in.id)
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	c.cache.Forget(in.keys, ErrOwnershipLost)
	_, err = c.instance(ctx, in.id)
	require.NoError(t, err)
}

// An instance that is lost while it is opened is told to be lost, and the next call opens it again.
func TestP6AnInstanceThatIsLostWhileItIsOpenedIsNotKept(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c, err := New(ctx, pgtest.Open(t), nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	id := d.ID.String()
	c.mu.Lock()
	before := c.mu.instances[id]
	c.mu.Unlock()
	before.lose(ErrOwnershipLost)
	in := c.newInstance(id)
	c.await(id)
	_, err = c.cache.Open(ctx, id, &fetcher{c: c, id: id, in: in}, func(_ context.Context, fill *cache.Filler[value]) error {
		in.keys = fill.Instance()
		c.connect(in)
		require.NoError(t, c.register(in))
		in.lose(ErrOwnershipLost) // as when a Flush of the lane comes now
		return nil
	})
	require.ErrorIs(t, err, ErrOwnershipLost)
	opened, err := c.instance(ctx, id)
	require.NoError(t, err)
	require.NotSame(t, in, opened)
	require.True(t, opened.usable())
}
