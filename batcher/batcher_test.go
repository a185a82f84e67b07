package batcher_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
	require.NoError(t, l.Reserve(ctx, len(ops)))
	ticket, err := l.Add(len(ops), ops)
	require.NoError(t, err)
	return ticket
}

func put(key string, value int) testOp { return testOp{Kind: batcher.Put, Key: key, Value: value} }

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
		err := l.Reserve(short, 1)
		require.ErrorIs(t, err, batcher.ErrBacklogFull)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		admitted := make(chan error, 1)
		go func() { admitted <- l.Reserve(ctx, 1) }()
		synctest.Wait()
		require.Equal(t, 1, b.Stats().Blocked)
		tb.mu.Lock()
		down = nil
		tb.mu.Unlock()
		require.NoError(t, <-admitted)
		require.LessOrEqual(t, l.Pending(), 2)
		l.Unreserve(1)
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
		go func() { admitted <- l.Reserve(ctx, 100) }()
		synctest.Wait() // it sleeps, and does not spin
		require.Empty(t, admitted)
		tb.mu.Lock()
		down = nil
		tb.mu.Unlock()
		require.NoError(t, <-admitted)
		l.Unreserve(100)
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
		for _, name := range []string{"a", "guilty", "b"} {
			add(t, b.Lane(name), put("k", 1))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, map[string]int{"k": 1}, tb.lane("a"))
		require.Equal(t, map[string]int{"k": 1}, tb.lane("b"))
		require.Empty(t, tb.lane("guilty"))
		require.Equal(t, []any{"guilty"}, stopped)
		require.ErrorIs(t, b.Lane("guilty").Reserve(ctx, 1), refused)
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
		require.ErrorIs(t, b.Lane("a").Reserve(ctx, 1), batcher.ErrClosed)
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
		_, err := l.Add(0, []testOp{put("k", 2)})
		require.ErrorIs(t, err, gone)
		require.NotSame(t, l, b.Lane("a"))
		require.NoError(t, b.Close(ctx))
		require.Empty(t, tb.lane("a"))
	})
}

// Whatever fails in between, what is durable is always what some prefix of a lane's groups leaves, and in the end all of them.
func TestP3WhatIsDurableIsAlwaysAPrefix(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tb := newTable()
		failures := rapid.SliceOfN(rapid.Bool(), 0, 20).Draw(t, "failures")
		prefixes := []map[string]int{{}}
		model := map[string]int{}
		tb.fail = func([]testSegment) error {
			if len(failures) > 0 {
				fail := failures[0]
				failures = failures[1:]
				if fail {
					return errors.New("away")
				}
			}
			return nil
		}
		b, err := batcher.New(batcher.Config{
			Interval: time.Microsecond, SegmentSize: 3, InitialBackoff: time.Microsecond, MaxBackoff: time.Microsecond,
		}, tb.flush)
		require.NoError(t, err)
		l := b.Lane("a")
		groups := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) testOp {
			return testOp{
				Kind:  batcher.OpKind(rapid.IntRange(0, 2).Draw(t, "kind")),
				Key:   rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "key"),
				Value: rapid.Int().Draw(t, "value"),
			}
		}), 1, 5), 1, 20).Draw(t, "groups")
		for _, group := range groups {
			apply(model, group)
			prefixes = append(prefixes, maps.Clone(model))
			require.NoError(t, l.Reserve(ctx, len(group)))
			_, err := l.Add(len(group), group)
			require.NoError(t, err)
			tb.mu.Lock()
			durable := maps.Clone(tb.rows["a"])
			tb.mu.Unlock()
			isPrefix := false
			for _, p := range prefixes {
				isPrefix = isPrefix || maps.Equal(p, durable)
			}
			require.True(t, isPrefix, "durable: %v, moments: %v", durable, prefixes)
		}
		require.NoError(t, b.Close(ctx))
		require.True(t, maps.Equal(model, tb.lane("a")))
	})
}

func TestConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	_, err := batcher.New(batcher.Config{Interval: -1, BatchSize: -1, MaxBackoff: 1}, newTable().flush)
	for _, field := range []string{"Interval", "BatchSize", "MaxBackoff"} {
		require.ErrorContains(t, err, field)
	}
}
