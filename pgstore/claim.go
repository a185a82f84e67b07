package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"
	"golang.org/x/sync/errgroup"
)

// owed is what Claim has noted in the database as this process's, and has not returned: its context ended, or the answer of the database was lost. Nobody else
// takes that while this process lives, so the next call returns it.
type owed struct {
	turn chan struct{} // of capacity 1; one Claim at a time

	mu struct {
		sync.Mutex
		ids     map[string]struct{}
		taking  map[string]struct{} // those that a call is about to return
		unknown bool                // there may be more, of which the database has to be asked
	}
}

func newOwed() *owed {
	o := &owed{turn: make(chan struct{}, 1)}
	o.mu.ids, o.mu.taking = make(map[string]struct{}), make(map[string]struct{})
	return o
}

// add notes instances; unknown says that there may be more.
func (o *owed) add(unknown bool, ids ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.unknown = o.mu.unknown || unknown
	for _, id := range ids {
		o.mu.ids[id] = struct{}{}
	}
}

// take notes what a call is about to return, until it says whether it did.
func (o *owed) take(ids ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range ids {
		o.mu.taking[id] = struct{}{}
	}
}

func (o *owed) took(id string, owing bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.mu.taking, id)
	if owing {
		o.mu.ids[id] = struct{}{}
	}
}

// has says whether a call of Claim waits for an instance, or the next one will.
func (o *owed) has(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, owing := o.mu.ids[id]
	_, taking := o.mu.taking[id]
	return owing || taking
}

// count is how many there are at the least, but one if that is unknown.
func (o *owed) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.unknown {
		return max(1, len(o.mu.ids))
	}
	return len(o.mu.ids)
}

// some returns up to n of them, and whether there may be others.
func (o *owed) some(n int) (ids []string, unknown bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids = slices.Collect(maps.Keys(o.mu.ids))
	return ids[:min(n, len(ids))], o.mu.unknown
}

func (o *owed) settle(ids []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range ids {
		delete(o.mu.ids, id)
	}
}

func (o *owed) known() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.unknown = false
}

// Claim takes up to n instances that no living process has, no more than this process's share of all of them, and returns their devices. The share is the
// same for all processes that have called Claim or Watch and live, within one, but for those whose MaxInstances is below it: the others share the rest. Several processes may claim at once: each instance goes to
// one. If some cannot be opened, the others are returned with the error, and this process leaves those alone
// for a while, for longer each time; what was claimed when the context ended is returned by the next call.
func (c *Container) Claim(ctx context.Context, n int) ([]*store.Device, error) {
	if err := c.join(ctx); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, nil
	}
	select {
	case c.owed.turn <- struct{}{}:
		defer func() { <-c.owed.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: another call of Claim has not ended: %w", ErrUnavailable, context.Cause(ctx))
	}
	ids, err := c.claimedBefore(ctx, n)
	if err == nil && len(ids) == 0 {
		ids, err = c.claim(ctx, n)
	}
	if err != nil {
		return nil, fmt.Errorf("pgstore: claiming instances: %w", err)
	}
	devices := make([]*store.Device, len(ids))
	errs := make([]error, len(ids))
	var opening errgroup.Group
	opening.SetLimit(max(1, int(c.pool.Config().MaxConns)/2)) // flushes need connections, too
	for i, id := range ids {
		opening.Go(func() error {
			devices[i], errs[i] = c.takeClaimed(ctx, id)
			return nil
		})
	}
	_ = opening.Wait()
	return slices.DeleteFunc(devices, func(d *store.Device) bool { return d == nil }), errors.Join(errs...)
}

// takeClaimed takes what was claimed. What cannot be opened is given back, unless that cannot be told: then the next call tries again.
func (c *Container) takeClaimed(ctx context.Context, id string) (*store.Device, error) {
	d, err := c.takeDevice(ctx, id)
	if err == nil {
		c.owed.took(id, false)
		c.spoilt.opened(id)
		return d, nil
	}
	if ctx.Err() != nil { // it may be open in the end
		c.owed.took(id, true)
		return nil, err
	}
	if !unavailable(err) {
		c.spoilt.failed(id, c.cfg.Lease)
	}
	given := c.unclaim(ctx, id, math.MaxInt64)
	c.owed.took(id, given != nil)
	return nil, errors.Join(err, given)
}

// claimedBefore is up to n instances that earlier calls have claimed and not returned, and that nobody has taken by force since.
func (c *Container) claimedBefore(ctx context.Context, n int) (ids []string, err error) {
	before, unknown := c.owed.some(n)
	if unknown {
		var noted []string
		if noted, err = c.idsOf(ctx, `SELECT id FROM {schema}.instances WHERE process = $1`, c.process); err != nil {
			return nil, err
		}
		c.mu.Lock()
		noted = slices.DeleteFunc(noted, func(id string) bool { return c.mu.instances[id] != nil })
		c.mu.Unlock()
		c.owed.add(false, noted...)
		c.owed.known()
		before, _ = c.owed.some(n)
	}
	if len(before) == 0 {
		return nil, nil
	}
	ids, err = c.idsOf(ctx, `SELECT id FROM {schema}.instances WHERE process = $1 AND id = ANY($2)`, c.process, before)
	if err == nil {
		c.owed.take(ids...)
		c.owed.settle(before)
	}
	return ids, err
}

// claim notes up to n free instances as this process's.
func (c *Container) claim(ctx context.Context, n int) (ids []string, err error) {
	s, err := c.share(ctx)
	if err != nil {
		return nil, err
	}
	if n = min(n, s.claimable()); n <= 0 {
		return nil, nil
	}
	attempts := 0
	err = c.read(ctx, claimStatement, []any{c.process, n, c.spoilt.now()}, func() { ids = nil; attempts++ }, func(rows pgx.Rows) error { return scanID(rows, &ids) })
	if err != nil || attempts > 1 { // the answer of an attempt that failed may be what was lost
		c.owed.add(true)
	}
	if err == nil {
		c.owed.take(ids...)
	}
	return ids, err
}

// idsOf reads the ids that a query answers.
func (c *Container) idsOf(ctx context.Context, query string, args ...any) (ids []string, err error) {
	err = c.read(ctx, query, args, func() { ids = nil }, func(rows pgx.Rows) error { return scanID(rows, &ids) })
	return ids, err
}

func scanID(rows pgx.Rows, ids *[]string) error {
	var id string
	err := rows.Scan(&id)
	*ids = append(*ids, id)
	return err
}

// claimStatement notes this process as the one that is about to take instances. Others that claim at the same time leave them out; if it
// dies before it takes them, they are free when its lease expires. What another one has claimed since this statement began is looked at again when it is
// locked, and its process is none of the dead that this statement has found, be it as new as it may.
const claimStatement = nobodys + `, unowned AS (
    SELECT id FROM {schema}.instances WHERE process IS NULL AND id <> ALL ($3) ORDER BY taken_at LIMIT $2 FOR UPDATE SKIP LOCKED
), orphaned AS (
    SELECT i.id FROM dead, LATERAL (
        SELECT i.id FROM {schema}.instances i WHERE i.process = dead.process AND i.id <> ALL ($3) ORDER BY i.taken_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS i
)
UPDATE {schema}.instances i SET process = $1
FROM (SELECT id FROM unowned UNION ALL SELECT id FROM orphaned LIMIT $2) AS free
WHERE i.id = free.id RETURNING i.id`

// unclaim gives back what could not be opened, or not be left cleanly, if it was not taken since under a later epoch.
func (c *Container) unclaim(ctx context.Context, id string, epoch int64) error {
	return c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := c.pool.Exec(ctx, c.sql(`UPDATE {schema}.instances SET process = NULL WHERE id = $1 AND process = $2 AND epoch <= $3`),
			pgx.QueryExecModeExec, id, c.process, epoch)
		return err
	})
}
