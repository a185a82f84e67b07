package pgstore

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// EventKind says what an [Event] tells.
type EventKind int

const (
	// Claimable says that Count instances may be claimed.
	Claimable EventKind = iota
	// Surplus says that this process has Count instances more than its share: release as many, and others claim them.
	Surplus
	// Stopped says that Instance has stopped by itself, with Err; see [Stop]. It may have been taken here anew since: ask [Owned] of its device.
	Stopped
)

// Event is what [Container.Watch] tells.
type Event struct {
	Kind     EventKind
	Count    int
	Instance string
	Err      error
}

const (
	watchInterval = time.Second        // how often a watch looks, whether it was told of anything or not
	watchLate     = time.Millisecond   // how much later than a lease expires it looks
	lookLimit     = 10 * watchInterval // how long it waits for the database, so that what it was told of meanwhile is not kept back
	countInterval = 30 * watchInterval // how often it counts what everybody has, although nothing seems to have changed
)

// watchers are the calls of Watch that have not ended.
type watchers struct {
	mu   sync.Mutex
	list []*watcher
}

// watcher is one of them, with what it was told of and has not passed on.
type watcher struct {
	wake chan struct{} // capacity 1
	told []Event       // guarded by the watchers' mu
}

func (ws *watchers) add() *watcher {
	w := &watcher{wake: make(chan struct{}, 1)}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.list = append(ws.list, w)
	return w
}

func (ws *watchers) remove(w *watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.list = slices.DeleteFunc(ws.list, func(o *watcher) bool { return o == w })
}

// tell tells all watchers of an event. Nobody waits for them.
func (ws *watchers) tell(e Event) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.list {
		w.told = append(w.told, e)
		w.nudge()
	}
}

func (ws *watchers) take(w *watcher) []Event {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	told := w.told
	w.told = nil
	return told
}

func (w *watcher) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch makes this process one of those that share the instances, and tells what it should do: claim, release, or disconnect a client whose instance has
// stopped. It looks once a second, when a lease expires, and at once when the database says that somebody has let go (LISTEN on a connection of its own; where PgBouncer
// drops that, looking is enough). What is not dealt with is told again. The channel is closed when the context ends or the container is closed; read it until then.
func (c *Container) Watch(ctx context.Context) (<-chan Event, error) {
	if err := c.join(ctx); err != nil {
		return nil, err
	}
	events := make(chan Event)
	w := c.watchers.add()
	c.background(func(closing context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(closing, cancel)()
		defer close(events)
		defer c.watchers.remove(w)
		var listening sync.WaitGroup
		defer listening.Wait()
		listening.Go(func() { c.listen(ctx, w.nudge) })
		c.watch(ctx, w, events)
	})
	return events, nil
}

// watch tells what it was told of, and looks:
//
//  1. Ask for the situation, which costs no more where there are many instances.
//  2. Ask for the share, which counts them, only if the situation has changed, if there was, or is, something to do the last time, or if the last
//     time is long ago: what was paired or deleted meanwhile may have moved the shares.
//  3. Rest ten times as long as that took, since everybody looks at once when many instances are let go of, one after the other.
//  4. Look again in a second, and at once when the database says that somebody has let go, or when a lease expires.
func (c *Container) watch(ctx context.Context, w *watcher, events chan<- Event) {
	next := time.NewTimer(0)
	defer next.Stop()
	var before situation // when there was nothing to do
	var counted time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-next.C:
		}
		if !pass(ctx, events, c.watchers.take(w)) {
			return
		}
		began := time.Now()
		looking, cancel := context.WithTimeout(ctx, lookLimit)
		s, err := c.situation(looking)
		var todo []Event
		if err == nil && (!s.same(before) || c.owed.count() > 0 || time.Since(counted) >= countInterval) {
			before = situation{}
			if todo, err = c.todo(looking); err == nil && len(todo) == 0 {
				before, counted = s, time.Now()
			}
		}
		cancel()
		took := time.Since(began)
		if !pass(ctx, events, todo) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(watchInterval, 10*took)):
		}
		pause := watchInterval
		if s.expires > 0 {
			pause = min(pause, s.expires-time.Since(began)+watchLate)
		}
		next.Reset(pause)
	}
}

// pass passes events on, and reports whether that was possible.
func pass(ctx context.Context, to chan<- Event, events []Event) bool {
	for _, e := range events {
		select {
		case to <- e:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// todo is what is to be claimed or released.
func (c *Container) todo(ctx context.Context) (todo []Event, err error) {
	s, err := c.share(ctx)
	if err != nil {
		return nil, err
	}
	if n := s.claimable() + c.owed.count(); n > 0 {
		todo = append(todo, Event{Kind: Claimable, Count: n})
	}
	if n := s.surplus(); n > 0 {
		todo = append(todo, Event{Kind: Surplus, Count: n})
	}
	return todo, nil
}

// channel is on which the database tells that instances were let go of.
func (c *Container) channel() string { return c.cfg.Schema + "_instances" }

// listen calls heard for every notification, until the context ends. A connection that breaks is made anew.
func (c *Container) listen(ctx context.Context, heard func()) {
	for ctx.Err() == nil {
		if err := c.listenOnce(ctx, heard); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Debug("pgstore: not listening", "error", withoutRows(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(watchInterval):
		}
	}
}

func (c *Container) listenOnce(ctx context.Context, heard func()) error {
	conn, err := c.connectAlone(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err = conn.Exec(ctx, "LISTEN "+pgx.Identifier{c.channel()}.Sanitize(), pgx.QueryExecModeExec); err != nil {
		return err
	}
	for {
		if _, err = conn.WaitForNotification(ctx); err != nil {
			return err
		}
		heard()
	}
}
