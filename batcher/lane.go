package batcher

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Lane is the backlog of one owner of keys. It is safe for concurrent use.
type Lane[L comparable, K comparable, V any] struct {
	b    *Batcher[L, K, V]
	name L

	// Guarded by b.mu.
	queue     []*part[K, V]
	wanted    int       // segments in the queue that somebody waits for
	since     time.Time // when the oldest pending write came
	flying    bool
	flown     time.Time // since when
	alone     bool      // must be flushed without other lanes
	notBefore time.Time // after a failure
	hurried   bool      // a delay was ended early since the last success
	givenUp   bool      // it was stopped by its owner, and nobody wants what was pending
	backoff   *backoff.ExponentialBackOff
	attempts  int
	onDurable func([]Op[K, V])
	refusal   error // why nothing more is accepted, nil if it is

	kept    []Op[K, V]             // what was pending when it failed, without values
	stopped atomic.Pointer[ending] // how the lane stopped; written under b.mu, read without, since every read of a store asks
}

// ending is how a lane stopped.
type ending struct {
	err     error
	unsaved int // operations that were pending when it failed and have not arrived since; guarded by b.mu
}

// OnDurable sets a function that is called with each segment's operations when they are durable, before
// anyone who waits for them goes on. Set it before the first Add.
func (l *Lane[L, K, V]) OnDurable(f func(ops []Op[K, V])) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.onDurable = f
}

// Reserve makes room for a group, whose bytes need not be known yet. It blocks while the batcher's backlog is full, until it is
// half empty or ctx ends: then the error matches [ErrBacklogFull] and the context's.
func (l *Lane[L, K, V]) Reserve(ctx context.Context, room Room) error {
	b := l.b
	var began time.Time // of the wait
	for {
		b.mu.Lock()
		if err := l.refusalLocked(); err != nil {
			b.mu.Unlock()
			l.blocked(began, err)
			return err
		}
		if b.mu.gate == nil && b.fitsLocked(room) {
			b.mu.reserved = b.mu.reserved.plus(room)
			b.mu.Unlock()
			l.blocked(began, nil)
			return nil
		}
		if b.mu.gate == nil {
			b.mu.gate = make(chan struct{})
		}
		gate := b.mu.gate
		b.mu.blocked++
		b.mu.Unlock()
		b.nudge()
		if began.IsZero() {
			began = time.Now()
		}

		var err error
		select {
		case <-gate:
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrBacklogFull, context.Cause(ctx))
		}
		b.mu.Lock()
		b.mu.blocked--
		b.mu.Unlock()
		if err != nil {
			l.blocked(began, err)
			return err
		}
	}
}

// blocked tells of a wait, if there was one.
func (l *Lane[L, K, V]) blocked(began time.Time, err error) {
	if !began.IsZero() && l.b.cfg.OnBlocked != nil {
		l.b.cfg.OnBlocked(l.name, time.Since(began), err)
	}
}

// Unreserve gives back what was reserved and not used.
func (l *Lane[L, K, V]) Unreserve(room Room) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.b.mu.reserved = l.b.mu.reserved.minus(room)
	l.b.openGateLocked()
}

// Add appends a group. It uses up the reservation and never blocks. It fails if the lane stopped or the batcher is closed, and with a
// [*RoomError] if the group takes more than was reserved and there is no room for it.
func (l *Lane[L, K, V]) Add(reserved Room, ops []Op[K, V]) (Ticket, error) {
	need := roomOf(ops)
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.reserved = b.mu.reserved.minus(reserved)
	defer b.openGateLocked()
	if err := l.refusalLocked(); err != nil {
		return Ticket{}, err
	}
	if !reserved.holds(need) && !b.fitsLocked(need) {
		return Ticket{}, &RoomError{Need: need}
	}
	return l.addLocked(ops), nil
}

// Push inserts groups, each whole and in order, whatever room there is: for what a flush has to add before the backlog can get shorter. Those
// behind come after all that is pending, and those in front before it, the segment that is being flushed included. Only the [FlushFunc] that has that
// segment may put any in front, and its result for it must match [ErrAgain]: it is flushed again after them, and none of them waits for a
// pause. Push fails as Add does if the lane stopped or the batcher is closed, and then inserts none.
func (l *Lane[L, K, V]) Push(front, behind [][]Op[K, V]) error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if err := l.refusalLocked(); err != nil {
		return err
	}
	var first []*part[K, V]
	for _, ops := range front {
		p := newPart[K, V]()
		p.add(ops)
		first = append(first, p)
		l.b.mu.pending = l.b.mu.pending.plus(p.room())
	}
	l.queue = append(first, l.queue...)
	for _, ops := range behind {
		l.addLocked(ops)
	}
	return nil
}

// Probe lets the lane be flushed at once, also with nothing to write, so that its [FlushFunc] looks how it has been left. It fails as Add does.
func (l *Lane[L, K, V]) Probe() error {
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := l.refusalLocked(); err != nil {
		return err
	}
	if len(l.queue) == 0 {
		l.beginLocked()
		l.queue = append(l.queue, newPart[K, V]())
	}
	if first := l.queue[0]; !first.wanted {
		first.wanted = true
		l.wanted++
	}
	b.nudge()
	return nil
}

// beginLocked notes that the lane has something to do again.
func (l *Lane[L, K, V]) beginLocked() {
	l.since = time.Now()
	l.b.mu.active[l] = struct{}{}
}

func (l *Lane[L, K, V]) addLocked(ops []Op[K, V]) Ticket {
	b := l.b
	if len(ops) == 0 {
		return Ticket{}
	}
	if len(l.queue) == 0 {
		l.beginLocked()
	}
	p := l.tailLocked(len(ops))
	before := p.room()
	p.add(ops)
	b.mu.pending = b.mu.pending.plus(p.room().minus(before))
	if before.Ops == 0 || len(p.ops) >= b.cfg.SegmentSize {
		b.nudge()
	}
	return l.ticket(p)
}

// tailLocked is the segment that takes a group of n operations.
func (l *Lane[L, K, V]) tailLocked(n int) *part[K, V] {
	if len(l.queue) > 0 {
		last := l.queue[len(l.queue)-1]
		if !last.sealed && len(last.ops)+n <= l.b.cfg.SegmentSize {
			return last
		}
	}
	p := newPart[K, V]()
	l.queue = append(l.queue, p)
	return p
}

func (l *Lane[L, K, V]) ticket(p *part[K, V]) Ticket {
	return Ticket{
		done: p.done,
		want: func() {
			l.b.mu.Lock()
			if !p.wanted && !p.finished() {
				p.wanted = true
				l.wanted++
			}
			l.b.mu.Unlock()
			l.b.nudge()
		},
		err: func() error { return p.err },
	}
}

func (l *Lane[L, K, V]) refusalLocked() error {
	if err := l.Err(); err != nil {
		return err
	}
	if l.b.mu.closed {
		return ErrClosed
	}
	return l.refusal
}

// Drain accepts nothing more, which refusal says, and waits until all that was added is durable. The error is the context's, or the lane's if it
// stopped. The lane goes on saving what it has, however often Drain is called.
func (l *Lane[L, K, V]) Drain(ctx context.Context, refusal error) error {
	l.b.mu.Lock()
	l.refusal = refusal
	l.b.mu.Unlock()
	return l.Barrier(ctx)
}

// Unsaved lists what was pending when the lane failed, in order and without values.
func (l *Lane[L, K, V]) Unsaved() []Op[K, V] {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	return slices.Clone(l.kept)
}

// Barrier waits until everything that was added before is durable.
func (l *Lane[L, K, V]) Barrier(ctx context.Context) error {
	t, err := l.Last()
	if err != nil {
		return err
	}
	return t.Wait(ctx)
}

// Last is the ticket of what was added last.
func (l *Lane[L, K, V]) Last() (Ticket, error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if err := l.Err(); err != nil {
		return Ticket{}, err
	}
	if n := len(l.queue); n > 0 {
		return l.ticket(l.queue[n-1]), nil
	}
	return Ticket{}, nil
}

// Pending is the number of operations that are not durable.
func (l *Lane[L, K, V]) Pending() int {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	return l.pendingLocked()
}

func (l *Lane[L, K, V]) pendingLocked() int {
	n := 0
	if end := l.stopped.Load(); end != nil {
		n = end.unsaved
	}
	for _, p := range l.queue {
		n += len(p.ops)
	}
	return n
}

// text is the lane's name as people read it.
func (l *Lane[L, K, V]) text() string { return fmt.Sprint(l.name) }

// Err says why the lane stopped, or nil. It takes no lock.
func (l *Lane[L, K, V]) Err() error {
	if end := l.stopped.Load(); end != nil {
		return end.err
	}
	return nil
}

// Fail ends the lane as a flush that was refused does: who waits gets err, and so does every later call. How much was
// pending is told by Close; it no longer occupies memory or counts as backlog.
func (l *Lane[L, K, V]) Fail(err error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.failLocked(err)
	l.b.openGateLocked()
}

// Stop gives the lane up: who waits gets err, and so does every later call. It returns what was pending, in
// order, and neither Flush nor Close nor Stats tells it; nor, if the lane had failed before, what it lost then. A flush that is under
// way is not waited for, so that a [FlushFunc] may call it.
func (l *Lane[L, K, V]) Stop(err error) []Op[K, V] {
	b := l.b
	b.mu.Lock()
	defer b.mu.Unlock()
	end := l.stopped.Load()
	if end == nil {
		l.givenUp = true
	} else if lost := b.mu.lost[l.text()]; lost != nil {
		l.savedLocked(end.unsaved)
		if lost.last == end {
			b.overLocked(l.text())
		}
	}
	ops := l.endLocked(err)
	b.openGateLocked()
	b.nudge()
	return ops
}

// failLocked ends the lane and notes that it failed, and how much it could not save.
func (l *Lane[L, K, V]) failLocked(err error) {
	if l.Err() != nil {
		return
	}
	pending := l.endLocked(err)
	unsaved := len(pending)
	for _, o := range pending {
		l.kept = append(l.kept, Op[K, V]{Kind: o.Kind, Key: o.Key})
	}
	lost := l.b.mu.lost[l.text()]
	if lost == nil {
		lost = new(loss)
		l.b.mu.lost[l.text()] = lost
	}
	end := l.stopped.Load()
	end.unsaved = unsaved
	lost.pending += unsaved
	lost.last, lost.over = end, false
}

// savedLocked takes back what failLocked noted: it has arrived nevertheless, or nobody wants it any more.
func (l *Lane[L, K, V]) savedLocked(n int) {
	end, lost := l.stopped.Load(), l.b.mu.lost[l.text()]
	if end.unsaved == 0 || lost == nil {
		return
	}
	end.unsaved -= n
	if lost.pending -= n; lost.pending == 0 && lost.over {
		delete(l.b.mu.lost, l.text())
	}
}

// endLocked tells all who wait, and empties the lane. A lane that has ended has nothing more.
func (l *Lane[L, K, V]) endLocked(err error) (pending []Op[K, V]) {
	if !l.stopped.CompareAndSwap(nil, &ending{err: err}) {
		return nil
	}
	for _, p := range l.queue {
		pending = append(pending, p.ops...)
		l.b.mu.pending = l.b.mu.pending.minus(p.room())
		p.finish(err)
	}
	l.queue, l.wanted = nil, 0
	delete(l.b.mu.active, l)
	if l.b.mu.lanes[l.name] == l {
		delete(l.b.mu.lanes, l.name)
	}
	return pending
}

// dueAtLocked is when the lane wants to be flushed; ok is false if it has nothing to do.
func (l *Lane[L, K, V]) dueAtLocked() (at time.Time, ok bool) {
	if l.flying || l.Err() != nil || len(l.queue) == 0 {
		return at, false
	}
	urgent := l.b.mu.draining || l.b.mu.gate != nil || l.wanted > 0 || len(l.queue) > 1 || len(l.queue[0].ops) >= l.b.cfg.SegmentSize
	at = l.since
	if !urgent {
		at = l.since.Add(l.b.cfg.Interval)
		if l.b.mu.restUntil.After(at) {
			at = l.b.mu.restUntil
		}
	}
	if l.notBefore.After(at) {
		at = l.notBefore
	}
	return at, true
}
