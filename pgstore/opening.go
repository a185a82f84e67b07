package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Who waits for an instance that is being taken and loaded. The load is shared and has no context of any of its callers, so it goes on when they leave. It must not
// take what nobody waits for any more, and what it has taken by then is let go of again, since nobody knows of it who could release it:
//
//  1. A caller is counted before the load begins, and until it has the answer.
//  2. The load looks before each attempt to take whether there is one, and when it is done whether one is left.
//  3. A caller that leaves looks whether the instance is there and nobody got it.
//  4. What Claim has noted as this process's is waited for by the next Claim.
//
// All of this is decided with the container's mu held, and so is that somebody gets an instance that is there.

// opening is an instance that callers wait for. It is guarded by the container's mu.
type opening struct {
	callers int
	leased  bool // the last attempt to take it has found a living owner
}

// errUnwanted is returned by a load that nobody waited for. Who came meanwhile begins anew.
var errUnwanted = errors.New("pgstore: nobody waits for the instance any more")

// await counts a caller.
func (c *Container) await(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.openings[id]
	if o == nil {
		o = new(opening)
		c.mu.openings[id] = o
	}
	o.callers++
}

// answered takes a caller away who has got the answer err of a load, or has left. It returns the instance, nil if it is gone again, and whether a living owner
// was waited for.
func (c *Container) answered(id string, err error) (in *instance, leased bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.mu.openings[id]
	if o.callers--; o.callers == 0 {
		delete(c.mu.openings, id)
	}
	in = c.mu.instances[id]
	switch {
	case in == nil:
	case err == nil:
		in.handed = true
	default:
		c.abandonLocked(in)
	}
	return in, o.leased
}

// got returns the instance called id that is here, nil if there is none.
func (c *Container) got(id string) *instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.mu.instances[id]
	if in != nil {
		in.handed = true
	}
	return in
}

// noteLeased notes whether a living owner is waited for.
func (c *Container) noteLeased(id string, leased bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.mu.openings[id]; o != nil {
		o.leased = leased
	}
}

// unwanted says whether nobody waits for an instance that is being opened.
func (c *Container) unwanted(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unwantedLocked(id)
}

func (c *Container) unwantedLocked(id string) bool {
	return c.mu.openings[id] == nil && !c.owed.has(id)
}

// abandonLocked lets go of an instance that was opened and that nobody got. Nobody uses it from here on; who wants it waits until it is released, and takes it anew.
func (c *Container) abandonLocked(in *instance) {
	if in.handed || in.releasing.Load() || c.closed() || !c.unwantedLocked(in.id) {
		return
	}
	in.releasing.Store(true)
	c.tasks.Go(func() {
		if err := c.release(c.tasksCtx, in); err != nil && c.tasksCtx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: instance that nobody waited for not let go of", "instance", in.id, "error", err)
		}
	})
}

// giveBack gives back what was taken, or may have been, under an epoch up to the given one, and is not open. If that cannot be told to the database, the
// next Claim tries again; a process that claims nothing keeps it until its lease ends.
func (c *Container) giveBack(ctx context.Context, id string, epoch int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	err := c.unclaim(ctx, id, epoch)
	if err == nil || errors.Is(err, ErrClosed) {
		return
	}
	c.cfg.Logger.Warn("pgstore: instance that could not be opened not given back", "instance", id, "error", err)
	if c.claims.Load() {
		c.owed.add(false, id)
	}
}

// takeThen takes an instance and fills it. What was taken and cannot be filled is given back.
func (c *Container) takeThen(ctx context.Context, in *instance, fill func(taken) error) error {
	doubt := false // an attempt to take it may have succeeded, and its answer was lost
	t, err := c.takeWhenFree(ctx, in.id, func(take func() error) error {
		if c.unwanted(in.id) {
			return errUnwanted
		}
		err := take()
		doubt = doubt || err != nil && unavailable(err)
		c.noteLeased(in.id, errors.Is(err, ErrLeased))
		return err
	})
	if err != nil {
		if doubt {
			c.giveBack(ctx, in.id, math.MaxInt64)
		}
		return err
	}
	err = fill(t)
	if err != nil && (!errors.Is(err, errMoved) || c.unwanted(in.id)) { // who still wants what has moved takes it anew
		c.giveBack(ctx, in.id, t.epoch)
	}
	return err
}

// notOpened is the error of a caller of open, of a database that did not answer or an owner who did not let go before the context ended, or of what failed for good.
func (in *instance) notOpened(ctx context.Context, err error, leased bool) error {
	switch {
	case ctx.Err() != nil && leased:
		err = fmt.Errorf("%w: opening instance: %w: %w", ErrUnavailable, ErrLeased, err)
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: opening instance: %w", ErrUnavailable, err)
	default:
		err = fmt.Errorf("pgstore: opening instance: %w", err)
	}
	return in.failed(err)
}
