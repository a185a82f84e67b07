package batcher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Defaults of [Config].
const (
	DefaultInterval       = 10 * time.Millisecond
	DefaultMaxRest        = 100 * time.Millisecond
	DefaultFlushTimeout   = 30 * time.Second
	DefaultSegmentSize    = 1000
	DefaultBatchSize      = 5000
	DefaultPendingLimit   = 200_000
	DefaultPendingBytes   = 512 << 20
	DefaultFlushers       = 2
	DefaultInitialBackoff = 50 * time.Millisecond
	DefaultMaxBackoff     = 5 * time.Second
)

// Config says how a [Batcher] works. Zero fields take their defaults.
type Config struct {
	Interval       time.Duration // how old a write may become before its flush begins
	MaxRest        time.Duration // longest pause between flushes that nobody waits for
	FlushTimeout   time.Duration // of one attempt
	SegmentSize    int           // operations of a segment
	BatchSize      int           // operations of a flush
	PendingLimit   int           // operations in memory at which writers block, until half of it
	PendingBytes   int64         // bytes of them (see [Op]) at which writers block likewise
	Flushers       int           // flushes at the same time, each of other lanes
	InitialBackoff time.Duration // first delay after a failure
	MaxBackoff     time.Duration // longest delay after a failure

	// Permanent says whether an error will come again whenever the flush is repeated. Nil means never.
	Permanent func(error) bool
	// OnRetry is called when a flush failed and will be repeated. It must not block.
	OnRetry func(err error, attempt int, delay time.Duration)
	// OnFlush is called after each attempt at a flush. Nil costs nothing.
	OnFlush func(Flushed)
	// OnBlocked is called when a writer has waited for room in the backlog, in vain if there is an error. Nil costs nothing.
	OnBlocked func(lane any, took time.Duration, err error)
	// OnStop is called when a lane failed because of its data or because the flush said so. It must not block.
	OnStop func(lane any, err error)
}

// Flushed is one attempt at a flush.
type Flushed struct {
	Lanes int
	Ops   int
	Bytes int64
	Took  time.Duration
	Err   error // of the flush as a whole; nil if each of its segments has a result
}

func (cfg Config) withDefaults() Config {
	cfg.Interval = cmp.Or(cfg.Interval, DefaultInterval)
	cfg.MaxRest = cmp.Or(cfg.MaxRest, max(DefaultMaxRest, cfg.Interval))
	cfg.FlushTimeout = cmp.Or(cfg.FlushTimeout, DefaultFlushTimeout)
	cfg.SegmentSize = cmp.Or(cfg.SegmentSize, DefaultSegmentSize)
	cfg.BatchSize = cmp.Or(cfg.BatchSize, DefaultBatchSize)
	cfg.PendingLimit = cmp.Or(cfg.PendingLimit, DefaultPendingLimit)
	cfg.PendingBytes = cmp.Or(cfg.PendingBytes, DefaultPendingBytes)
	cfg.Flushers = cmp.Or(cfg.Flushers, DefaultFlushers)
	cfg.InitialBackoff = cmp.Or(cfg.InitialBackoff, DefaultInitialBackoff)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, DefaultMaxBackoff)
	if cfg.Permanent == nil {
		cfg.Permanent = func(error) bool { return false }
	}
	if cfg.OnRetry == nil {
		cfg.OnRetry = func(error, int, time.Duration) {}
	}
	if cfg.OnStop == nil {
		cfg.OnStop = func(any, error) {}
	}
	return cfg
}

func (cfg Config) validate() error {
	var faults []error
	positive := func(name string, v int64) {
		if v <= 0 {
			faults = append(faults, fmt.Errorf("%s is %d, must be positive", name, v))
		}
	}
	positive("Interval", int64(cfg.Interval))
	positive("FlushTimeout", int64(cfg.FlushTimeout))
	positive("SegmentSize", int64(cfg.SegmentSize))
	positive("BatchSize", int64(cfg.BatchSize))
	positive("PendingLimit", int64(cfg.PendingLimit))
	positive("PendingBytes", cfg.PendingBytes)
	positive("Flushers", int64(cfg.Flushers))
	positive("InitialBackoff", int64(cfg.InitialBackoff))
	if cfg.MaxRest < cfg.Interval {
		faults = append(faults, fmt.Errorf("MaxRest is %v, must not be less than Interval (%v)", cfg.MaxRest, cfg.Interval))
	}
	if cfg.MaxBackoff < cfg.InitialBackoff {
		faults = append(faults, fmt.Errorf("MaxBackoff is %v, must not be less than InitialBackoff (%v)", cfg.MaxBackoff, cfg.InitialBackoff))
	}
	return errors.Join(faults...)
}

// Sentinels to be tested with [errors.Is].
var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("batcher: closed")
	// ErrBacklogFull is returned by [Lane.Reserve] when its context ends while too much is pending.
	ErrBacklogFull = errors.New("batcher: backlog is full")
	// ErrAgain is what a [FlushFunc] wraps in the result of a segment that is to be tried again later.
	ErrAgain = errors.New("batcher: to be flushed again")
)

// RoomError is returned by [Lane.Add] for a group that was not added: reserve what it needs, and add it then.
type RoomError struct{ Need Room }

// Error implements error.
func (e *RoomError) Error() string {
	return fmt.Sprintf("batcher: no room for %d operations of %d bytes", e.Need.Ops, e.Need.Bytes)
}

// UnsavedError is what Close returns when not everything could be saved.
type UnsavedError struct {
	Pending map[string]int // operations by the lane's name
	Cause   error          // why Close gave up
}

// Error implements error.
func (e *UnsavedError) Error() string {
	total := 0
	for _, n := range e.Pending {
		total += n
	}
	return fmt.Sprintf("batcher: %d writes of %d lanes are not saved %v: %v", total, len(e.Pending), e.Pending, e.Cause)
}

// Unwrap returns the cause.
func (e *UnsavedError) Unwrap() error { return e.Cause }

// FlushFunc makes segments durable, each atomically. When err is not nil, the result of
// none is known: all are repeated, or the guilty lane is looked for if the error is permanent. Otherwise each has a result:
// nil if it is durable, one that matches [ErrAgain] if it is to be repeated, and any other makes its lane fail. A nil slice
// means that all went well.
//
// A lane whose owner is found to be gone for good has not failed, since nobody wants what is pending: the function itself
// gives it up with [Lane.Stop], and its result no longer counts if it is not nil.
type FlushFunc[L comparable, K comparable, V any] func(ctx context.Context, segments []Segment[L, K, V]) (results []error, err error)
