package pgstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// share is how the instances are divided between the processes that claim them.
type share struct {
	mine   int // what this process has
	target int // what it should have
	free   int // what nobody has, but for what this process leaves alone
}

// claimable is how many instances this process may claim now.
func (s share) claimable() int { return max(0, min(s.free, s.target-s.mine)) }

// surplus is how many it has too many.
func (s share) surplus() int { return max(0, s.mine-s.target) }

// nobodys begins a statement that deals with the instances that no living process has: those without a process, and those of the dead.
// named goes from one process that has instances to the next, by the index, so that what is asked costs as much as there are processes, and not
// instances: all processes ask all the time.
const nobodys = `
WITH RECURSIVE named AS (
    (SELECT process FROM {schema}.instances WHERE process IS NOT NULL ORDER BY process LIMIT 1)
    UNION ALL
    SELECT (SELECT i.process FROM {schema}.instances i WHERE i.process > named.process ORDER BY i.process LIMIT 1) FROM named WHERE named.process IS NOT NULL
), dead AS (
    SELECT process FROM named WHERE process IS NOT NULL
    AND NOT EXISTS (SELECT FROM {schema}.processes p WHERE p.id = named.process AND p.expires > clock_timestamp())
)`

// freeCount counts them.
const freeCount = `(SELECT count(*) FROM {schema}.instances WHERE process IS NULL)
    + (SELECT coalesce(sum(n), 0)::bigint FROM dead, LATERAL (SELECT count(*) AS n FROM {schema}.instances i WHERE i.process = dead.process) AS of_one)`

// shareStatement lists the living processes that claim with what they have, most first, and tells how many instances there are besides that nobody has. It counts
// in one pass over all instances: of their epochs, since an index alone does not know what was written since the last vacuum, which is nearly all.
const shareStatement = `
WITH living AS (SELECT id, claims, max_instances FROM {schema}.processes WHERE expires > clock_timestamp()),
    has AS (SELECT process, count(epoch) AS n FROM {schema}.instances GROUP BY process),
    alone AS (SELECT count(*) AS n FROM {schema}.instances WHERE id = ANY ($1) AND (process IS NULL OR process NOT IN (SELECT id FROM living)))
SELECT l.id::text, coalesce(has.n, 0), l.max_instances, (SELECT coalesce(sum(n), 0)::bigint FROM has WHERE process IS NULL OR process NOT IN (SELECT id FROM living)),
    (SELECT n FROM alone)
FROM living l LEFT JOIN has ON has.process = l.id WHERE l.claims
ORDER BY coalesce(has.n, 0) DESC, l.id`

// share asks for this process's share:
//
//  1. All processes see the same list, so they agree on the targets without talking to each other.
//  2. Of a number that does not divide, those that have most have one more: so nothing moves for its own sake.
//  3. Who takes no more than a maximum that is below that leaves the rest to the others.
//  4. Who has too many releases them, and who has too few claims what is free.
func (c *Container) share(ctx context.Context) (s share, err error) {
	var processes []sharer
	alone := 0
	err = c.read(ctx, shareStatement, []any{c.spoilt.now()}, func() { processes = nil }, func(rows pgx.Rows) error {
		var p sharer
		err := rows.Scan(&p.id, &p.has, &p.most, &s.free, &alone)
		processes = append(processes, p)
		return err
	})
	if err != nil {
		return s, fmt.Errorf("pgstore: asking for the share: %w", err)
	}
	all := s.free
	for _, p := range processes {
		all += p.has
	}
	s.free -= alone
	targets := divide(all, processes)
	for i, p := range processes {
		if p.id == c.process {
			s.mine, s.target = p.has, targets[i]
		}
	}
	return s, nil
}

// sharer is a process that claims.
type sharer struct {
	id        string
	has, most int // most is 0 without a maximum
}

// divide says how many of all instances each process should have. Round by round those whose maximum is no more than what all would have get it, and the
// others divide what is left.
func divide(all int, processes []sharer) []int {
	targets := make([]int, len(processes))
	var open []int
	for i := range processes {
		open = append(open, i)
	}
	for before := -1; len(open) != before && len(open) > 0; {
		before = len(open)
		each := all / before
		open = slices.DeleteFunc(open, func(i int) bool {
			most := processes[i].most
			if most == 0 || most > each {
				return false
			}
			targets[i] = most
			all -= most
			return true
		})
	}
	for k, i := range open {
		targets[i] = all / len(open)
		if k < all%len(open) {
			targets[i]++
		}
	}
	return targets
}

// situation is what the shares depend on, as far as it can be asked for without counting what everybody has.
type situation struct {
	sharing string // the living processes that claim
	free    int
	expires time.Duration // until the first lease does, of all living processes
}

const situationStatement = nobodys + `
SELECT coalesce(string_agg(p.id::text, ' ' ORDER BY p.id) FILTER (WHERE p.claims), ''), ` + freeCount + `,
    coalesce(extract(epoch FROM min(p.expires) - clock_timestamp()), 0)::float8
FROM {schema}.processes p WHERE p.expires > clock_timestamp()`

func (c *Container) situation(ctx context.Context) (s situation, err error) {
	var seconds float64
	err = c.read(ctx, situationStatement, nil, func() {}, func(rows pgx.Rows) error { return rows.Scan(&s.sharing, &s.free, &seconds) })
	s.expires = time.Duration(seconds * float64(time.Second))
	return s, err
}

// same reports whether the shares are what they were, but for what was paired or deleted.
func (s situation) same(before situation) bool {
	return s.sharing == before.sharing && s.free == before.free
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

// Leave lets the others share what this process has, before it lets go of it: they claim from then on what it releases, which would else be within its own share. It
// keeps what it has until it releases it, or is closed, and what it was told to claim it need not. The next Claim or Watch joins again; one that goes on claims
// nothing. Shutdown begins with it. If it fails, the others are told with the next sign of life.
func (c *Container) Leave(ctx context.Context) error {
	if c.closed() {
		return ErrClosed
	}
	if !c.claims.Swap(false) {
		return nil
	}
	if err := c.retry(ctx, attemptTimeout, c.renewLease); err != nil {
		return fmt.Errorf("pgstore: leaving: %w", err)
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
