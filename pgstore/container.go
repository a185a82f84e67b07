package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.mau.fi/whatsmeow/store"
	waLog "go.mau.fi/whatsmeow/util/log"
	"golang.org/x/time/rate"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

type (
	writeBatcher = batcher.Batcher[*instance, cache.Key, cache.Write[value]]
	lane         = batcher.Lane[*instance, cache.Key, cache.Write[value]]
	segment      = batcher.Segment[*instance, cache.Key, cache.Write[value]]
	op           = batcher.Op[cache.Key, cache.Write[value]]
	view         = cache.View[value]
)

// Container keeps the devices of a database. It is safe for concurrent use.
type Container struct {
	// LIDMap is the mapping between phone numbers and LIDs that all devices share.
	LIDMap *LIDMap

	cfg     Config
	fill    *strings.Replacer // of statements
	pool    *pgxpool.Pool
	ownPool bool
	cache   *cache.Cache[value]
	writes  *writeBatcher

	mu struct {
		sync.Mutex
		instances map[string]*instance // taken by this container
		openings  map[string]*opening  // those that are waited for
		stopped   map[string]error     // why those stopped by themselves that nobody has taken here since
		rewound   map[string]int       // those that Heal is about to take
	}
	synchronous [typeCount]bool // what Config.SynchronousTypes names
	ended       atomic.Bool     // set under mu, read without
	unprepared  atomic.Bool     // prepared statements are of no use here
	merged      atomic.Int64
	refused     atomic.Int64
	waited      atomic.Int64
	healed      atomic.Int64
	replayed    atomic.Int64
	raised      atomic.Int64
	setAside    atomic.Int64
	observers   observers
	process     string // a UUID, under which the database knows this container
	lease       lease
	bundles     *rate.Limiter
	owed        *owed
	spoilt      spoilt
	dataKeys    dataKeys
	claims      atomic.Bool // it takes its share of instances
	watchers    watchers
	hasty       atomic.Bool    // nothing was flushed since a send waited in vain, see waitForNewChain
	ignoreMarks bool           // for tests alone, see markOf
	storeAsPut  bool           // for tests alone: what races is not compared, see reconcile.go
	tasks       sync.WaitGroup // background work, ended by stopTasks
	tasksCtx    context.Context
	stopTasks   context.CancelFunc
	leaseKept   sync.WaitGroup // who keeps the lease, until stopLease
	leaseCtx    context.Context
	stopLease   context.CancelFunc
	readsCtx    context.Context // ends what Shutdown found waiting for the database
	stopReads   context.CancelFunc
	closing     atomic.Bool   // somebody is in Shutdown, or was
	closeDone   chan struct{} // closed at its end
	closeErr    error         // set before
}

var _ store.DeviceContainer = (*Container)(nil)

// New connects to the PostgreSQL database that dsn names, migrates its schema and returns
// a container with default settings. A nil log means no log. Close it after the clients have disconnected.
//
// The error names host and database, never the password.
func New(ctx context.Context, dsn string, log waLog.Logger) (*Container, error) {
	return NewWithConfig(ctx, Config{DSN: dsn, Log: log})
}

// NewWithConfig is New with every setting in the caller's hand. An invalid configuration is an
// error that matches [ErrInvalidInput] and names every fault.
func NewWithConfig(ctx context.Context, cfg Config) (*Container, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Container{cfg: cfg, fill: cfg.filler(), pool: cfg.Pool, closeDone: make(chan struct{}), process: uuid.NewString(), owed: newOwed()}
	c.bundles = rate.NewLimiter(rate.Limit(cfg.HealRate), max(1, int(cfg.HealRate)))
	if cfg.HealRate < 0 {
		c.bundles.SetLimit(rate.Inf)
	}
	c.mu.openings = make(map[string]*opening)
	c.mu.instances, c.mu.stopped, c.mu.rewound = make(map[string]*instance), make(map[string]error), make(map[string]int)
	for _, name := range cfg.SynchronousTypes {
		c.synchronous[typesByName[name]] = true
	}
	c.tasksCtx, c.stopTasks = context.WithCancel(context.Background())
	c.leaseCtx, c.stopLease = context.WithCancel(context.Background())
	c.readsCtx, c.stopReads = context.WithCancel(context.Background())
	if c.pool == nil {
		pool, err := openPool(ctx, cfg.DSN)
		if err != nil {
			return nil, err
		}
		c.pool, c.ownPool = pool, true
	}
	switch c.pool.Config().ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol: // so says who knows of a PgBouncer
		c.unprepared.Store(true)
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec:
	}
	if err := c.start(ctx); err != nil {
		if c.ownPool {
			c.pool.Close()
		}
		return nil, err
	}
	return c, nil
}

func (c *Container) start(ctx context.Context) error {
	if _, err := c.agreed(ctx); err != nil { // before anything is changed
		return err
	}
	if err := c.Upgrade(ctx); err != nil {
		return err
	}
	if err := c.agree(ctx); err != nil {
		return err
	}
	if err := c.checkDataKeys(ctx); err != nil {
		return err
	}
	if err := c.retry(ctx, attemptTimeout, c.renewLease); err != nil {
		return fmt.Errorf("pgstore: asking for a lease: %w", err)
	}
	c.cache = cache.New(cache.Config[value]{
		Residency: func(t cache.Type) cache.Residency { return keyTypes[t].residency },
		Size:      value.size,
		Scope:     macScope,
		Equal:     equal,
		Keep:      keepUnprocessed,
		Budget:    c.cfg.MemoryBudget,
	})
	c.LIDMap = newLIDMap(c)
	var err error
	c.writes, err = batcher.New(batcher.Config{
		Interval:     c.cfg.FlushInterval,
		MaxRest:      c.cfg.MaxRest,
		FlushTimeout: c.cfg.FlushTimeout,
		SegmentSize:  c.segmentSize(),
		BatchSize:    c.cfg.BatchSize,
		PendingLimit: c.cfg.PendingLimit,
		PendingBytes: c.cfg.PendingBytes,
		Permanent:    permanent,
		OnRetry: func(err error, attempt int, delay time.Duration) {
			c.cfg.Logger.Warn("pgstore: flush failed, will be tried again", "attempt", attempt, "delay", delay, "error", err)
			c.observers.retried(Retry{Operation: RetryFlush, Attempt: attempt, Delay: delay, Err: err})
		},
		OnFlush: func(f batcher.Flushed) {
			c.observers.flushed(Flush{Instances: f.Lanes, Keys: f.Ops, Bytes: f.Bytes, Took: f.Took, Err: f.Err})
		},
		OnBlocked: func(blocked any, took time.Duration, err error) {
			if in, ok := blocked.(*instance); ok {
				c.observers.waited(Wait{Reason: WaitBacklog, Instance: in.id, Took: took, Err: err})
			}
		},
		OnStop: func(stopped any, err error) {
			c.cfg.Logger.Error("pgstore: instance stopped", "instance", stopped, "error", err)
			if in, ok := stopped.(*instance); ok {
				go c.stopped(in, err) // the batcher's lock is held here
			}
		},
	}, c.flush)
	if err != nil {
		return err
	}
	c.leaseKept.Go(func() { c.keepLease(c.leaseCtx) })
	c.background(c.keepInformed)
	c.background(c.keepAudit)
	if c.cfg.Witness != nil {
		c.background(c.keepWitness)
	}
	return nil
}

// segmentSize is how many keys of one instance a flush writes at the most, if they are not one group.
func (c *Container) segmentSize() int { return min(DefaultBatchSize/5, c.cfg.BatchSize) }

// openPool opens a pool with a sensible connect timeout and TCP keep-alive where the DSN names none.
func openPool(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("%w: DSN: %w", ErrInvalidInput, err)
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	dialer := &net.Dialer{Timeout: cfg.ConnConfig.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	cfg.ConnConfig.DialFunc = dialer.DialContext
	cfg.MaxConns = max(cfg.MaxConns, 2)
	where := fmt.Sprintf("%s/%s", cfg.ConnConfig.Host, cfg.ConnConfig.Database)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("pgstore: database %s: %w", where, err)
	}
	if err = pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("pgstore: database %s: %w", where, err)
	}
	return pool, nil
}

// connectAlone makes a connection as the pool does, beside it.
func (c *Container) connectAlone(ctx context.Context) (*pgx.Conn, error) {
	pool := c.pool.Config()
	cfg := pool.ConnConfig.Copy()
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, cfg); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// Flush returns when all that was written before the call is durable, LID pairs included, or with the context's error. An instance that
// stopped with something unsaved makes it fail until it is taken again.
func (c *Container) Flush(ctx context.Context) error {
	if c.closed() {
		return ErrClosed
	}
	return errors.Join(c.writes.Flush(ctx), c.LIDMap.flush(ctx))
}

// closeTimeout is how long Close waits for the database.
const closeTimeout = 30 * time.Second

// Close is Shutdown with a limit of 30 seconds.
func (c *Container) Close() error {
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return c.Shutdown(ctx)
}

// Shutdown makes every pending write durable, marks the instances as cleanly left and closes the pool
// if the container opened it. Call it after the clients have disconnected. It may be called more than once. When
// the context ends first, the error is a [*batcher.UnsavedError] that says how many writes of which instance are lost.
// From then on every store fails with [ErrClosed], and so does a call that still waits for the database.
func (c *Container) Shutdown(ctx context.Context) error {
	if c.closing.CompareAndSwap(false, true) {
		c.closeErr = c.shutdown(ctx)
		close(c.closeDone)
		return c.closeErr
	}
	select {
	case <-c.closeDone:
		return c.closeErr
	case <-ctx.Done():
		return fmt.Errorf("%w: another call of Shutdown has not ended: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func (c *Container) shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.ended.Store(true)
	instances := c.takenLocked() // now: one that stops from here on is still to be looked after
	c.mu.Unlock()
	c.leave(ctx)
	c.stopTasks()
	c.tasks.Wait()
	for _, in := range instances {
		in.dropOpenGroups()
	}
	err := errors.Join(c.writes.Close(ctx), c.markClean(ctx, instances), c.tellWitness(ctx, instances), c.LIDMap.close(ctx))
	c.stopLease() // not before: what is not saved is not to be taken from us meanwhile
	c.leaseKept.Wait()
	c.endLease(ctx)
	for _, in := range instances {
		in.stop(ErrClosed)
	}
	c.stopReads()
	if c.ownPool {
		closed := make(chan struct{})
		go func() { // it waits for every connection, and one that hangs takes its time
			c.pool.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-ctx.Done():
		}
	}
	return err
}

// taken lists the instances that this container has.
func (c *Container) taken() []*instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takenLocked()
}

func (c *Container) takenLocked() []*instance { return slices.Collect(maps.Values(c.mu.instances)) }

// background runs fn in a goroutine whose context Shutdown ends, and which Shutdown waits for.
func (c *Container) background(fn func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed() {
		c.tasks.Go(func() { fn(c.tasksCtx) })
	}
}

// every calls fn again and again, first after one interval, until the context ends.
func every(ctx context.Context, interval time.Duration, fn func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fn()
		}
	}
}

// Stats is a snapshot of a container's counters.
type Stats struct {
	Cache   cache.Stats
	Batcher batcher.Stats
	// Instances is how many this process has. Of those that stopped by themselves, Batcher.Stopped counts what nobody has taken here again.
	Instances int
	Merged    int64 // sessions and sender keys that two changed at once, and that were merged
	Refused   int64 // sends refused with ErrMessageKeyUsed
	Healed    int64 // instances that were taken from a database that had gone back, or may have
	// Replayed counts how often the database went back, or may have, under an instance that was taken: it was taken anew, and what is in memory
	// was written again.
	Replayed int64
	Waited   int64 // Puts of sessions and sender keys that waited for their flush: sends, and new sender keys of others
	// Raised counts how often a row was written that reserves more of a chain which the database knew ([Config].Reserve).
	Raised     int64
	SetAside   int64 // rows that could not be read, and were put where a person can look at them
	Lapses     int64 // of the lease
	PendingLID int   // LID pairs that are not durable

	// What the configuration says of the limits that these numbers are to be compared with.
	PendingLimit int
	PendingBytes int64
	MemoryBudget int64
}

// Stats returns the counters as they are now.
func (c *Container) Stats() Stats {
	return Stats{
		Cache: c.cache.Stats(), Batcher: c.writes.Stats(), Instances: len(c.taken()),
		Merged: c.merged.Load(), Refused: c.refused.Load(), Waited: c.waited.Load(), Healed: c.healed.Load(), Replayed: c.replayed.Load(),
		Raised: c.raised.Load(), SetAside: c.setAside.Load(), Lapses: int64(c.lease.lapsed()), PendingLID: c.LIDMap.pending(),
		PendingLimit: c.cfg.PendingLimit, PendingBytes: c.cfg.PendingBytes, MemoryBudget: c.cfg.MemoryBudget,
	}
}

func (c *Container) closed() bool {
	return c.ended.Load()
}

// instance returns the instance called id, taken and loaded. It is pgx.ErrNoRows if there is none.
func (c *Container) instance(ctx context.Context, id string) (*instance, error) {
	for {
		in := c.got(id)
		if c.closed() {
			return nil, ErrClosed
		}
		if in != nil && in.usable() {
			return in, nil
		}
		if in != nil && in.releasing.Load() && in.lane.Err() == nil { // and has something to save
			if err := c.release(ctx, in); err != nil {
				return nil, err
			}
			continue
		}
		if in != nil {
			c.forget(in)
		}
		if ctx.Err() != nil { // also when one round after the other opens nothing
			return nil, fmt.Errorf("%w: opening instance: %w", ErrUnavailable, context.Cause(ctx))
		}
		opened, err := c.open(ctx, id)
		if errors.Is(err, errMoved) || errors.Is(err, errUnwanted) { // since it was taken, or by those who came before
			continue
		}
		if err != nil {
			return nil, err
		}
		if opened == nil {
			continue
		}
		if opened.usable() {
			return opened, nil
		}
		if errors.Is(opened.failure(), ErrDeviceDeleted) {
			return nil, ErrDeviceDeleted
		}
	}
}

// forget lets go of an instance that has failed. A call that is still reading it gets the failure.
func (c *Container) forget(in *instance) {
	c.mu.Lock()
	if c.mu.instances[in.id] == in {
		delete(c.mu.instances, in.id)
	}
	c.mu.Unlock()
	c.dataKeys.forget(in.id)
	if in.keys != nil {
		c.cache.Forget(in.keys, in.failure())
	}
}
