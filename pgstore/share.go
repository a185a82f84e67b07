package pgstore

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// share is how the instances are divided between the processes that claim them.
type share struct {
	mine   int // what this process has
	target int // what it should have
	free   int // what nobody has
}

// claimable is how many instances this process may claim now.
func (s share) claimable() int { return max(0, min(s.free, s.target-s.mine)) }

// surplus is how many it has too many.
func (s share) surplus() int { return max(0, s.mine-s.target) }

// shareStatement lists the living processes that claim with what they have, most first, and tells how many instances there are for them: those that
// they have, and those that nobody has.
const shareStatement = `
SELECT p.id::text, count(i.id), (SELECT count(*) FROM {schema}.instances i WHERE ` + free + `)
FROM {schema}.processes p LEFT JOIN {schema}.instances i ON i.process = p.id
WHERE p.claims AND p.expires > clock_timestamp()
GROUP BY p.id ORDER BY count(i.id) DESC, p.id`

// share asks for this process's share:
//
//  1. All processes see the same list, so they agree on the targets without talking to each other.
//  2. Of a number that does not divide, those that have most have one more: so nothing moves for its own sake.
//  3. Who has too many releases them, and who has too few claims what is free.
func (c *Container) share(ctx context.Context) (s share, err error) {
	type has struct {
		id string
		n  int
	}
	var processes []has
	err = c.read(ctx, shareStatement, nil, func() { processes = nil }, func(rows pgx.Rows) error {
		var p has
		err := rows.Scan(&p.id, &p.n, &s.free)
		processes = append(processes, p)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("pgstore: asking for the share: %w", err)
	}
	all := s.free
	for _, p := range processes {
		all += p.n
	}
	for i, p := range processes {
		if p.id != c.process {
			continue
		}
		s.mine, s.target = p.n, all/len(processes)
		if i < all%len(processes) {
			s.target++
		}
	}
	if c.cfg.MaxInstances > 0 {
		s.target = min(s.target, c.cfg.MaxInstances)
	}
	return s, nil
}

// join makes this process one of those that share.
func (c *Container) join(ctx context.Context) error {
	if c.closed() {
		return ErrClosed
	}
	if c.claims.Swap(true) {
		return nil
	}
	if err := c.retry(ctx, attemptTimeout, c.renewLease); err != nil {
		c.claims.Store(false)
		return fmt.Errorf("pgstore: joining: %w", err)
	}
	return nil
}

// leave lets the others share what this process has, before it lets go of it.
func (c *Container) leave(ctx context.Context) {
	if !c.claims.Swap(false) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	if err := c.renewLease(ctx); err != nil {
		c.cfg.Logger.Warn("pgstore: leaving not told", "error", withoutRows(err))
	}
}
