package batcher_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

func sized(key string, size int) testOp { return testOp{Kind: batcher.Put, Key: key, Size: size} }

// addSized reserves one operation of unknown size, and what is needed if there was no room for that.
func addSized(ctx context.Context, l *testLane, ops ...testOp) error {
	room := batcher.Room{Ops: 1}
	for {
		if err := l.Reserve(ctx, room); err != nil {
			return err
		}
		_, err := l.Add(room, ops)
		var tooLarge *batcher.RoomError
		if !errors.As(err, &tooLarge) {
			return err
		}
		room = tooLarge.Need
	}
}

func TestP7WritersBlockAtTheLimitOfBytesUntilHalfIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		down := errors.New("away")
		tb.fail = func([]testSegment) error { return down }
		b := start(t, batcher.Config{PendingBytes: 1000, SegmentSize: 1}, tb)
		l := b.Lane("a")
		for _, key := range []string{"k", "k", "l", "m"} { // the first k is sealed, and counts as well
			require.NoError(t, addSized(ctx, l, sized(key, 250)))
			synctest.Wait()
		}
		require.Equal(t, int64(1000), b.Stats().PendingBytes)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := addSized(short, l, sized("n", 1))
		require.ErrorIs(t, err, batcher.ErrBacklogFull)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		admitted := make(chan error, 2)
		for range cap(admitted) {
			go func() { admitted <- addSized(ctx, l, sized("huge", 1_000_000)) }() // more than there ever is
		}
		synctest.Wait()
		require.Equal(t, 2, b.Stats().Blocked)
		tb.mu.Lock()
		down = nil
		tb.mu.Unlock()
		for range cap(admitted) {
			require.NoError(t, <-admitted)
		}
		require.NoError(t, b.Close(ctx))
		require.Len(t, tb.lane("a"), 4)
		require.Zero(t, b.Stats().PendingBytes)
	})
}

// A group that was reserved for is added even if others have taken the rest meanwhile.
func TestWhatIsReservedIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, batcher.Config{PendingBytes: 1000, Interval: time.Hour, MaxRest: time.Hour}, newTable())
		l := b.Lane("a")
		reserved := batcher.Room{Ops: 1, Bytes: 400}
		require.NoError(t, l.Reserve(ctx, reserved))
		require.NoError(t, l.Reserve(ctx, batcher.Room{Ops: 1}))
		_, err := l.Add(batcher.Room{Ops: 1}, []testOp{sized("k", 5000)})
		require.NoError(t, err, "half was free")
		_, err = l.Add(batcher.Room{}, []testOp{sized("l", 1)})
		var tooLarge *batcher.RoomError
		require.ErrorAs(t, err, &tooLarge)
		require.Equal(t, batcher.Room{Ops: 1, Bytes: 1}, tooLarge.Need)
		require.Equal(t, 1, l.Pending(), "nothing of it was added")
		_, err = l.Add(reserved, []testOp{sized("m", 400)})
		require.NoError(t, err)
		require.Equal(t, int64(5400), b.Stats().PendingBytes)
		require.NoError(t, b.Close(ctx))
	})
}

// Whatever is written over what, flushed, given up or failed: the bytes that are counted are those of the operations that are pending.
func TestP7PendingBytesAreThoseOfWhatIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) { // without T.Deadline, of which a bubble knows nothing
			tb := newTable()
			var away bool
			tb.fail = func([]testSegment) error {
				if away {
					return errors.New("away")
				}
				return nil
			}
			b, err := batcher.New(batcher.Config{Interval: time.Second, SegmentSize: 3, BatchSize: 6}, tb.flush)
			require.NoError(t, err)
			names := []string{"a", "b"}
			for range rapid.IntRange(1, 30).Draw(t, "turns") {
				l := b.Lane(rapid.SampledFrom(names).Draw(t, "lane"))
				synctest.Wait() // nothing is flushed meanwhile
				before := b.Stats()
				switch rapid.IntRange(0, 9).Draw(t, "what") {
				case 0:
					tb.mu.Lock()
					away = !away
					tb.mu.Unlock()
				case 1:
					time.Sleep(time.Minute)
				case 2: // all that is pending is handed out
					left := batcher.Room{Ops: before.Pending, Bytes: before.PendingBytes}
					for _, o := range l.Stop(errors.New("given up")) {
						left.Ops, left.Bytes = left.Ops-1, left.Bytes-int64(o.Size)
					}
					now := b.Stats()
					require.Equal(t, batcher.Room{Ops: now.Pending, Bytes: now.PendingBytes}, left)
				case 3:
					pending := l.Pending()
					l.Fail(errors.New("failed"))
					require.Equal(t, pending, before.Pending-b.Stats().Pending)
				default:
					require.NoError(t, addSized(ctx, l, rapid.SliceOfN(rapid.Custom(func(t *rapid.T) testOp {
						return testOp{
							Kind: batcher.OpKind(rapid.IntRange(0, 2).Draw(t, "kind")),
							Key:  rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key"),
							Size: rapid.IntRange(0, 100).Draw(t, "size"),
						}
					}), 1, 5).Draw(t, "group")...))
				}
			}
			synctest.Wait()
			before, handedOut := b.Stats(), batcher.Room{}
			for _, name := range names {
				for _, o := range b.Lane(name).Stop(errors.New("given up")) {
					handedOut.Ops, handedOut.Bytes = handedOut.Ops+1, handedOut.Bytes+int64(o.Size)
				}
			}
			require.Equal(t, batcher.Room{Ops: before.Pending, Bytes: before.PendingBytes}, handedOut)
			require.Zero(t, b.Stats().PendingBytes)
			_ = b.Close(ctx) // tells what failed
		})
	})
}

// However large the groups are, and however many come at once: nobody waits for ever, and the backlog never holds more than its limits, or half of
// them and one group.
func TestP7TheBacklogIsBoundedAndEverybodyGetsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) { // without T.Deadline, of which a bubble knows nothing
			limits := batcher.Room{Ops: rapid.IntRange(1, 20).Draw(t, "operations"), Bytes: rapid.Int64Range(1, 1000).Draw(t, "bytes")}
			most := limits
			writers := make([][][]testOp, rapid.IntRange(1, 8).Draw(t, "writers"))
			for w := range writers {
				for range rapid.IntRange(1, 6).Draw(t, "groups") {
					group := make([]testOp, rapid.IntRange(1, 12).Draw(t, "group"))
					room := batcher.Room{Ops: len(group)}
					for i := range group {
						group[i] = sized(strconv.Itoa(i), rapid.SampledFrom([]int{0, 1, 100, 2000}).Draw(t, "size"))
						room.Bytes += int64(group[i].Size)
					}
					most = batcher.Room{Ops: max(most.Ops, limits.Ops/2+room.Ops), Bytes: max(most.Bytes, limits.Bytes/2+room.Bytes)}
					writers[w] = append(writers[w], group)
				}
			}
			failures := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "failures"), 0))
			tb := newTable()
			var b *batcher.Batcher[string, string, int]
			tb.fail = func([]testSegment) error {
				if s := b.Stats(); s.Pending > most.Ops || s.PendingBytes > most.Bytes {
					t.Errorf("%d operations of %d bytes are pending, at the most there should be %+v", s.Pending, s.PendingBytes, most)
				}
				if failures.IntN(3) == 0 {
					return errors.New("away")
				}
				return nil
			}
			b, err := batcher.New(batcher.Config{PendingLimit: limits.Ops, PendingBytes: limits.Bytes, SegmentSize: 4, BatchSize: 8}, tb.flush)
			require.NoError(t, err)
			patient, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			var wg sync.WaitGroup
			for w, groups := range writers {
				wg.Go(func() {
					for _, group := range groups {
						if err := addSized(patient, b.Lane(strconv.Itoa(w%3)), group...); err != nil {
							t.Errorf("writer %d: %v", w, err)
						}
					}
				})
			}
			wg.Wait()
			require.NoError(t, b.Close(ctx))
			require.Zero(t, b.Stats().Pending)
			require.Zero(t, b.Stats().PendingBytes)
		})
	})
}
