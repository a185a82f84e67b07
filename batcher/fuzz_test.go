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

// Whatever lanes and keys are called, what is put under a name is flushed under that name alone, and what could not be saved is told by it.
func FuzzP3P7LanesAndKeysMayHaveAnyName(f *testing.F) {
	for _, s := range []string{"", "a", "\x00", "\xff", "%s", "a:1"} {
		f.Add(s, "b", "c", s)
		f.Add("a", s, s, s)
	}
	f.Fuzz(func(t *testing.T, lane, other, key, otherKey string) {
		synctest.Test(t, func(t *testing.T) {
			tb := newTable()
			b := start(t, batcher.Config{}, tb)
			want := map[string]map[string]int{lane: {}, other: {}}
			fill := func(from int) {
				for i, name := range []string{lane, other, lane} {
					for j, k := range []string{key, otherKey} {
						add(t, b.Lane(name), put(k, from+2*i+j))
						want[name][k] = from + 2*i + j
					}
				}
			}
			fill(1)
			require.NoError(t, b.Flush(context.Background()))
			for name, rows := range want {
				require.Equal(t, rows, tb.lane(name), "%q", name)
			}
			tb.mu.Lock()
			tb.fail = func([]testSegment) error { return errors.New("away") }
			tb.mu.Unlock()
			fill(10)
			ended, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var unsaved *batcher.UnsavedError
			require.ErrorAs(t, b.Close(ended), &unsaved)
			pending := make(map[string]int)
			for name, rows := range want {
				pending[name] = len(rows)
			}
			require.Equal(t, pending, unsaved.Pending)
		})
	})
}
