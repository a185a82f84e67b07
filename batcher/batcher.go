package batcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Batcher flushes lanes of keys K and values V, each named by an L. It is safe for concurrent use.
type Batcher[L comparable, K comparable, V any] struct {
	cfg    Config
	flush  FlushFunc[L, K, V]
	wake   chan struct{} // capacity 1
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu struct {
		sync.Mutex
		lanes     map[L]*Lane[L, K, V]        // those that have not stopped
		active    map[*Lane[L, K, V]]struct{} // those with something in their queue
		lost      map[string]*loss            // what failed lanes could not save, by name
		pending   Room
		reserved  Room
		blocked   int
		gate      chan struct{} // not nil while writers must wait
		restUntil time.Time
		draining  bool
		closed    bool
		stats     Stats
	}
	closing  sync.Once
	closeErr error
}

// loss is what is left of lanes of one name that failed: no operation, only how many they were.
type loss struct {
	pending int
	last    *ending // of the one that failed last
	over    bool    // a lane of that name has begun since, or its owner has given it up
}

// Stats is a snapshot of a batcher's counters.
type Stats struct {
	Pending      int   // operations that are not durable
	PendingBytes int64 // what they count for: all that the backlog holds of one key, not only what was written last
	Blocked      int   // writers that wait for room
	Stopped      int   // lanes that failed, with something unsaved or not, and did not begin again
	Flushes      int64
	Flushed      int64 // operations
	Retries      int64
	LastFlush    time.Duration
	Flying       time.Duration // how long the flush that has been under way longest has
	Oldest       time.Duration // how long the oldest of the pending operations has been waiting, counted anew with each flush of its lane
}

// New starts a batcher. Close ends it.
func New[L comparable, K comparable, V any](cfg Config, flush FlushFunc[L, K, V]) (*Batcher[L, K, V], error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("batcher: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background()) //nolint:gosec // Close calls it
	b := &Batcher[L, K, V]{cfg: cfg, flush: flush, wake: make(chan struct{}, 1), cancel: cancel}
	b.mu.lanes = make(map[L]*Lane[L, K, V])
	b.mu.active = make(map[*Lane[L, K, V]]struct{})
	b.mu.lost = make(map[string]*loss)
	for range cfg.Flushers {
		b.ended.Go(func() { b.run(ctx) })
	}
	return b, nil
}

// Lane returns the lane called name, a new one if there is none or the last one stopped.
func (b *Batcher[L, K, V]) Lane(name L) *Lane[L, K, V] {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.mu.lanes[name]
	if l == nil {
		l = &Lane[L, K, V]{b: b, name: name}
		l.backoff = &backoff.ExponentialBackOff{
			InitialInterval: b.cfg.InitialBackoff, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: b.cfg.MaxBackoff,
		}
		b.mu.lanes[name] = l
		b.overLocked(l.text())
	}
	return l
}

// overLocked notes that nobody need be told any more that a lane of that name failed; what it lost is for Close to tell.
func (b *Batcher[L, K, V]) overLocked(name string) {
	if lost := b.mu.lost[name]; lost != nil {
		if lost.over = true; lost.pending == 0 {
			delete(b.mu.lost, name)
		}
	}
}

// Flush returns when everything that was added before is durable. A lane that failed with something unsaved makes it return its
// error, until a lane whose name reads the same has begun. A lane that was given up ([Lane.Stop]) does not.
func (b *Batcher[L, K, V]) Flush(ctx context.Context) error {
	b.mu.Lock()
	lanes := make([]*Lane[L, K, V], 0, len(b.mu.lanes))
	for _, l := range b.mu.lanes {
		lanes = append(lanes, l)
	}
	var errs []error
	for name, lost := range b.mu.lost {
		if !lost.over && lost.last.unsaved > 0 {
			errs = append(errs, fmt.Errorf("%s: %w", name, lost.last.err))
		}
	}
	b.mu.Unlock()
	for _, l := range lanes {
		if err := l.Barrier(ctx); err != nil && !b.givenUp(l) {
			errs = append(errs, fmt.Errorf("%v: %w", l.name, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Batcher[L, K, V]) givenUp(l *Lane[L, K, V]) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return l.givenUp
}

// Stats returns the counters as they are now.
func (b *Batcher[L, K, V]) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.mu.stats
	s.Pending, s.PendingBytes, s.Blocked = b.mu.pending.Ops, b.mu.pending.Bytes, b.mu.blocked
	for _, lost := range b.mu.lost {
		if !lost.over {
			s.Stopped++
		}
	}
	for l := range b.mu.active {
		s.Oldest = max(s.Oldest, time.Since(l.since))
		if l.flying {
			s.Flying = max(s.Flying, time.Since(l.flown))
		}
	}
	return s
}

// Close refuses new writes, flushes what is pending until ctx ends, and ends the flushers. What is
// not durable then is told by an [*UnsavedError]. It may be called more than once and answers the same.
func (b *Batcher[L, K, V]) Close(ctx context.Context) error {
	b.closing.Do(func() { b.closeErr = b.close(ctx) })
	return b.closeErr
}

func (b *Batcher[L, K, V]) close(ctx context.Context) error {
	b.mu.Lock()
	b.mu.closed, b.mu.draining = true, true
	if b.mu.gate != nil {
		close(b.mu.gate)
		b.mu.gate = nil
	}
	lanes := make([]*Lane[L, K, V], 0, len(b.mu.lanes))
	for _, l := range b.mu.lanes {
		lanes = append(lanes, l)
	}
	b.mu.Unlock()
	b.nudge()

	var causes []error
	for _, l := range lanes {
		if err := l.Barrier(ctx); err != nil && !b.givenUp(l) && !slices.ContainsFunc(causes, func(c error) bool { return errors.Is(c, err) }) {
			causes = append(causes, err)
		}
	}
	b.cancel()
	b.ended.Wait()

	unsaved := &UnsavedError{Pending: make(map[string]int)}
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, lost := range b.mu.lost {
		if lost.pending == 0 {
			continue
		}
		unsaved.Pending[name] = lost.pending
		if err := lost.last.err; !slices.ContainsFunc(causes, func(c error) bool { return errors.Is(c, err) }) {
			causes = append(causes, err)
		}
	}
	for _, l := range b.mu.lanes {
		if n := l.pendingLocked(); n == 0 {
			l.endLocked(ErrClosed)
		} else {
			unsaved.Pending[l.text()] += n // besides what an earlier lane of that name has lost
			l.failLocked(ErrClosed)
		}
	}
	if len(unsaved.Pending) == 0 {
		return nil
	}
	unsaved.Cause = errors.Join(causes...)
	return unsaved
}

func (b *Batcher[L, K, V]) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// fitsLocked says whether there is room for more. What is more than half a limit is let in when half is free: it would wait for ever
// otherwise.
func (b *Batcher[L, K, V]) fitsLocked(more Room) bool {
	used := b.mu.pending.plus(b.mu.reserved)
	return (used.Ops <= b.cfg.PendingLimit/2 || used.Ops+more.Ops <= b.cfg.PendingLimit) &&
		(used.Bytes <= b.cfg.PendingBytes/2 || used.Bytes+more.Bytes <= b.cfg.PendingBytes)
}

// openGateLocked lets writers go on when half of the room is free.
func (b *Batcher[L, K, V]) openGateLocked() {
	half := Room{b.cfg.PendingLimit / 2, b.cfg.PendingBytes / 2}
	if b.mu.gate != nil && half.holds(b.mu.pending.plus(b.mu.reserved)) {
		close(b.mu.gate)
		b.mu.gate = nil
	}
}

// run is a flusher.
func (b *Batcher[L, K, V]) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		picked, next := b.pick()
		if len(picked) > 0 {
			b.nudge() // another flusher may find more
			b.flushPicked(ctx, picked)
			continue
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-timer.C:
		}
	}
}

// pick seals and returns the lanes to flush now, or says how long there is nothing to do.
func (b *Batcher[L, K, V]) pick() (picked []*Lane[L, K, V], next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	next = time.Hour
	type due struct {
		lane *Lane[L, K, V]
		at   time.Time
	}
	var candidates []due
	for l := range b.mu.active {
		at, ok := l.dueAtLocked()
		if !ok {
			continue
		}
		if at.After(now) {
			next = min(next, at.Sub(now))
			continue
		}
		candidates = append(candidates, due{l, at})
	}
	slices.SortFunc(candidates, func(x, y due) int { return x.at.Compare(y.at) })
	size := 0
	for _, c := range candidates {
		n := len(c.lane.queue[0].ops)
		if len(picked) > 0 && (size+n > b.cfg.BatchSize || c.lane.alone || picked[0].alone) {
			continue
		}
		size += n
		c.lane.flying, c.lane.flown = true, now
		c.lane.queue[0].sealed = true
		picked = append(picked, c.lane)
	}
	return picked, next
}

func (b *Batcher[L, K, V]) flushPicked(ctx context.Context, picked []*Lane[L, K, V]) {
	b.mu.Lock()
	picked = slices.DeleteFunc(picked, func(l *Lane[L, K, V]) bool { return l.Err() != nil }) // stopped since
	parts := make([]*part[K, V], len(picked))
	segments := make([]Segment[L, K, V], len(picked))
	wanted := false
	for i, l := range picked {
		parts[i] = l.queue[0]
		segments[i] = Segment[L, K, V]{Lane: l.name, Ops: parts[i].ops}
		wanted = wanted || parts[i].wanted
	}
	b.mu.Unlock()
	if len(picked) == 0 {
		return
	}

	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, b.cfg.FlushTimeout)
	results, err := b.call(attempt, segments)
	cancel()
	took := time.Since(began)
	b.observe(segments, parts, took, err)

	if err == nil {
		for i, l := range picked {
			if (results == nil || results[i] == nil) && l.onDurable != nil {
				l.onDurable(parts[i].ops)
			}
		}
	}

	b.mu.Lock()
	defer b.nudge()
	defer b.mu.Unlock()
	b.mu.stats.Flushes++
	b.mu.stats.LastFlush = took
	if !wanted {
		b.mu.restUntil = time.Now().Add(min(b.cfg.MaxRest, max(b.cfg.Interval, 3*took)))
	}
	if err != nil {
		b.failedLocked(picked, err, ctx.Err() != nil)
	} else {
		b.doneLocked(picked, parts, results, ctx.Err() != nil)
	}
	b.openGateLocked()
}

// observe tells of an attempt. Sealed segments do not change, so no lock is needed.
func (b *Batcher[L, K, V]) observe(segments []Segment[L, K, V], parts []*part[K, V], took time.Duration, err error) {
	if b.cfg.OnFlush == nil {
		return
	}
	flushed := Flushed{Lanes: len(segments), Took: took, Err: err}
	for _, p := range parts {
		room := p.room()
		flushed.Ops, flushed.Bytes = flushed.Ops+room.Ops, flushed.Bytes+room.Bytes
	}
	b.cfg.OnFlush(flushed)
}

// doneLocked decides what becomes of lanes whose flush has a result for each.
func (b *Batcher[L, K, V]) doneLocked(picked []*Lane[L, K, V], parts []*part[K, V], results []error, ended bool) {
	saved := false
	for i, l := range picked {
		l.flying = false
		switch {
		case results == nil || results[i] == nil:
			b.durableLocked(l, parts[i])
			saved = true
		case errors.Is(results[i], ErrAgain) && l.Err() == nil && l.queue[0] != parts[i]: // see Push
		case errors.Is(results[i], ErrAgain):
			b.delayLocked(l, results[i], ended)
		default:
			b.stopLocked(l, results[i])
		}
	}
	if saved {
		b.hurryLocked()
	}
}

// call turns a panic of the flush function into an error.
func (b *Batcher[L, K, V]) call(ctx context.Context, segments []Segment[L, K, V]) (results []error, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("batcher: flush panicked: %v", p)
		}
	}()
	results, err = b.flush(ctx, segments)
	if err == nil && results != nil && len(results) != len(segments) {
		err = fmt.Errorf("batcher: flush gave %d results for %d segments", len(results), len(segments))
	}
	return results, err
}

func (b *Batcher[L, K, V]) durableLocked(l *Lane[L, K, V], p *part[K, V]) {
	b.mu.stats.Flushed += int64(len(p.ops))
	if l.Err() != nil { // stopped while this was on its way
		l.savedLocked(len(p.ops))
		return
	}
	l.queue = l.queue[1:]
	if len(l.queue) == 0 {
		delete(b.mu.active, l)
	}
	if p.wanted {
		l.wanted--
	}
	l.since = time.Now()
	l.alone, l.attempts, l.notBefore, l.hurried = false, 0, time.Time{}, false
	l.backoff.Reset()
	b.mu.pending = b.mu.pending.minus(p.room())
	p.finish(nil)
}

// hurryLocked ends the delays of all lanes after a success: what they waited for is over. A lane that fails nevertheless is not
// hurried again before it has succeeded, or the others would let it try without a pause.
func (b *Batcher[L, K, V]) hurryLocked() {
	for l := range b.mu.active {
		if !l.notBefore.IsZero() && !l.hurried {
			l.notBefore, l.hurried = time.Time{}, true
		}
	}
}

// failedLocked decides what becomes of lanes whose flush failed as a whole.
func (b *Batcher[L, K, V]) failedLocked(picked []*Lane[L, K, V], err error, ended bool) {
	permanent := b.cfg.Permanent(err)
	for _, l := range picked {
		l.flying = false
		switch {
		case l.Err() != nil:
		case permanent && len(picked) == 1:
			b.stopLocked(l, err)
		case permanent:
			l.alone = true
		default:
			b.delayLocked(l, err, ended)
		}
	}
}

// delayLocked lets a lane try again later. At the end of the batcher nothing is tried again.
func (b *Batcher[L, K, V]) delayLocked(l *Lane[L, K, V], err error, ended bool) {
	if l.Err() != nil || ended {
		return
	}
	l.attempts++
	delay := l.backoff.NextBackOff()
	l.notBefore = time.Now().Add(delay)
	b.mu.stats.Retries++
	b.cfg.OnRetry(err, l.attempts, delay)
}

func (b *Batcher[L, K, V]) stopLocked(l *Lane[L, K, V], err error) {
	if l.Err() != nil {
		return
	}
	l.failLocked(err)
	b.cfg.OnStop(l.name, err)
}
