package batcher_test

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type (
	testSegment = batcher.Segment[string, string, int]
	testOp      = batcher.Op[string, int]
	testLane    = batcher.Lane[string, string, int]
)

var ctx = context.Background()

// table is where the tests' flushes go.
type table struct {
	mu      sync.Mutex
	rows    map[string]map[string]int
	flushes [][]testSegment
	fail    func([]testSegment) error // before anything is applied
	unsure  func([]testSegment) error // after everything was
}

func (tb *table) flush(_ context.Context, segments []testSegment) ([]error, error) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.flushes = append(tb.flushes, segments)
	if tb.fail != nil {
		if err := tb.fail(segments); err != nil {
			return nil, err
		}
	}
	for _, s := range segments {
		if tb.rows[s.Lane] == nil {
			tb.rows[s.Lane] = make(map[string]int)
		}
		apply(tb.rows[s.Lane], s.Ops)
	}
	if tb.unsure != nil {
		return nil, tb.unsure(segments)
	}
	return nil, nil
}

func apply(rows map[string]int, ops []testOp) {
	for _, o := range ops {
		switch _, exists := rows[o.Key]; {
		case o.Kind == batcher.Delete:
			delete(rows, o.Key)
		case o.Kind == batcher.Put || !exists:
			rows[o.Key] = o.Value
		}
	}
}

// flushed is what reached the table so far.
func (tb *table) flushed() [][]testSegment {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return slices.Clone(tb.flushes)
}

// lane is a copy of a lane's rows.
func (tb *table) lane(name string) map[string]int {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return maps.Clone(tb.rows[name])
}

func newTable() *table { return &table{rows: make(map[string]map[string]int)} }

func start(t testing.TB, cfg batcher.Config, tb *table) *batcher.Batcher[string, string, int] {
	t.Helper()
	b, err := batcher.New(cfg, tb.flush)
	require.NoError(t, err)
	return b
}

func add(t testing.TB, l *testLane, ops ...testOp) batcher.Ticket {
	t.Helper()
	require.NoError(t, l.Reserve(ctx, batcher.Room{Ops: len(ops)}))
	ticket, err := l.Add(batcher.Room{Ops: len(ops)}, ops)
	require.NoError(t, err)
	return ticket
}

func put(key string, value int) testOp { return testOp{Kind: batcher.Put, Key: key, Value: value} }

// A probe is flushed at once with whatever there is to write, and with nothing; it is nothing that could be lost.
func TestP7AProbeIsFlushedAndIsNoWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: time.Hour}, tb)
		l := b.Lane("a")
		require.NoError(t, l.Probe())
		synctest.Wait()
		require.Equal(t, [][]testSegment{{{Lane: "a"}}}, tb.flushed())
		add(t, l, put("k", 1))
		synctest.Wait()
		require.Len(t, tb.flushed(), 1)
		require.NoError(t, l.Probe())
		synctest.Wait()
		require.Equal(t, map[string]int{"k": 1}, tb.lane("a"))

		refused := errors.New("refused")
		tb.fail = func([]testSegment) error { return refused }
		require.NoError(t, l.Probe())
		require.Zero(t, l.Pending())
		require.Zero(t, b.Stats().Pending)
		l.Fail(refused)
		require.ErrorIs(t, l.Probe(), refused)
		require.Empty(t, l.Unsaved())
		require.NoError(t, b.Close(ctx))
	})
}

func TestP3UnhurriedWritesAreFlushedAtTheIntervalAndCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: 10 * time.Millisecond}, tb)
		l := b.Lane("a")
		for i := range 9 {
			add(t, l, put("k", i))
		}
		time.Sleep(9 * time.Millisecond)
		synctest.Wait()
		require.Empty(t, tb.flushed())
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		flushes := tb.flushed()
		require.Len(t, flushes, 1)
		require.Equal(t, []testOp{put("k", 8)}, flushes[0][0].Ops)
		require.NoError(t, b.Close(ctx))
	})
}

func TestBarrierDoesNotWaitForTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, tb)
		began := time.Now()
		require.NoError(t, add(t, b.Lane("a"), put("k", 1)).Wait(ctx))
		require.Zero(t, time.Since(began))
		require.NoError(t, b.Close(ctx))
	})
}

func TestP3SegmentsAreBoundedAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		down := true
		tb.fail = func([]testSegment) error {
			if down {
				return errors.New("away")
			}
			return nil
		}
		b := start(t, batcher.Config{SegmentSize: 10, BatchSize: 25}, tb)
		l := b.Lane("a")
		for i := range 100 {
			add(t, l, put(string(rune('a'+i)), i))
		}
		big := make([]testOp, 30)
		for i := range big {
			big[i] = put(string(rune('A'+i)), i)
		}
		add(t, l, big...)
		time.Sleep(time.Second)
		tb.mu.Lock()
		down, tb.flushes = false, nil
		tb.mu.Unlock()
		require.NoError(t, b.Flush(ctx))
		sizes := []int{}
		for _, f := range tb.flushed() {
			require.Len(t, f, 1)
			sizes = append(sizes, len(f[0].Ops))
		}
		require.Equal(t, []int{10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 30}, sizes[len(sizes)-11:])
		require.NoError(t, b.Close(ctx))
	})
}

func TestP7WritersBlockAtTheLimitUntilHalfIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		down := errors.New("away")
		tb.fail = func([]testSegment) error { return down }
		b := start(t, batcher.Config{PendingLimit: 4, SegmentSize: 1}, tb)
		l := b.Lane("a")
		for i := range 4 {
			add(t, l, put(string(rune('a'+i)), i))
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := l.Reserve(short, batcher.Room{Ops: 1})
		require.ErrorIs(t, err, batcher.ErrBacklogFull)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		admitted := make(chan error, 1)
		go func() { admitted <- l.Reserve(ctx, batcher.Room{Ops: 1}) }()
		synctest.Wait()
		require.Equal(t, 1, b.Stats().Blocked)
		tb.mu.Lock()
		down = nil
		tb.mu.Unlock()
		require.NoError(t, <-admitted)
		require.LessOrEqual(t, l.Pending(), 2)
		l.Unreserve(batcher.Room{Ops: 1})
		require.NoError(t, b.Close(ctx))
		require.Len(t, tb.lane("a"), 4)
	})
}

func TestP7AGroupLargerThanHalfTheLimitIsLetInWhenHalfIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		down := errors.New("away")
		tb.fail = func([]testSegment) error { return down }
		b := start(t, batcher.Config{PendingLimit: 10, SegmentSize: 1}, tb)
		l := b.Lane("a")
		for i := range 6 {
			add(t, l, put(string(rune('a'+i)), i))
		}
		admitted := make(chan error, 1)
		go func() { admitted <- l.Reserve(ctx, batcher.Room{Ops: 100}) }()
		synctest.Wait() // it sleeps, and does not spin
		require.Empty(t, admitted)
		tb.mu.Lock()
		down = nil
		tb.mu.Unlock()
		require.NoError(t, <-admitted)
		l.Unreserve(batcher.Room{Ops: 100})
		require.NoError(t, b.Close(ctx))
	})
}

func TestP10TheRefusedLaneStopsAndTheOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		tb := newTable()
		tb.fail = func(segments []testSegment) error {
			for _, s := range segments {
				if s.Lane == "guilty" {
					return refused
				}
			}
			return nil
		}
		stopped := []any{}
		b := start(t, batcher.Config{
			Permanent: func(err error) bool { return errors.Is(err, refused) },
			OnStop:    func(lane any, _ error) { stopped = append(stopped, lane) },
		}, tb)
		guilty := b.Lane("guilty")
		for _, l := range []*testLane{b.Lane("a"), guilty, b.Lane("b")} {
			add(t, l, put("k", 1))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, map[string]int{"k": 1}, tb.lane("a"))
		require.Equal(t, map[string]int{"k": 1}, tb.lane("b"))
		require.Empty(t, tb.lane("guilty"))
		require.Equal(t, []any{"guilty"}, stopped)
		require.ErrorIs(t, guilty.Reserve(ctx, batcher.Room{Ops: 1}), refused)
		require.ErrorIs(t, b.Flush(ctx), refused)
		require.Equal(t, 1, b.Stats().Stopped)
		var unsaved *batcher.UnsavedError
		require.ErrorAs(t, b.Close(ctx), &unsaved)
		require.Equal(t, map[string]int{"guilty": 1}, unsaved.Pending)
		require.ErrorIs(t, unsaved, refused)
	})
}

func TestAHungFlushHoldsUpNoOtherLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		tb := newTable()
		b, err := batcher.New(batcher.Config{FlushTimeout: time.Hour}, func(ctx context.Context, s []testSegment) ([]error, error) {
			if s[0].Lane == "hung" {
				<-hang
			}
			return tb.flush(ctx, s)
		})
		require.NoError(t, err)
		hung := add(t, b.Lane("hung"), put("k", 1))
		time.Sleep(time.Second)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, add(t, b.Lane("a"), put("k", 1)).Wait(ctx))
		require.Zero(t, time.Since(began))
		close(hang)
		require.NoError(t, hung.Wait(ctx))
		require.NoError(t, b.Close(ctx))
	})
}

// However much one lane has pending, another one's turn comes with the next flush.
func TestABarrierDoesNotWaitForTheBacklogOfAnotherLane(t *testing.T) {
	for _, batchSize := range []int{1, 2} { // one segment a flush, or one of each lane
		synctest.Test(t, func(t *testing.T) {
			tb := newTable()
			const took = time.Second
			b, err := batcher.New(batcher.Config{Flushers: 1, SegmentSize: 1, BatchSize: batchSize}, func(ctx context.Context, s []testSegment) ([]error, error) {
				time.Sleep(took)
				return tb.flush(ctx, s)
			})
			require.NoError(t, err)
			big, small := b.Lane("big"), b.Lane("small")
			for i := range 1000 {
				add(t, big, put("k", i))
			}
			time.Sleep(took / 2)
			for i := range 10 {
				began := time.Now()
				require.NoError(t, add(t, small, put("k", i)).Wait(ctx))
				require.LessOrEqual(t, time.Since(began), 2*took)
			}
			require.Greater(t, big.Pending(), 900)
			require.NoError(t, b.Close(ctx))
			require.Equal(t, map[string]int{"k": 999}, tb.lane("big"))
		})
	}
}

func TestP7CloseSaysWhatItCouldNotSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		tb := newTable()
		tb.fail = func([]testSegment) error { return away }
		b := start(t, batcher.Config{}, tb)
		ticket := add(t, b.Lane("a"), put("k", 1), put("l", 1))
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := b.Close(limited)
		var unsaved *batcher.UnsavedError
		require.ErrorAs(t, err, &unsaved)
		require.Equal(t, map[string]int{"a": 2}, unsaved.Pending)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, ticket.Wait(ctx), batcher.ErrClosed)
		require.ErrorIs(t, b.Lane("a").Reserve(ctx, batcher.Room{Ops: 1}), batcher.ErrClosed)
		require.Equal(t, err, b.Close(ctx))
	})
}

func TestStopHandsOutWhatIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, tb)
		l := b.Lane("a")
		ticket := add(t, l, put("k", 1))
		gone := errors.New("gone")
		require.Equal(t, []testOp{put("k", 1)}, l.Stop(gone))
		require.ErrorIs(t, ticket.Wait(ctx), gone)
		_, err := l.Add(batcher.Room{}, []testOp{put("k", 2)})
		require.ErrorIs(t, err, gone)
		require.NotSame(t, l, b.Lane("a"))
		require.NoError(t, b.Close(ctx))
		require.Empty(t, tb.lane("a"))
	})
}

// A device that is deleted while others wait for a Flush does not fail it.
func TestAFlushIsNotFailedByALaneThatIsStoppedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, tb)
		away := true
		tb.fail = func([]testSegment) error {
			if away {
				return errors.New("away")
			}
			return nil
		}
		stopped, other := b.Lane("a"), b.Lane("b")
		add(t, stopped, put("k", 1))
		add(t, other, put("k", 1))
		flushed := make(chan error, 1)
		go func() { flushed <- b.Flush(ctx) }()
		synctest.Wait()
		stopped.Stop(errors.New("deleted, says the caller"))
		synctest.Wait()
		require.Empty(t, flushed, "the other is not durable")
		tb.mu.Lock()
		away = false
		tb.mu.Unlock()
		require.NoError(t, <-flushed)
		require.NotEmpty(t, tb.lane("b"))
		require.NoError(t, b.Close(ctx))
	})
}

// A flush may be the first to see that a device was deleted: that fails no more than if its caller had said so.
func TestALaneThatTheFlushGivesUpIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deleted := errors.New("deleted, says the flush")
		tb := newTable()
		var b *batcher.Batcher[string, string, int]
		b, err := batcher.New(batcher.Config{
			OnStop: func(lane any, err error) { t.Error(lane, "failed", err) },
		}, func(ctx context.Context, s []testSegment) ([]error, error) {
			results := make([]error, len(s))
			var kept []testSegment
			for i := range s {
				if s[i].Lane == "gone" {
					b.Lane("gone").Stop(deleted)
					results[i] = deleted
				} else {
					kept = append(kept, s[i])
				}
			}
			_, err := tb.flush(ctx, kept)
			return results, err
		})
		require.NoError(t, err)
		gone, other := b.Lane("gone"), b.Lane("b")
		add(t, other, put("k", 1))
		ticket := add(t, gone, put("k", 1))
		require.NoError(t, b.Flush(ctx), "who waits for it")
		require.NoError(t, b.Flush(ctx), "and who comes later")
		require.ErrorIs(t, ticket.Wait(ctx), deleted, "its own callers are told")
		require.ErrorIs(t, gone.Reserve(ctx, batcher.Room{Ops: 1}), deleted)
		require.Equal(t, map[string]int{"k": 1}, tb.lane("b"))
		require.Zero(t, b.Stats().Stopped)
		require.Zero(t, b.Stats().Pending)
		add(t, b.Lane("gone"), put("k", 2)) // and once more while it closes
		require.NoError(t, b.Close(ctx))
		require.Zero(t, b.Stats().Stopped)
	})
}

// Of one flush some segments may be durable and others not yet: only these are repeated, and nobody waits for them.
func TestP3OnlyWhatIsToBeFlushedAgainIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		moving := atomic.Int64{}
		moving.Store(3)
		var told error
		b, err := batcher.New(batcher.Config{
			InitialBackoff: time.Second,
			OnRetry:        func(err error, _ int, _ time.Duration) { told = err },
		}, func(ctx context.Context, s []testSegment) ([]error, error) {
			results := make([]error, len(s))
			var kept []testSegment
			for i := range s {
				if s[i].Lane == "moving" && moving.Add(-1) >= 0 {
					results[i] = errors.Join(batcher.ErrAgain, errors.New("moves"))
				} else {
					kept = append(kept, s[i])
				}
			}
			_, err := tb.flush(ctx, kept)
			return results, err
		})
		require.NoError(t, err)
		began := time.Now()
		waiting := add(t, b.Lane("moving"), put("k", 1))
		require.NoError(t, add(t, b.Lane("a"), put("k", 1)).Wait(ctx))
		require.Zero(t, time.Since(began))
		require.NoError(t, waiting.Wait(ctx))
		require.Positive(t, time.Since(began), "with a pause")
		require.ErrorContains(t, told, "moves")
		require.Equal(t, int64(3), b.Stats().Retries)
		require.Zero(t, b.Stats().Stopped)
		require.NoError(t, b.Close(ctx))
		require.Equal(t, map[string]int{"k": 1}, tb.lane("moving"))
		repeated := 0
		for _, f := range tb.flushed() {
			for _, s := range f {
				if s.Lane == "a" {
					repeated++
				}
			}
		}
		require.Equal(t, 1, repeated, "what was durable")
	})
}

// A flush that finds older writes gone puts them before its own segment and all that is pending.
func TestP5WhatIsPutInFrontIsDurableFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		var b *batcher.Batcher[string, string, int]
		var later batcher.Ticket
		first := true
		b, err := batcher.New(batcher.Config{SegmentSize: 2}, func(ctx context.Context, s []testSegment) ([]error, error) {
			if first {
				first = false
				later = add(t, b.Lane("a"), put("later", 1))
				require.NoError(t, b.Lane("a").Push([][]testOp{{put("x", 1), put("y", 1)}, {put("z", 1)}}, nil))
				return []error{batcher.ErrAgain}, nil
			}
			return tb.flush(ctx, s)
		})
		require.NoError(t, err)
		began := time.Now()
		require.NoError(t, add(t, b.Lane("a"), put("k", 1)).Wait(ctx))
		require.Equal(t, map[string]int{"x": 1, "y": 1, "z": 1, "k": 1}, maps.Clone(tb.lane("a")))
		require.NoError(t, later.Wait(ctx))
		require.Zero(t, time.Since(began), "without a pause")
		require.Zero(t, b.Stats().Retries)
		require.Zero(t, b.Stats().Pending)
		require.Zero(t, b.Stats().PendingBytes)
		require.Len(t, tb.flushed(), 4)
		require.NoError(t, b.Close(ctx))
		require.ErrorIs(t, b.Lane("a").Push([][]testOp{{put("k", 2)}}, nil), batcher.ErrClosed)
	})
}

func TestCloseDoesNotWaitForWhatIsAlwaysToBeFlushedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := batcher.New(batcher.Config{}, func(context.Context, []testSegment) ([]error, error) {
			return []error{batcher.ErrAgain}, nil
		})
		require.NoError(t, err)
		add(t, b.Lane("a"), put("k", 1))
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		var unsaved *batcher.UnsavedError
		require.ErrorAs(t, b.Close(limited), &unsaved)
		require.Equal(t, map[string]int{"a": 1}, unsaved.Pending)
	})
}

// An instance that lost its owner while it was idle is as dead as one that had something to save.
func TestStatsCountsEveryLaneThatFailedUntilItBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		b := start(t, batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, tb)
		lost := errors.New("taken by another")
		for _, name := range []string{"a", "b", "c"} {
			b.Lane(name).Fail(lost)
		}
		require.Equal(t, 3, b.Stats().Stopped)
		require.NoError(t, b.Flush(ctx), "nothing is unsaved")
		require.NoError(t, add(t, b.Lane("a"), put("k", 1)).Wait(ctx))
		require.Equal(t, 2, b.Stats().Stopped, "one began again")

		// What was saved after all does not bring it back to life.
		hang := make(chan struct{})
		tb.fail = func([]testSegment) error {
			<-hang
			return nil
		}
		late := b.Lane("d")
		ticket := add(t, late, put("k", 1))
		go func() { _ = ticket.Wait(ctx) }()
		synctest.Wait()
		late.Fail(lost)
		close(hang)
		synctest.Wait()
		require.Zero(t, late.Pending())
		require.Equal(t, 3, b.Stats().Stopped)

		late.Stop(errors.New("deleted"))
		require.Equal(t, 2, b.Stats().Stopped, "nobody misses it")
		b.Lane("e").Stop(errors.New("deleted"))
		b.Lane("f")
		require.NoError(t, b.Close(ctx))
		require.Equal(t, 2, b.Stats().Stopped, "a lane that is closed has not failed")
	})
}

// life is a lane's name that a later one may share.
type life struct{ name string }

func (l *life) String() string { return l.name }

func TestP7CloseCountsWhatAllLivesOfALaneLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("gone")
		b, err := batcher.New(batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, func(context.Context, []batcher.Segment[*life, string, int]) ([]error, error) {
			return nil, gone
		})
		require.NoError(t, err)
		begin := func(n int) *batcher.Lane[*life, string, int] {
			l := b.Lane(&life{"shop"})
			for i := range n {
				require.NoError(t, l.Reserve(ctx, batcher.Room{Ops: 1}))
				_, err := l.Add(batcher.Room{Ops: 1}, []testOp{put(string(rune('a'+i)), i)})
				require.NoError(t, err)
			}
			return l
		}
		begin(3).Fail(gone)
		require.ErrorIs(t, b.Flush(ctx), gone)
		begin(2).Fail(gone)
		begin(0)
		require.NoError(t, b.Flush(ctx), "it was begun again")
		require.Zero(t, b.Stats().Stopped)
		begin(0).Fail(gone)
		require.NoError(t, b.Flush(ctx), "what earlier lives lost was told")
		require.Equal(t, 1, b.Stats().Stopped)
		superseded := begin(1)
		superseded.Fail(gone)
		begin(0).Fail(gone)
		superseded.Stop(gone)
		require.Equal(t, 1, b.Stats().Stopped, "the one that failed last")
		begin(4)
		limited, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		var unsaved *batcher.UnsavedError
		require.ErrorAs(t, b.Close(limited), &unsaved)
		require.Equal(t, map[string]int{"shop": 9}, unsaved.Pending)
		require.ErrorIs(t, unsaved, gone)
		require.ErrorIs(t, unsaved, context.DeadlineExceeded)
	})
}

func TestStoppingALaneThatHadFailedForgetsItsLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, newTable())
		l := b.Lane("a")
		add(t, l, put("k", 1))
		l.Fail(errors.New("deleted, says the flush"))
		require.Error(t, b.Flush(ctx))
		require.Empty(t, l.Stop(errors.New("deleted, says the caller")))
		require.NoError(t, b.Flush(ctx))
		require.NoError(t, b.Close(ctx))
	})
}

// A lane may be lost any number of times before the batcher is closed.
func TestP11WhatALaneThatStoppedHeldIsLetGo(t *testing.T) {
	t.Parallel()
	b, err := batcher.New(batcher.Config{Interval: time.Hour, MaxRest: time.Hour}, func(context.Context, []batcher.Segment[string, string, *[1000]byte]) ([]error, error) {
		return nil, nil
	})
	require.NoError(t, err)
	held := func() weak.Pointer[[1000]byte] {
		value := new([1000]byte)
		l := b.Lane("a")
		require.NoError(t, l.Reserve(ctx, batcher.Room{Ops: 1}))
		_, err := l.Add(batcher.Room{Ops: 1}, []batcher.Op[string, *[1000]byte]{{Key: "k", Value: value}})
		require.NoError(t, err)
		l.Fail(errors.New("gone"))
		return weak.Make(value)
	}()
	runtime.GC()
	require.Nil(t, held.Value())
	require.Error(t, b.Close(ctx))
}

func TestAFlightThatArrivesAfterItsLaneStoppedIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		hang := make(chan struct{})
		b, err := batcher.New(batcher.Config{}, func(ctx context.Context, s []testSegment) ([]error, error) {
			<-hang
			return tb.flush(ctx, s)
		})
		require.NoError(t, err)
		l := b.Lane("a")
		gone := errors.New("gone")
		ticket := add(t, l, put("k", 1))
		time.Sleep(time.Second)
		l.Fail(gone)
		require.ErrorIs(t, b.Flush(ctx), gone)
		close(hang)
		synctest.Wait()
		require.Equal(t, map[string]int{"k": 1}, tb.lane("a"))
		require.ErrorIs(t, ticket.Wait(ctx), gone, "who was told so stays told so")
		require.Zero(t, l.Pending())
		require.NoError(t, b.Flush(ctx))
		require.NoError(t, b.Close(ctx))
	})
}

// After an outage the first lane that gets through calls the others, which would else sleep on for their own delay.
func TestP3TheFirstSuccessAfterAnOutageEndsAllDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tb := newTable()
		var down atomic.Bool
		guilty := atomic.Int64{}
		down.Store(true)
		tb.fail = func(s []testSegment) error {
			if s[0].Lane == "guilty" {
				guilty.Add(1)
				return errors.New("its own fault")
			}
			if down.Load() {
				return errors.New("away")
			}
			return nil
		}
		b := start(t, batcher.Config{BatchSize: 1, InitialBackoff: time.Second, MaxBackoff: time.Minute}, tb)
		var tickets []batcher.Ticket
		for _, name := range []string{"a", "b", "c", "d", "e"} { // each has its own, jittered delay
			tickets = append(tickets, add(t, b.Lane(name), put("k", 1)))
		}
		add(t, b.Lane("guilty"), put("k", 1))
		time.Sleep(10 * time.Minute)
		down.Store(false)
		var first time.Time
		var last time.Time
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, ticket := range tickets {
			wg.Go(func() {
				if err := ticket.Wait(ctx); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if first.IsZero() {
					first = time.Now()
				}
				last = time.Now()
			})
		}
		wg.Wait()
		require.Equal(t, first, last)
		// Who fails for a reason of its own keeps its delay, however often the others succeed.
		before := guilty.Load()
		for i := range 100 {
			require.NoError(t, add(t, b.Lane("a"), put("k", i)).Wait(ctx))
		}
		require.LessOrEqual(t, guilty.Load()-before, int64(1))
		b.Lane("guilty").Stop(errors.New("enough"))
		require.NoError(t, b.Close(ctx))
	})
}

func TestCloseDoesNotSayThatItWillTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retries := 0
		b, err := batcher.New(batcher.Config{OnRetry: func(error, int, time.Duration) { retries++ }}, func(ctx context.Context, _ []testSegment) ([]error, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		require.NoError(t, err)
		add(t, b.Lane("a"), put("k", 1))
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		require.Error(t, b.Close(limited))
		require.Zero(t, retries)
	})
}

// Whatever fails in between, also after it was applied, what is durable of a lane is always what some prefix of its groups leaves, and in the end
// all of them.
func TestP3WhatIsDurableIsAlwaysAPrefix(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable()
		failing := func(label string) func([]testSegment) error {
			failures := rapid.SliceOfN(rapid.Bool(), 0, 20).Draw(t, label)
			return func([]testSegment) error {
				if len(failures) == 0 {
					return nil
				}
				fail := failures[0]
				failures = failures[1:]
				if fail {
					return errors.New("away")
				}
				return nil
			}
		}
		tb.fail, tb.unsure = failing("failures"), failing("lost answers")
		prefixes, models := make(map[string][]map[string]int), make(map[string]map[string]int)
		for _, name := range names {
			prefixes[name], models[name] = []map[string]int{{}}, map[string]int{}
		}
		b, err := batcher.New(batcher.Config{
			Interval: time.Microsecond, SegmentSize: 3, BatchSize: 6, InitialBackoff: time.Microsecond, MaxBackoff: time.Microsecond,
		}, tb.flush)
		require.NoError(t, err)
		groups := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) testOp {
			return testOp{
				Kind:  batcher.OpKind(rapid.IntRange(0, 2).Draw(t, "kind")),
				Key:   rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key"),
				Value: rapid.Int().Draw(t, "value"),
			}
		}), 1, 5), 1, 30).Draw(t, "groups")
		for _, group := range groups {
			name := rapid.SampledFrom(names).Draw(t, "lane")
			apply(models[name], group)
			prefixes[name] = append(prefixes[name], maps.Clone(models[name]))
			l := b.Lane(name)
			require.NoError(t, l.Reserve(ctx, batcher.Room{Ops: len(group)}))
			_, err := l.Add(batcher.Room{Ops: len(group)}, group)
			require.NoError(t, err)
			for _, name := range names {
				durable := tb.lane(name)
				require.True(t, slices.ContainsFunc(prefixes[name], func(p map[string]int) bool { return maps.Equal(p, durable) }),
					"durable of %s: %v, moments: %v", name, durable, prefixes[name])
			}
		}
		require.NoError(t, b.Close(ctx))
		for _, name := range names {
			require.True(t, maps.Equal(models[name], tb.lane(name)))
		}
	})
}

func TestConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := batcher.New(batcher.Config{Interval: -1, BatchSize: -1, MaxBackoff: 1}, newTable().flush)
	for _, field := range []string{"Interval", "BatchSize", "MaxBackoff"} {
		require.ErrorContains(t, err, field)
	}
}
