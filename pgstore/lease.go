package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

// lease is a process's right to the instances that it has taken. With [Config].Takes RespectLease nobody takes them before it expires; in any case
// it says which instances nobody has any more (Claim).
//
// The process renews it in the database, each third of its length. It has lapsed when it was not renewed in time by the clock of either: by
// the process's own, which runs from before it asked and does not jump; or by the database's, which goes on while the
// process and its machine stand still. Who was without it for a moment cannot know that nobody took its instances meanwhile.
type lease struct {
	sync.Mutex
	until  time.Time // by this process's clock
	begun  bool
	lapses int
}

// lapsed is how often the lease has lapsed.
func (l *lease) lapsed() int {
	l.Lock()
	defer l.Unlock()
	if time.Now().After(l.until) && !l.until.IsZero() {
		l.lapses, l.until = l.lapses+1, time.Time{}
	}
	return l.lapses
}

// expired says whether the lease is not held now.
func (l *lease) expired() bool {
	l.Lock()
	defer l.Unlock()
	return l.until.IsZero() || time.Now().After(l.until)
}

// renewed notes that the lease was renewed by a statement that was sent at a time; live is whether it had not expired in the database.
func (l *lease) renewed(sent time.Time, length time.Duration, live bool) {
	l.lapsed()
	l.Lock()
	defer l.Unlock()
	if !live && l.begun { // also if that was counted already: what was taken since was nobody's to keep
		l.lapses++
	}
	l.until, l.begun = sent.Add(length), true
}

// renewStatement is a process's sign of life: it renews the lease, says whether it had not expired, and tells what operators want to see.
const renewStatement = `
WITH old AS (SELECT expires > clock_timestamp() AS live FROM {schema}.processes WHERE id = $1)
INSERT INTO {schema}.processes AS p (id, owner, expires, address, claims, pending, pending_for, max_instances)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3), $4, $5, $6, make_interval(secs => $7), $8)
ON CONFLICT (id) DO UPDATE SET heartbeat = clock_timestamp(), expires = excluded.expires,
    claims = excluded.claims, max_instances = excluded.max_instances, pending = excluded.pending, pending_for = excluded.pending_for
RETURNING coalesce((SELECT live FROM old), false)`

func (c *Container) renewLease(ctx context.Context) error { return c.renewLeaseOn(ctx, c.pool) }

// querier is a pool or a connection.
type querier interface {
	QueryRow(ctx context.Context, statement string, args ...any) pgx.Row
}

func (c *Container) renewLeaseOn(ctx context.Context, db querier) error {
	var stats batcher.Stats
	if c.writes != nil {
		stats = c.writes.Stats()
	}
	var live bool
	sent := time.Now()
	err := db.QueryRow(ctx, c.sql(renewStatement), pgx.QueryExecModeExec, c.process, c.cfg.Owner, c.cfg.Lease.Seconds(),
		c.cfg.Address, c.claims.Load(), stats.Pending, stats.Oldest.Seconds(), max(0, c.cfg.MaxInstances)).Scan(&live)
	if err == nil {
		c.lease.renewed(sent, c.cfg.Lease, live)
	}
	return err
}

// keepLease renews the lease until the container has saved all and let go of it. It does nothing else, so that nothing else holds it up. Where the pool does not do it in time, because
// all of its connections hang or are busy, it makes a connection of its own.
func (c *Container) keepLease(ctx context.Context) {
	every(ctx, c.cfg.Lease/3, func() {
		attempt, cancel := context.WithTimeout(ctx, c.cfg.Lease/6)
		err := c.renewLease(attempt)
		late := attempt.Err() != nil
		cancel()
		if err != nil && late {
			attempt, cancel = context.WithTimeout(ctx, c.cfg.Lease/3)
			err = c.renewLeaseAlone(attempt)
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: lease not renewed", "error", withoutRows(err))
		}
	})
}

func (c *Container) renewLeaseAlone(ctx context.Context) error {
	conn, err := c.connectAlone(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return c.renewLeaseOn(ctx, conn)
}

// keepInformed finds out what was lost, and what others have learnt, until the container is closed: one statement for each, however many instances the process has.
func (c *Container) keepInformed(ctx context.Context) {
	every(ctx, c.cfg.Lease/3, func() {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		if err := c.findLost(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: owners not read", "error", err)
		}
		if err := c.LIDMap.sync(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: LID pairs of other processes not read", "error", withoutRows(err))
		}
	})
}

// goodbye is how long a process that ends tries to say so. If it cannot, its lease expires.
const goodbye = 2 * time.Second

// endLease takes the process's row away, since it has let go of everything, and those of processes that died long ago.
func (c *Container) endLease(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	_, err := c.pool.Exec(ctx, c.sql(`DELETE FROM {schema}.processes p WHERE id = $1
		OR expires < now() - interval '1 day' AND NOT EXISTS (SELECT FROM {schema}.instances i WHERE i.process = p.id)`), pgx.QueryExecModeExec, c.process)
	if err != nil {
		c.cfg.Logger.Warn("pgstore: lease not ended", "error", withoutRows(err))
	}
}

var takesNames = map[Takes]string{Forced: "forced", RespectLease: "respect_lease"}

// agreed refuses a database whose processes have agreed on something else; one of which nothing is known yet is refused by nobody.
func (c *Container) agreed(ctx context.Context) (known bool, err error) {
	var takes, realm string
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		return c.pool.QueryRow(ctx, c.sql(`SELECT takes, realm FROM {schema}.settings`), pgx.QueryExecModeExec).Scan(&takes, &realm)
	})
	var refused *statementError
	switch said := takesNames[c.cfg.Takes]; {
	case errors.Is(err, pgx.ErrNoRows), errors.As(err, &refused) && slices.Contains([]string{"42P01", "3F000", "42703"}, refused.code):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("pgstore: reading settings: %w", err)
	case realm != c.cfg.Realm:
		return false, fmt.Errorf("%w: this database is of realm %q, the configuration says %q (table settings)", ErrRealm, realm, c.cfg.Realm)
	case takes != said:
		return false, fmt.Errorf("%w: config: Takes is %s, but the processes of this database have agreed on %s (table settings)", ErrInvalidInput, said, takes)
	}
	return true, nil
}

// agree notes what this process says, or refuses if another one said otherwise.
func (c *Container) agree(ctx context.Context) error {
	if known, err := c.agreed(ctx); known || err != nil {
		return err
	}
	err := c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := c.pool.Exec(ctx, c.sql(`INSERT INTO {schema}.settings (takes, realm) VALUES ($1, $2) ON CONFLICT DO NOTHING`),
			pgx.QueryExecModeExec, takesNames[c.cfg.Takes], c.cfg.Realm)
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: writing settings: %w", err)
	}
	_, err = c.agreed(ctx)
	return err
}
