package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Mark is a moment of an instance's rows: under which take they were written, and how many flushes there were.
type Mark struct {
	Epoch, Seq int64
}

// Witness remembers outside of the database how far instances have got. Its methods may be called concurrently.
//
// Rows that are older than the witness remembers have gone back in time: whoever takes the instance heals it. A container tells its witness of every
// take before the instance is used, of what was flushed once a second, and at its end; once a second it also asks whether somebody else has taken one
// of its instances. So a database that was put back by less than a second, and has not been taken since, is not noticed. For up to a second an owner does
// not notice that a restore has undone the take of somebody who had its instance meanwhile: what it sends in that second may have that one's message
// keys. Nor is a restore noticed by a witness that goes back with it, or that another process has told (a file, where the instance was on another
// machine meanwhile).
type Witness interface {
	// Load returns the last mark of an instance, the zero Mark if there is none.
	Load(ctx context.Context, instance string) (Mark, error)
	// Save replaces the marks of instances, also by earlier ones.
	Save(ctx context.Context, marks map[string]Mark) error
}

// witnessInterval is how often a witness is told of what was flushed.
const witnessInterval = time.Second

// witnessed is what the witness remembers of an instance.
func (c *Container) witnessed(ctx context.Context, id string) (m Mark, err error) {
	if c.cfg.Witness == nil {
		return m, nil
	}
	if m, err = c.cfg.Witness.Load(ctx, id); err != nil {
		return m, fmt.Errorf("pgstore: asking the witness: %w", err)
	}
	return m, nil
}

// tellWitness tells it of instances that have got further since it was told last.
func (c *Container) tellWitness(ctx context.Context, instances []*instance) error {
	if c.cfg.Witness == nil {
		return nil
	}
	marks := make(map[string]Mark)
	for _, in := range instances {
		in.fence.Lock()
		now := Mark{in.fence.epoch, in.fence.seq}
		if now != in.fence.told {
			marks[in.id] = now
		}
		in.fence.Unlock()
	}
	if len(marks) == 0 {
		return nil
	}
	if err := c.cfg.Witness.Save(ctx, marks); err != nil {
		return fmt.Errorf("pgstore: telling the witness: %w", err)
	}
	for _, in := range instances {
		in.fence.Lock()
		if m, ok := marks[in.id]; ok {
			in.fence.told = m
		}
		in.fence.Unlock()
	}
	return nil
}

// askWitness loses the instances of which the witness knows a later take, though the database may have lost it, and tells it of the others.
func (c *Container) askWitness(ctx context.Context) error {
	var errs []error
	kept := slices.DeleteFunc(c.taken(), func(in *instance) bool {
		known, err := c.witnessed(ctx, in.id)
		if err != nil {
			errs = append(errs, err)
			return true // it may know of a later take, which is not to be replaced
		}
		if known.Epoch > in.epoch() {
			in.lose(ErrOwnershipLost)
		}
		return !in.usable()
	})
	return errors.Join(append(errs, c.tellWitness(ctx, kept))...)
}

// keepWitness tells the witness until the container is closed.
func (c *Container) keepWitness(ctx context.Context) {
	every(ctx, witnessInterval, func() {
		if err := c.askWitness(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: a database that goes back may not be noticed", "error", err)
		}
	})
}
