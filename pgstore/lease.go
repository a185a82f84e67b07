package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// lease is a process's right to the instances that it has taken, with [Config].Takes RespectLease.
//
// The process renews it in the database, three times before it expires. It has lapsed when it was not renewed in time by the clock of either: by
// the process's own, which runs from before it asked and does not jump; or by the database's, which goes on while the
// process and its machine stand still. Who was without it for a moment cannot know that nobody took its instances meanwhile.
type lease struct {
	sync.Mutex
	until  time.Time // by this process's clock
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

// renewed notes that the lease was renewed by a statement that was sent at a time; live is whether it had not expired in the database.
func (l *lease) renewed(sent time.Time, length time.Duration, live bool) {
	l.lapsed()
	l.Lock()
	defer l.Unlock()
	if !live && !l.until.IsZero() {
		l.lapses++
	}
	l.until = sent.Add(length)
}

// renewStatement renews a lease, and says whether it had not expired.
const renewStatement = `
WITH old AS (SELECT expires > clock_timestamp() AS live FROM {schema}.processes WHERE id = $1)
INSERT INTO {schema}.processes AS p (id, owner, expires) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (id) DO UPDATE SET heartbeat = clock_timestamp(), expires = excluded.expires
RETURNING coalesce((SELECT live FROM old), false)`

func (c *Container) renewLease(ctx context.Context) error {
	var live bool
	sent := time.Now()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Lease)
	defer cancel()
	err := c.pool.QueryRow(ctx, c.sql(renewStatement), pgx.QueryExecModeExec, c.process, c.cfg.Owner, c.cfg.Lease.Seconds()).Scan(&live)
	if err == nil {
		c.lease.renewed(sent, c.cfg.Lease, live)
	}
	return err
}

// keepLease renews the lease until the container is closed.
func (c *Container) keepLease(ctx context.Context) {
	tick := time.NewTicker(c.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.renewLease(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: lease not renewed", "error", withoutRows(err))
		}
	}
}

// endLease takes the process's row away: it has let go of everything.
func (c *Container) endLease(ctx context.Context) {
	if c.cfg.Takes != RespectLease {
		return
	}
	if _, err := c.pool.Exec(ctx, c.sql(`DELETE FROM {schema}.processes WHERE id = $1`), pgx.QueryExecModeExec, c.process); err != nil {
		c.cfg.Logger.Warn("pgstore: lease not ended", "error", withoutRows(err))
	}
}

var takesNames = map[Takes]string{Forced: "forced", RespectLease: "respect_lease"}

// agree notes what this process says of takes, or refuses if another one said otherwise.
func (c *Container) agree(ctx context.Context) error {
	said := takesNames[c.cfg.Takes]
	var stored string
	err := c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		const ask = `SELECT takes FROM {schema}.settings`
		err := c.pool.QueryRow(ctx, c.sql(ask), pgx.QueryExecModeExec).Scan(&stored)
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if _, err = c.pool.Exec(ctx, c.sql(`INSERT INTO {schema}.settings (takes) VALUES ($1) ON CONFLICT DO NOTHING`), pgx.QueryExecModeExec, said); err != nil {
			return err
		}
		return c.pool.QueryRow(ctx, c.sql(ask), pgx.QueryExecModeExec).Scan(&stored)
	})
	if err != nil {
		return fmt.Errorf("pgstore: reading settings: %w", err)
	}
	if stored != said {
		return fmt.Errorf("%w: config: Takes is %s, but the processes of this database have agreed on %s (table settings)", ErrInvalidInput, said, stored)
	}
	return nil
}
