package batcher

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A lane that stopped between being picked and being sent is not sent: an empty segment would advance its fence.
func TestALaneThatStoppedSinceItWasPickedIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		b, err := New(Config{Interval: time.Hour, MaxRest: time.Hour}, func(_ context.Context, segments []Segment[string, string, int]) ([]error, error) {
			for _, s := range segments {
				sent = append(sent, s.Lane)
			}
			return nil, nil
		})
		require.NoError(t, err)
		for _, name := range []string{"stopped", "a"} {
			require.NoError(t, b.Lane(name).Reserve(t.Context(), Room{Ops: 1}))
			_, err = b.Lane(name).Add(Room{Ops: 1}, []Op[string, int]{{Key: "k"}})
			require.NoError(t, err)
		}
		synctest.Wait() // the flushers have seen that there is time
		for _, l := range b.mu.lanes {
			l.since = time.Now().Add(-2 * time.Hour)
		}
		picked, _ := b.pick()
		require.Len(t, picked, 2)
		b.Lane("stopped").Fail(errors.New("gone"))
		b.flushPicked(t.Context(), picked)
		require.Equal(t, []string{"a"}, sent)
		require.Error(t, b.Close(t.Context()))
	})
}
