package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

// instance is one taken instance: its keys in memory, its lane to the database and its fence.
type instance struct {
	c    *Container
	id   string
	keys *cache.Instance[value]
	lane *lane

	// The fence: what a flush must find in the instances table. Flushes of one lane never overlap.
	fence struct {
		sync.Mutex
		epoch, seq int64
		timeline   string
		claim      int64 // the epoch under which this process takes it anew, if it is about to (replay.go)
		told       Mark  // what the witness knows
	}
	stepThrough, abandonThrough atomic.Int64 // see markOf
	era                         atomic.Int64 // how often all sending chains in memory were given up
	lapses                      int          // of the lease, when the instance was taken
	releasing                   atomic.Bool
	handed                      bool                    // somebody got it (opening.go); guarded by the container's mu
	ring                        atomic.Pointer[keyring] // nil without encryption
	rekeying                    chan struct{}           // held by who encrypts its rows anew (reencrypt.go)

	preKeys    sync.Mutex  // held while pre-keys are made
	unbuffered atomic.Bool // the warning of warnUnbuffered was given
	transacted atomic.Bool // the client decrypts in transactions
	hasty      atomic.Bool // nothing of it was flushed since a send waited in vain, see waitForNewChain

	mu struct {
		sync.Mutex
		open      map[*transaction]struct{}
		groups    map[string]*cache.Overlay[value] // open app-state groups by collection
		versions  map[string]bool                  // collections whose version was read, and not dropped since
		migrated  map[string]string                // PN user → LID user, escaped; nothing is stored for the PN since
		readers   readers                          // who may put what it has read
		handedOut []uint32                         // ids of the last answer of GetOrGenPreKeys
		pruned    [typeCount]time.Time             // when events were last looked through for old ones
	}
}

// String names the instance in logs and errors.
func (in *instance) String() string { return in.id }

func (in *instance) epoch() int64 {
	in.fence.Lock()
	defer in.fence.Unlock()
	return in.fence.epoch
}

// takenFrom says whether a row's epoch is that of a later take, and not of one by which this process is taking the instance anew.
func (in *instance) takenFrom(epoch int64) bool {
	in.fence.Lock()
	defer in.fence.Unlock()
	return epoch > in.fence.epoch && epoch != in.fence.claim
}

// failure says why the instance cannot be used, or nil. Every call asks, so it takes no lock.
func (in *instance) failure() error {
	if err := in.lane.Err(); err != nil {
		return in.translate(err)
	}
	if in.c.closed() {
		return ErrClosed
	}
	if in.releasing.Load() {
		return ErrReleased
	}
	return nil
}

func (in *instance) usable() bool { return in.failure() == nil }

// stop makes every later call fail with err and gives up what is pending.
func (in *instance) stop(err error) { in.lane.Stop(err) }

// lose makes every later call fail with err. What is pending is kept, and told when the container is closed.
func (in *instance) lose(err error) {
	in.c.cfg.Logger.Error("pgstore: instance stopped", "instance", in.id, "pending", in.lane.Pending(), "error", err)
	in.lane.Fail(err)
	in.c.stopped(in, err)
}

// patience says what a write waits for.
type patience uint8

const (
	patienceNone     patience = iota // the write is visible, that is enough
	patienceHurry                    // likewise, but its flush begins as soon as it can
	patienceNewChain                 // durable, but only NewChainWait long, and not while the database does not answer
	patienceOutage                   // durable, but only OutageWait long
	patienceDurable                  // durable, until the context ends
	patienceReserve                  // likewise, for a send that has used up what its chain has reserved
)

// transaction is what DoDecryptionTxn puts into the context.
type transaction struct {
	in      *instance
	overlay cache.Overlay[value]
	writing sync.RWMutex // held by writers for reading, by the end for writing
	mu      sync.Mutex
	wait    patience
	ended   bool
	deleted map[cache.Key]struct{}  // by others since the transaction began
	removed map[cache.Key]cache.Key // the records that it deletes itself, and where to it moves them
	held                            // the records that it has read
}

// errTransactionEnded is returned to a write that comes with the context of a transaction that has ended.
var errTransactionEnded = errors.New("pgstore: decryption transaction has ended")

// write adds to the overlay, and notes what the transaction's end must wait for.
func (tx *transaction) write(ctx context.Context, wait patience, fn func(*view) error) error {
	tx.writing.RLock()
	defer tx.writing.RUnlock()
	tx.mu.Lock()
	ended := tx.ended
	tx.wait = max(tx.wait, wait)
	tx.mu.Unlock()
	if ended {
		return errTransactionEnded
	}
	return tx.in.keys.Update(ctx, &tx.overlay, nil, fn)
}

// end refuses further writes, and says what was written and what to wait for.
func (tx *transaction) end() ([]cache.Write[value], patience) {
	tx.writing.Lock()
	defer tx.writing.Unlock()
	tx.mu.Lock()
	defer tx.mu.Unlock()
	tx.ended = true
	return tx.overlay.Writes(), tx.wait
}

func (tx *transaction) open() bool {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	return !tx.ended
}

// remove notes that the transaction deletes a record, or moves it.
func (tx *transaction) remove(k, to cache.Key) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if tx.removed == nil {
		tx.removed = make(map[cache.Key]cache.Key)
	}
	tx.removed[k] = to
}

func (tx *transaction) wasDeleted(k cache.Key) bool {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	_, was := tx.deleted[k]
	return was
}

// noteDeletions tells the open transactions what was deleted: what they wrote before must not bring it back.
func (in *instance) noteDeletions(writes []cache.Write[value]) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for tx := range in.mu.open {
		for _, w := range writes {
			if w.Op == cache.Delete {
				tx.mu.Lock()
				if tx.deleted == nil {
					tx.deleted = make(map[cache.Key]struct{})
				}
				tx.deleted[w.Key] = struct{}{}
				tx.mu.Unlock()
			}
		}
	}
}

type transactionKey struct{}

// transactionOf returns the open transaction of ctx on this instance, else nil.
func (in *instance) transactionOf(ctx context.Context) *transaction {
	if tx, ok := ctx.Value(transactionKey{}).(*transaction); ok && tx.in == in {
		return tx
	}
	return nil
}

func (in *instance) overlayOf(ctx context.Context) *cache.Overlay[value] {
	if tx := in.transactionOf(ctx); tx != nil && tx.open() {
		return &tx.overlay
	}
	return nil
}

func (in *instance) read(ctx context.Context, fn func(*view) error) error {
	if err := in.failure(); err != nil {
		return in.failed(err)
	}
	return in.failed(in.keys.Read(ctx, in.overlayOf(ctx), fn))
}

// failed tells of an error of a call, and returns it.
func (in *instance) failed(err error) error {
	if err != nil {
		in.c.observers.failed(in.id, err)
	}
	return err
}

func (in *instance) get(ctx context.Context, k cache.Key) (v value, found bool, err error) {
	if err = in.failure(); err != nil {
		return nil, false, in.failed(err)
	}
	v, found, err = in.keys.Get(ctx, in.overlayOf(ctx), k)
	return v, found, in.failed(err)
}

// write runs fn, makes what it wrote visible and waits as wait says. Inside a transaction both happen at its end.
func (in *instance) write(ctx context.Context, wait patience, fn func(*view) error) error {
	return in.writeMany(ctx, wait, 1, fn)
}

// writeMany is write for about that many keys.
func (in *instance) writeMany(ctx context.Context, wait patience, keys int, fn func(*view) error) error {
	if tx := in.transactionOf(ctx); tx != nil {
		if err := in.failure(); err != nil {
			return in.failed(err)
		}
		return in.failed(tx.write(ctx, wait, fn))
	}
	return in.writeThen(ctx, keys, fn, func() patience { return wait })
}

// writeThen is writeMany outside of transactions, where fn finds out what to wait for.
func (in *instance) writeThen(ctx context.Context, keys int, fn func(*view) error, wait func() patience) error {
	if err := in.failure(); err != nil {
		return in.failed(err)
	}
	ticket, synchronous, err := in.commit(ctx, max(keys, 1), fn)
	if err != nil {
		return in.failed(err)
	}
	if synchronous {
		return in.failed(in.wait(ctx, patienceDurable, ticket))
	}
	return in.failed(in.wait(ctx, wait(), ticket))
}

// opOverhead is what an operation occupies in the backlog beside its key's id and its value.
const opOverhead = 200

func newOp(w cache.Write[value]) op {
	size := opOverhead + len(w.Key.ID)
	if w.Op != cache.Delete {
		size += w.Value.size()
	}
	return op{Kind: opKinds[w.Op], Key: w.Key, Value: w, Size: size}
}

// commit makes the writes of fn one group: visible and queued at the same moment.
//
//  1. Reserve room in the backlog; this is where a writer blocks when too much is pending.
//  2. Under the instance's lock: run fn, queue its writes, make them visible.
//  3. If fn wrote more than was reserved, of which the bytes are known only now, and there is no room for it, nothing happened: reserve that much
//     and begin again.
//
// It also says whether a key is among them of a type that the user asked to be synchronous.
func (in *instance) commit(ctx context.Context, keys int, fn func(*view) error) (ticket batcher.Ticket, synchronous bool, err error) {
	room := batcher.Room{Ops: keys}
	for {
		if err = in.lane.Reserve(ctx, room); err != nil {
			return ticket, false, in.translate(err)
		}
		added := false
		err = in.keys.Update(ctx, nil, func(writes []cache.Write[value]) error {
			ops := make([]op, len(writes))
			for i, w := range writes {
				ops[i] = newOp(w)
				synchronous = synchronous || in.c.synchronous[w.Key.Type]
			}
			var err error
			added = true // Add releases the reservation even when it fails
			if ticket, err = in.lane.Add(room, ops); err == nil {
				in.noteDeletions(writes)
			}
			return err
		}, fn)
		if !added {
			in.lane.Unreserve(room)
			if err == nil { // nothing changed, but what is there may not be durable yet
				ticket, err = in.lane.Last()
			}
		}
		var tooLarge *batcher.RoomError
		if errors.As(err, &tooLarge) {
			room = tooLarge.Need
			continue
		}
		return ticket, synchronous, in.translate(err)
	}
}

var opKinds = [...]batcher.OpKind{cache.Put: batcher.Put, cache.PutIfAbsent: batcher.PutIfAbsent, cache.Delete: batcher.Delete}

// translate gives the batcher's errors their public names. A context that ended while the database was waited for is
// [ErrUnavailable], whatever its cause, so that the client does not acknowledge.
func (in *instance) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, batcher.ErrClosed):
		return ErrClosed
	case in.lane.Err() != nil:
		return err
	case errors.Is(err, batcher.ErrBacklogFull):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return err
	}
}

func (in *instance) wait(ctx context.Context, wait patience, ticket batcher.Ticket) error {
	switch wait {
	case patienceNone:
		return nil
	case patienceHurry:
		ticket.Hurry()
		return nil
	case patienceNewChain:
		return in.waitForNewChain(ctx, ticket)
	case patienceOutage:
		limited, cancel := context.WithTimeout(ctx, in.c.cfg.OutageWait)
		defer cancel()
		waiting := in.waits(WaitOnce, ticket)
		err := ticket.Wait(limited)
		waiting.over(err)
		if err != nil && limited.Err() != nil && ctx.Err() == nil {
			in.c.cfg.Logger.Warn("pgstore: database is away, going on from memory", "instance", in.id)
			return nil
		}
		return in.waited(ctx, err)
	case patienceReserve:
		return in.waitFor(ctx, WaitReserve, ticket)
	case patienceDurable:
	}
	return in.waitFor(ctx, WaitDurable, ticket)
}

// waitFor waits until a commit has come or the context ends.
func (in *instance) waitFor(ctx context.Context, reason WaitReason, ticket batcher.Ticket) error {
	waiting := in.waits(reason, ticket)
	err := ticket.Wait(ctx)
	waiting.over(err)
	return in.waited(ctx, err)
}

// waitForNewChain waits until a chain is durable that nobody has sent on yet. The client holds its send lock meanwhile, so the wait is
// short, and after one that was in vain there is none until a flush has succeeded, in this instance one of its own: no message key repeats without it.
func (in *instance) waitForNewChain(ctx context.Context, ticket batcher.Ticket) error {
	if in.c.hasty.Load() || in.hasty.Load() {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, in.c.cfg.NewChainWait)
	defer cancel()
	waiting := in.waits(WaitNewChain, ticket)
	err := ticket.Wait(limited)
	waiting.over(err)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		in.c.cfg.Logger.Warn("pgstore: database is slow, sends do not wait for new chains until it answers", "instance", in.id)
		in.c.hasty.Store(true)
		in.hasty.Store(true)
		return nil
	}
	return in.waited(ctx, err)
}

// waited is translate for a wait that the context may have ended.
func (in *instance) waited(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && in.lane.Err() == nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return in.translate(err)
}

// transact runs fn in a transaction: what it writes becomes visible and durable all together, or not at all
// if it fails or panics. A nested call joins the outer one.
func (in *instance) transact(ctx context.Context, fn func(context.Context) error) error {
	if err := in.failure(); err != nil {
		return err
	}
	if in.transactionOf(ctx) != nil {
		return fn(ctx)
	}
	in.transacted.Store(true)
	tx := &transaction{in: in}
	in.mu.Lock()
	in.mu.open[tx] = struct{}{}
	in.mu.Unlock()
	defer func() {
		tx.end() // whatever fn started and left behind, and also when it panics
		in.mu.Lock()
		delete(in.mu.open, tx)
		in.mu.Unlock()
	}()
	if err := fn(context.WithValue(ctx, transactionKey{}, tx)); err != nil {
		return err
	}
	writes, wait := tx.end()
	var all outcome
	return in.counted(&all, in.writeThen(ctx, len(writes), func(v *view) error {
		all = outcome{wait: wait}
		for _, w := range writes {
			if isRecordType(w.Key.Type) {
				one, err := in.endRecord(v, tx, w)
				if err != nil {
					return err
				}
				all.add(one)
				continue
			}
			if w.Op != cache.Delete && tx.wasDeleted(w.Key) {
				continue
			}
			if w.Key.Type == typeIdentity && !v.Has(w.Key) {
				in.created(v, w.Key)
			}
			if event, ok := w.Value.(*bufferedEventValue); ok && event.Plaintext != nil && v.Has(w.Key) {
				return errBuffered // by another transaction meanwhile: the first one counts
			}
			v.Write(w)
		}
		return nil
	}, func() patience { return all.wait }))
}

// endRecord is a transaction's write of a session or a sender key, at its end.
func (in *instance) endRecord(v *view, tx *transaction, w cache.Write[value]) (o outcome, err error) {
	from := source{by: writerDecrypt, held: &tx.held, inside: true}
	to, removed := tx.removed[w.Key]
	if removed {
		if err = in.removeRecord(v, w.Key, to); err != nil || w.Op == cache.Delete {
			return o, err
		}
		from.held = nil // it is put anew
	} else if _, known := in.base(from, w.Key); !known {
		if tx.wasDeleted(w.Key) {
			return o, nil
		}
		if w.Key.Type == typeSenderKey {
			from = source{inside: true} // nobody has read it
		}
	}
	return in.putRecord(v, w.Key, w.Value.(*recordValue), from)
}

// dropOpenGroups forgets app-state groups that were never ended and says so. What was read of versions counts no more.
func (in *instance) dropOpenGroups() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for name := range in.mu.groups {
		in.c.cfg.Logger.Warn("pgstore: unfinished app state patch dropped", "instance", in.id, "collection", name)
	}
	in.mu.groups = nil
	for name := range in.mu.versions {
		in.mu.versions[name] = false
	}
}
