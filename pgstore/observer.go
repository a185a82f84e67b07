package pgstore

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

// Observer is told of what has a length or a kind: flushes, waits, reads of the database, what is tried again, what fails. What can only be counted
// is in [Stats], which costs nothing until it is read. Package metrics is one; a function that is nil is not called.
//
// A function is called by whoever flushes, waits, reads or fails, some with locks held, and by several at once. So it must return at once, must not
// call the container, and must be safe for concurrent use. None is called for what is answered from memory: a read of what is held, a write or a send that waits
// for nothing. Nothing of what they are told is key material. An error's text is for logs, its type for numbers ([ErrorType]).
type Observer struct {
	Flushed func(Flush)   // after each attempt at a flush
	Retried func(Retry)   // something failed, and is about to be tried again
	Waited  func(Wait)    // a call has waited for the database or for another call
	Fetched func(Fetch)   // keys were read from the database
	Stopped func(Stop)    // an instance has stopped by itself; see also [Config].OnStop
	Failed  func(Failure) // a call of a store fails
}

// Flush is one attempt to make writes durable.
type Flush struct {
	Instances int
	Keys      int
	Bytes     int64 // what they counted for while they were pending
	Took      time.Duration
	Err       error // nil if the database has answered, though some of the instances may have to try again, or stop
}

// Retry is a failure after which something is tried again.
type Retry struct {
	Operation RetryOperation
	// Class is the first two characters of the server's SQLSTATE, "connection" where it said nothing, "timeout" if it did not answer in time, or "moved" if the rows
	// were those of another moment and are looked at again.
	Class   string
	Attempt int // that failed, from 1
	Delay   time.Duration
	Err     error
}

// RetryOperation says what is tried again.
type RetryOperation string

// The operations.
const (
	RetryFlush     RetryOperation = "flush"
	RetryStatement RetryOperation = "statement" // all that is no flush
)

// WaitReason says what a call has waited for.
type WaitReason string

// The reasons.
const (
	WaitDurable         WaitReason = "durable"         // the commit of credentials, pre-keys, a deletion, or what [Config].SynchronousTypes and Sends name
	WaitReserve         WaitReason = "reserve"         // the commit of a send that had used up what its chain has reserved ([Config].Reserve)
	WaitNewChain        WaitReason = "new_chain"       // the first commit of a new chain ([Config].NewChainWait)
	WaitOnce            WaitReason = "once"            // the commit of what the server sends only once ([Config].OutageWait)
	WaitLIDPair         WaitReason = "lid_pair"        // the commit of a new LID pair (likewise)
	WaitAcknowledgement WaitReason = "acknowledgement" // with [Config].DurableAcks, the commit of all that came before
	WaitBacklog         WaitReason = "backlog"         // room below [Config].PendingLimit and PendingBytes
	WaitTurn            WaitReason = "turn"            // another send that holds the same session, in memory
	WaitBundles         WaitReason = "bundles"         // [Config].HealRate, after a failover
	WaitOwner           WaitReason = "owner"           // an instance's owner to let go of it
)

// WaitReasons lists all of them.
func WaitReasons() []WaitReason {
	return []WaitReason{
		WaitDurable, WaitReserve, WaitNewChain, WaitOnce, WaitLIDPair, WaitAcknowledgement, WaitBacklog, WaitTurn, WaitBundles, WaitOwner,
	}
}

// Wait is a wait that is over.
type Wait struct {
	Reason   WaitReason
	Instance string // empty for a LID pair
	Took     time.Duration
	Err      error // why it was in vain, nil if it was not
}

// FetchKind says why keys were read from the database.
type FetchKind string

// The kinds.
const (
	FetchInstance FetchKind = "instance" // an instance was opened
	FetchKeys     FetchKind = "keys"     // what a call wanted was not in memory
)

// Fetch is a read of keys, all its attempts together.
type Fetch struct {
	Kind     FetchKind
	Instance string
	Keys     int // that were found
	Took     time.Duration
	Err      error
}

// Failure is a call of a store that fails.
type Failure struct {
	Instance string // empty for the LID map
	Err      error
}

// observers are those of a container. They are only ever added.
type observers struct{ list atomic.Pointer[[]*Observer] }

// Observe adds an observer, which is told of everything from now on.
func (c *Container) Observe(o Observer) {
	for {
		old := c.observers.list.Load()
		var all []*Observer
		if old != nil {
			all = slices.Clone(*old)
		}
		all = append(all, &o)
		if c.observers.list.CompareAndSwap(old, &all) {
			return
		}
	}
}

// none says whether nobody observes, so that nothing need be measured.
func (o *observers) none() bool { return o.list.Load() == nil }

// each tells all observers. What tell captures stays on the stack.
func (o *observers) each(tell func(*Observer)) {
	if all := o.list.Load(); all != nil {
		for _, observer := range *all {
			tell(observer)
		}
	}
}

func (o *observers) flushed(f Flush) {
	o.each(func(o *Observer) {
		if o.Flushed != nil {
			o.Flushed(f)
		}
	})
}

func (o *observers) retried(r Retry) {
	r.Class = classOf(r.Err)
	o.each(func(o *Observer) {
		if o.Retried != nil {
			o.Retried(r)
		}
	})
}

func (o *observers) waited(w Wait) {
	o.each(func(o *Observer) {
		if o.Waited != nil {
			o.Waited(w)
		}
	})
}

func (o *observers) fetched(f Fetch) {
	o.each(func(o *Observer) {
		if o.Fetched != nil {
			o.Fetched(f)
		}
	})
}

func (o *observers) stopped(s Stop) {
	o.each(func(o *Observer) {
		if o.Stopped != nil {
			o.Stopped(s)
		}
	})
}

// failed tells of an error of a call, unless it is one that the client expects.
func (o *observers) failed(instance string, err error) {
	if o.none() || ErrorType(err) == "" {
		return
	}
	o.each(func(o *Observer) {
		if o.Failed != nil {
			o.Failed(Failure{Instance: instance, Err: err})
		}
	})
}

// waiting is a wait that has begun, the zero value if nobody observes.
type waiting struct {
	o     *observers
	began time.Time
	Wait
}

// waits begins a wait.
func (c *Container) waits(reason WaitReason, instance string) waiting {
	if c.observers.none() {
		return waiting{}
	}
	return waiting{&c.observers, time.Now(), Wait{Reason: reason, Instance: instance}}
}

// waits begins a wait for a commit, unless that has come already.
func (in *instance) waits(reason WaitReason, ticket batcher.Ticket) waiting {
	select {
	case <-ticket.Done():
		return waiting{}
	default:
	}
	if ticket.Done() == nil {
		return waiting{}
	}
	return in.c.waits(reason, in.id)
}

// over ends it.
func (w waiting) over(err error) {
	if w.o != nil {
		w.Took, w.Err = time.Since(w.began), err
		w.o.waited(w.Wait)
	}
}

// errorTypes names what a call may fail with. The first that fits counts.
var errorTypes = []struct {
	err  error
	name string
}{
	{sql.ErrNoRows, ""}, // what whatsmeow expects for some of what is absent
	{errBuffered, ""},
	{errMoved, ""}, // it is read again
	{ErrMessageKeyUsed, "message_key_used"},
	{ErrOwnershipLost, "ownership_lost"},
	{ErrDatabaseRewound, "rewound"},
	{ErrDeviceDeleted, "deleted"},
	{ErrRefused, "refused"},
	{ErrCorrupt, "corrupt"},
	{ErrDataKey, "data_key"},
	{ErrNotEncrypted, "not_encrypted"},
	{ErrClosed, "closed"},
	{ErrReleased, "released"},
	{ErrLeased, "leased"},
	{ErrUnavailable, "unavailable"},
	{ErrDeviceConflict, "conflict"},
	{ErrNoInstance, "no_instance"},
	{ErrAlreadyTaken, "already_taken"},
	{ErrPreKeysExhausted, "pre_keys_exhausted"},
	{ErrInvalidInput, "invalid_input"},
}

// ErrorType is a short name for an error of this package, made for a metric's label: that of the sentinel that it matches ("ownership_lost" for
// [ErrOwnershipLost]), or "other". It is empty for nil and for what is no failure, since whatsmeow expects it.
func ErrorType(err error) string {
	if err == nil {
		return ""
	}
	for _, t := range errorTypes {
		if errors.Is(err, t.err) {
			return t.name
		}
	}
	return "other"
}

// ErrorTypes lists all names but the empty one.
func ErrorTypes() (names []string) {
	for _, t := range errorTypes {
		if t.name != "" {
			names = append(names, t.name)
		}
	}
	return append(names, "other")
}

// classOf is a retry's class.
func classOf(err error) string {
	var said *databaseError
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && len(pgErr.Code) >= 2:
		return pgErr.Code[:2]
	case errors.As(err, &said) && len(said.code) >= 2:
		return said.code[:2]
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, errAgain), errors.Is(err, errReplayed), errors.Is(err, errMoved):
		return "moved"
	}
	return "connection"
}
