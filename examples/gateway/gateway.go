package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/store"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/health"
)

// connector is client.ConnectContext, except in the demo.
type connector func(*whatsmeow.Client, context.Context) error

// deviceStore is what the gateway needs of the store. It is an interface so that a test can measure the same gateway on another one.
type deviceStore interface {
	Watch(ctx context.Context) (<-chan pgstore.Event, error)
	Claim(ctx context.Context, n int) ([]*store.Device, error)
	Instance(ctx context.Context, id string) (*store.Device, error)
	Release(ctx context.Context, id string) error
	Leave(ctx context.Context) error
	health.Source
	Close() error
}

// gateway is a process. Which instances are its own, the store decides: it advises what to claim and to release, and says what was lost.
// An instance that is not linked yet has no row in the store; the directory notes which process shows its codes.
type gateway struct {
	cfg       config
	log       *slog.Logger
	store     deviceStore
	dir       *directory
	hooks     *webhooks
	connect   connector
	metrics   *metrics
	limit     *rate.Limiter // of requests
	forwarder *http.Transport
	answers   sync.Map      // sends under way, by idempotency key
	uploads   chan struct{} // attachments in memory

	ready      atomic.Bool // it has joined those that share the instances, and does not leave them yet
	probed     probed
	streams    context.Context
	endStreams context.CancelFunc

	mu        sync.Mutex
	instances map[string]*instance // those whose client is here
	unsaved   statuses             // of those that have left, until the directory is told
	over      bool                 // nothing begins any more

	taking  sync.Mutex // held while instances are taken
	moves   int        // instances that are being moved away, and must not be claimed here; guarded by taking
	dialing chan struct{}
	tasks   sync.WaitGroup
}

// burst is how many requests may come at once, at a rate.
func burst(rate float64) int { return int(rate*5) + 1 }

// connectingAtOnce is how many clients log in at the same time, when a process takes over hundreds.
const connectingAtOnce = 32

func newGateway(cfg config, s deviceStore, dir *directory, connect connector, log *slog.Logger) (*gateway, error) {
	g := &gateway{
		cfg: cfg, log: log, store: s, dir: dir, connect: connect,
		forwarder: newForwarder(), limit: rate.NewLimiter(rate.Limit(cfg.rate), burst(cfg.rate)),
		instances: make(map[string]*instance), dialing: make(chan struct{}, connectingAtOnce), unsaved: make(statuses),
		uploads: make(chan struct{}, max(cfg.maxUploads, 1)),
	}
	if g.connect == nil {
		g.connect = (*whatsmeow.Client).ConnectContext
	}
	g.probed.g = g
	g.streams, g.endStreams = context.WithCancel(context.Background())
	g.metrics = newMetrics(g, prometheus.NewRegistry())
	var err error
	g.hooks, err = newWebhooks(cfg, dir.pool, g.metrics, log)
	return g, err
}

// run takes part until the context ends, and hands everything over.
func (g *gateway) run(ctx context.Context) (err error) {
	if err = g.hooks.start(ctx); err != nil {
		return errors.Join(err, g.store.Close())
	}
	watching, unwatch := context.WithCancel(ctx)
	changes, err := g.store.Watch(watching)
	if err == nil {
		g.ready.Store(true)
		g.follow(ctx, changes)
	}
	unwatch()
	if ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, g.handOver(context.WithoutCancel(ctx)))
}

// follow does what the store advises, and saves what the directory tells of the instances. What cannot be done now is advised again.
func (g *gateway) follow(ctx context.Context, changes <-chan pgstore.Event) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sweep := time.NewTicker(time.Hour)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.save(ctx)
			g.leaveAgain(ctx)
		case <-sweep.C:
			if err := g.dir.sweep(ctx); err != nil {
				g.log.Warn("old answers not swept", "error", err)
			}
		case change, ok := <-changes:
			if !ok {
				return
			}
			switch change.Kind {
			case pgstore.Claimable:
				g.claim(ctx, change.Count)
			case pgstore.Surplus: // those that are here for longest, so that what was moved here by hand stays
				for _, in := range g.longestHere(change.Count) {
					g.later(func() { _ = g.leave(ctx, in, in.letGo) }) // it waits for what is being sent, which keeps no other event waiting
				}
			case pgstore.Stopped: // most likely another process has it, because this one seemed to be dead
				if in := g.get(change.Instance); in != nil && !pgstore.Owned(in.client.Store) { // else it was taken here again before we were told
					g.log.Warn("instance has stopped", "instance", in.id, "error", change.Err)
					in.leaving.Store(true)
					g.later(func() { _ = g.leave(ctx, in, in.letGoStopped) })
				}
			}
		}
	}
}

// claim takes what nobody has.
func (g *gateway) claim(ctx context.Context, n int) {
	g.taking.Lock()
	defer g.taking.Unlock()
	if g.moves > 0 {
		return // what is on its way to another process looks as if nobody had it
	}
	devices, err := g.store.Claim(ctx, n)
	if err != nil && ctx.Err() == nil {
		g.log.Error("claiming", "error", err)
	}
	g.runAll(ctx, devices...)
}

// takeWait is how long a process that lives may keep an instance that is taken. Meanwhile nothing else is taken here.
const takeWait = 5 * time.Second

// device takes an instance and returns its device, or a new one.
func (g *gateway) device(ctx context.Context, id string) (*store.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, takeWait)
	defer cancel()
	device, err := g.store.Instance(ctx, id)
	if errors.Is(err, pgstore.ErrLeased) {
		err = errElsewhere
	}
	return device, err
}

// take takes an instance that was moved here.
func (g *gateway) take(ctx context.Context, id string) error {
	g.taking.Lock()
	defer g.taking.Unlock()
	if !g.ready.Load() {
		return errElsewhere
	}
	if in := g.get(id); in != nil && in.leaving.Load() {
		return errElsewhere // we have not let go of it yet
	}
	device, err := g.device(ctx, id)
	if err != nil {
		return err
	} else if device.ID == nil {
		return errNotPaired
	}
	g.runAll(ctx, device)
	return nil
}

// runAll runs the clients of devices that were taken. They connect in the background.
func (g *gateway) runAll(ctx context.Context, devices ...*store.Device) {
	var ids []string
	var taken []*instance
	for _, device := range devices {
		in := newInstance(g, pgstore.InstanceID(device), device)
		before, ok := g.swap(in)
		if !ok {
			return // everything is being handed over, and the store lets go of these as well
		}
		ids, taken = append(ids, in.id), append(taken, in)
		if before != nil {
			g.later(before.end) // it was ours before, and we were not told yet that it was lost
		}
		g.later(in.dial)
	}
	if len(ids) == 0 {
		return
	}
	if err := g.dir.took(ctx, ids); err != nil {
		g.log.Warn("directory not told of instances that were taken", "error", err)
		for _, in := range taken {
			g.later(in.tellTaken)
		}
	}
	for _, in := range taken {
		in.tellAgain()
	}
}

// letGo does to the keys of an instance that ends here what is to be done: another process may have them, or they are deleted.
type letGo func(ctx context.Context) error

// leaveTimeout is how long one attempt at that may take. It goes on when who has asked for it goes away.
const leaveTimeout = 10 * time.Second

// leave ends an instance here. That is the only way in which one does, except that handOver ends all of them:
//
//  1. Its client ends, when what is being sent has been sent, and the directory is told what it does not know yet.
//  2. It is let go of.
//  3. Only then it is forgotten. Until that has worked it is tried again at every tick: to the store it is still ours, so no other process takes it.
func (g *gateway) leave(ctx context.Context, in *instance, how letGo) error {
	in.leaving.Store(true)
	in.end()
	g.mu.Lock()
	if in.how == nil {
		in.how = how
	}
	g.keep(in)
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	g.save(ctx) // before somebody else notes what he does with it
	return g.tryToLeave(ctx, in)
}

// tryToLeave is one attempt of those; there is one at a time.
func (g *gateway) tryToLeave(ctx context.Context, in *instance) error {
	in.trying.Lock()
	defer in.trying.Unlock()
	if g.get(in.id) != in {
		return nil // it has left, or was taken anew
	}
	in.owed.Store(false)
	err := in.how(ctx)
	switch {
	case gone(err): // another process has it already: there is nothing to let go of, and what is to be deleted is that one's
		err = errElsewhere
	case errors.Is(err, store.ErrDeviceDeleted):
		err = nil
	case err != nil:
		in.owed.Store(true)
		g.log.Warn("instance has not left yet", "instance", in.id, "error", err)
		return err
	}
	g.forget(in)
	return err
}

// leaveAgain tries again where it has not worked.
func (g *gateway) leaveAgain(ctx context.Context) {
	for _, in := range g.all() {
		if in.owed.CompareAndSwap(true, false) {
			g.later(func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
				defer cancel()
				_ = g.tryToLeave(ctx, in)
			})
		}
	}
}

// move hands an instance to a process that the user has chosen, or to the one that has least. The new owner takes it as soon as it was let
// go of here; until then nothing is claimed here, since to the store it would be as good as any that nobody has.
func (g *gateway) move(ctx context.Context, in *instance, to string) error {
	processes, err := g.dir.processes(ctx)
	if err != nil {
		return err
	}
	var target *process
	for i, p := range processes {
		if !p.Alive || p.Address == g.cfg.advertise || to != "" && to != p.Name && to != p.Address {
			continue
		}
		if target == nil || p.Instances < target.Instances {
			target = &processes[i]
		}
	}
	if target == nil {
		return errNoTarget
	}
	g.holdClaims(1)
	defer g.holdClaims(-1)
	in.set("moving", "to "+target.Name)
	if err = g.leave(ctx, in, in.letGo); errors.Is(err, errElsewhere) {
		return err
	} else if err != nil {
		return errNotMoved.because("it could not be let go of yet; that is tried again")
	}
	return g.askToTake(ctx, target.Address, in.id)
}

func (g *gateway) holdClaims(n int) {
	g.taking.Lock()
	defer g.taking.Unlock()
	g.moves += n
}

// releasingAtOnce is how many instances are let go of at the same time by a process that ends, while others still send.
const releasingAtOnce = 16

// handOver ends all clients and closes the store. Sends that are under way come to their end first, those that come later wait for the new owner.
//
//  1. The other processes are told that they may have all instances.
//  2. Each client ends when what it sends has been sent. Until the last one has ended, its instance is let go of by itself: nobody waits for the slowest send of all.
//  3. Closing the store lets go of all others at once.
func (g *gateway) handOver(ctx context.Context) error {
	g.ready.Store(false)
	began := time.Now()
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	all := g.all()
	g.endAll(ctx, all)
	g.save(ctx)
	err := g.store.Close()
	if errors.Is(err, pgstore.ErrOwnershipLost) { // what was not saved was not acknowledged either: its new owner has got it again
		g.log.Warn("closing", "error", err)
		err = nil
	}
	for _, in := range all {
		g.forget(in)
	}
	g.tasks.Wait()
	g.log.Info("instances handed over", "count", len(all), "took", time.Since(began).Round(time.Millisecond))
	return err
}

// endAll ends all clients, and lets go of the instances of those that have ended while others still send.
func (g *gateway) endAll(ctx context.Context, all []*instance) {
	ended := make(chan *instance, len(all))
	for _, in := range all {
		go func() {
			in.end()
			ended <- in
		}()
	}
	telling, cancel := context.WithTimeout(ctx, leaveTimeout)
	if err := g.store.Leave(telling); err != nil {
		g.log.Warn("leaving not told", "error", err)
	}
	cancel()
	var releasing errgroup.Group
	releasing.SetLimit(releasingAtOnce)
	for left := len(all); left > 0; {
		some := []*instance{<-ended}
		for len(ended) > 0 {
			some = append(some, <-ended)
		}
		if left -= len(some); left == 0 {
			break // the store lets go of these at once
		}
		g.save(ctx) // before somebody else notes what he does with them
		for _, in := range some {
			releasing.Go(func() error {
				ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
				defer cancel()
				if err := g.store.Release(ctx, in.id); err != nil {
					g.log.Warn("instance has not left yet", "instance", in.id, "error", err)
				}
				return nil // the store does it when it is closed
			})
		}
	}
	_ = releasing.Wait()
}

// save notes in the directory what has changed, in one statement for all instances.
func (g *gateway) save(ctx context.Context) {
	g.mu.Lock()
	for _, in := range g.instances {
		g.keep(in)
	}
	changed := g.unsaved
	g.unsaved = make(statuses)
	g.mu.Unlock()
	if len(changed) == 0 {
		return
	}
	if err := g.dir.save(ctx, changed); err != nil {
		if ctx.Err() == nil {
			g.log.Warn("states not saved", "error", err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for id, s := range g.unsaved {
			changed.add(id, s)
		}
		g.unsaved = changed
	}
}

func (g *gateway) get(id string) *instance {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.instances[id]
}

// leaves says whether everything is being handed over.
func (g *gateway) leaves() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.over
}

func (g *gateway) all() []*instance {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.instances))
}

// longestHere picks n instances that are linked and are to leave, with those that leave already: they count until they are let go of.
func (g *gateway) longestHere(n int) []*instance {
	var linked []*instance
	for _, in := range g.all() {
		if in.leaving.Load() {
			n--
		} else if in.linked.Load() {
			linked = append(linked, in)
		}
	}
	slices.SortFunc(linked, func(a, b *instance) int { return a.since.Compare(b.since) })
	linked = linked[:max(0, min(n, len(linked)))]
	for _, in := range linked {
		in.leaving.Store(true)
	}
	return linked
}

// swap puts an instance in its place and returns the one that was there. It is not ok when everything is being handed over.
func (g *gateway) swap(in *instance) (before *instance, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return nil, false
	}
	before, g.instances[in.id] = g.instances[in.id], in
	if before != nil {
		g.keep(before)
	}
	return before, true
}

// forget takes an instance away that has ended, and keeps what it has not told the directory yet.
func (g *gateway) forget(in *instance) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keep(in)
	if g.instances[in.id] == in {
		delete(g.instances, in.id)
	}
}

// keep keeps what the directory has not been told of an instance. Must be called with mu held.
func (g *gateway) keep(in *instance) {
	if s, ok := in.changes(); ok {
		g.unsaved.add(in.id, s)
	}
}

// later runs something that nobody waits for; but the end of the process does.
func (g *gateway) later(do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.tasks.Go(do)
	}
}
