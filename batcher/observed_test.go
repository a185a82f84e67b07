package batcher_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

// Every attempt at a flush is told with its size and length, every writer that waited with how long, and Stats says how long a flush has been under way.
func TestAttemptsAndWaitsAreTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const takes = 3 * time.Second
		broken := errors.New("broken")
		results := []error{broken, nil}
		var told []batcher.Flushed
		type blocked struct {
			lane any
			took time.Duration
			err  error
		}
		var waited []blocked
		b, err := batcher.New(batcher.Config{
			PendingLimit: 2,
			OnFlush:      func(f batcher.Flushed) { told = append(told, f) },
			OnBlocked:    func(lane any, took time.Duration, err error) { waited = append(waited, blocked{lane, took, err}) },
		}, func(context.Context, []testSegment) ([]error, error) {
			time.Sleep(takes)
			err := results[0]
			results = results[1:]
			return nil, err
		})
		require.NoError(t, err)
		l := b.Lane("a")
		room := batcher.Room{Ops: 2, Bytes: 30}
		require.NoError(t, l.Reserve(ctx, room))
		_, err = l.Add(room, []testOp{{Key: "x", Size: 10}, {Key: "y", Size: 20}})
		require.NoError(t, err)

		within, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.ErrorIs(t, l.Reserve(within, room), batcher.ErrBacklogFull)
		require.Equal(t, time.Second, b.Stats().Flying, "writers that wait let it be flushed at once")
		require.NoError(t, l.Reserve(ctx, room))
		l.Unreserve(room)
		require.Zero(t, b.Stats().Flying)
		require.NoError(t, b.Close(ctx))

		require.Equal(t, []batcher.Flushed{{Lanes: 1, Ops: 2, Bytes: 30, Took: takes, Err: broken}, {Lanes: 1, Ops: 2, Bytes: 30, Took: takes}}, told)
		require.Len(t, waited, 2)
		require.Equal(t, "a", waited[0].lane)
		require.Equal(t, time.Second, waited[0].took)
		require.ErrorIs(t, waited[0].err, context.DeadlineExceeded)
		require.Greater(t, waited[1].took, takes)
		require.NoError(t, waited[1].err)
	})
}
