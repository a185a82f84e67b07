package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

// Stop tells of an instance that stopped by itself.
type Stop struct {
	Instance string
	Err      error // [ErrOwnershipLost], [ErrRefused], [ErrDatabaseRewound] or [ErrDeviceDeleted], to be tested with errors.Is
	Unsaved  []UnsavedWrite
}

// UnsavedWrite is a write that was pending when its instance stopped, without its value.
type UnsavedWrite struct {
	KeyType string // the key_type column
	KeyID   string // the key_id column
	Deleted bool
}

// stopped lets go of an instance that has failed, and tells of it.
func (c *Container) stopped(in *instance, err error) {
	c.forget(in)
	c.mu.Lock()
	c.mu.stopped[in.id] = err
	c.mu.Unlock()
	stop := Stop{Instance: in.id, Err: err}
	for _, o := range in.lane.Unsaved() {
		stop.Unsaved = append(stop.Unsaved, UnsavedWrite{KeyType: typeName(o.Key.Type), KeyID: o.Key.ID, Deleted: o.Kind == batcher.Delete})
	}
	c.observers.stopped(stop)
	c.watchers.tell(Event{Kind: Stopped, Instance: in.id, Err: err})
	if c.cfg.OnStop != nil {
		go c.cfg.OnStop(stop)
	}
}

// Take takes the instance of a device, as its first write would: of one that is from [Container.GetAllDevices]. A client logs in before it
// uses its store, so a program that connects such devices takes them first: else the login cuts off the present owner before
// its writes are refused, and what that one had not saved is lost. The error is as of GetDevice; [ErrDeviceDeleted] if there is none.
func (c *Container) Take(ctx context.Context, d *store.Device) error {
	if d == nil {
		return invalid("device is nil")
	}
	s, ok := d.Sessions.(*deviceStore)
	if !ok || s.c != c {
		return fmt.Errorf("%w: device is not of this container, or not saved", ErrInvalidInput)
	}
	_, err := s.instance(ctx)
	return err
}

// lostStatement finds those of this process's instances that another one has taken: each by the index, lest all instances are read for them.
const lostStatement = `
SELECT id, epoch FROM (
    SELECT l.id, (SELECT i.epoch FROM {schema}.instances i WHERE i.id = l.id AND i.epoch > l.epoch AND i.process IS DISTINCT FROM $3) AS epoch
    FROM unnest($1::text[], $2::bigint[]) AS l (id, epoch) OFFSET 0) AS found
WHERE epoch IS NOT NULL`

// findLost tells of instances that were lost. A flush would find out, too; but who has nothing to write would keep a client that, when it
// connects again, cuts off the new owner's: one that comes back from a suspended machine, or from behind a broken network.
func (c *Container) findLost(ctx context.Context) error {
	mine := make(map[string]*instance)
	var ids []string
	var epochs []int64
	for _, in := range c.taken() {
		if in.usable() {
			mine[in.id] = in
			ids, epochs = append(ids, in.id), append(epochs, in.epoch())
		}
	}
	if len(ids) == 0 {
		return nil
	}
	lost := make(map[string]int64)
	err := c.read(ctx, lostStatement, []any{ids, epochs, c.process}, func() { clear(lost) }, func(rows pgx.Rows) error {
		var id string
		var epoch int64
		err := rows.Scan(&id, &epoch)
		lost[id] = epoch
		return err
	})
	for id, epoch := range lost {
		if in := mine[id]; err == nil && in.usable() && in.epoch() < epoch {
			in.lose(ErrOwnershipLost)
		}
	}
	return err
}

// InstanceID is the name of the instance that a device belongs to, as Release and [Event] know it: the user's own, or the JID.
// It is empty for a device that has none yet, and for nil.
func InstanceID(d *store.Device) string {
	if d == nil {
		return ""
	}
	if _, named := d.Container.(*binding); !named && d.ID == nil {
		return ""
	}
	return idOf(d)
}

// Owned says whether this process has, as far as it knows, the instance for which a device was taken. An [Event] of Kind Stopped may come when the same instance
// was taken here anew: it is of the device that is not owned any more, and no reason to end the client of the new one. It is false for a device that has taken
// nothing, as one from [Container.GetAllDevices], for one that is not paired yet, and for nil. It asks no database.
func Owned(d *store.Device) bool {
	if d == nil {
		return false
	}
	s, ok := d.Sessions.(*deviceStore)
	if !ok {
		return false
	}
	in := s.in.Load()
	return in != nil && in.usable()
}

// Release lets go of an instance, so that another process may go on with it with nothing lost and nothing burned. Disconnect its client first. From the
// call on its stores fail with [ErrReleased]; to use the device here again, get it anew. It returns when all is durable and the instance is
// marked as cleanly left; where the database was moved to another timeline, or has gone back, since it was last used, it is not so marked, but still free. If the context ends first, the instance stays with this process and goes on saving: call it again, or
// Shutdown. Of an instance that this process does not have it does nothing.
func (c *Container) Release(ctx context.Context, id string) error {
	c.mu.Lock()
	in := c.mu.instances[id]
	c.mu.Unlock()
	if in == nil || c.closed() {
		return nil
	}
	return c.release(ctx, in)
}

// release may be called by several at once.
func (c *Container) release(ctx context.Context, in *instance) error {
	in.releasing.Store(true)
	in.dropOpenGroups()
	if err := in.lane.Drain(ctx, ErrReleased); err != nil {
		if errors.Is(err, ErrReleased) { // by another call
			return nil
		}
		if errors.Is(err, ErrDatabaseRewound) { // and is forgotten
			err = errors.Join(err, c.unclaim(ctx, in.id, in.epoch()))
		}
		return fmt.Errorf("pgstore: releasing instance: %w", in.waited(ctx, err))
	}
	if err := errors.Join(c.markClean(ctx, []*instance{in}), c.tellWitness(ctx, []*instance{in})); err != nil {
		return err
	}
	in.stop(ErrReleased)
	c.forget(in)
	return nil
}
