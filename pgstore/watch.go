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
	// Stopped says that Instance has stopped by itself, with Err; see [Stop].
	Stopped
)

// Event is what [Container.Watch] tells.
type Event struct {
	Kind     EventKind
	Count    int
	Instance string
	Err      error
}

// watchInterval is how often a watch looks, whether it was told of anything or not.
const watchInterval = time.Second

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
// stopped. It looks once a second, and at once when the database says that somebody has let go (LISTEN on a connection of its own; where PgBouncer
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

func (c *Container) watch(ctx context.Context, w *watcher, events chan<- Event) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		now := c.watchers.take(w)
		if s, err := c.share(ctx); err == nil {
			if n := s.claimable(); n > 0 {
				now = append(now, Event{Kind: Claimable, Count: n})
			}
			if n := s.surplus(); n > 0 {
				now = append(now, Event{Kind: Surplus, Count: n})
			}
		}
		for _, e := range now {
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-tick.C:
		}
	}
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
	pool := c.pool.Config()
	cfg := pool.ConnConfig.Copy()
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, cfg); err != nil {
			return err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
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
