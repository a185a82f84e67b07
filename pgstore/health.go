package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Health is how a container is, for probes and for people. Package health serves it.
type Health struct {
	// Live is false when nothing helps but to start the process again. It never depends on the database: whoever restarts all bots because their
	// database is away loses what they hold in memory.
	Live bool
	// Ready is false when new work had better go elsewhere. Clients that are connected go on: sends and decrypts of what is in memory need
	// no database.
	Ready bool
	// Reasons say what is not as it should be. One that stops neither is a warning.
	Reasons []Reason
}

// Reason is one thing that is not as it should be.
type Reason struct {
	Code ReasonCode
	Text string // for people, without key material, and without the names of instances
}

// ReasonCode names a reason, and stays the same.
type ReasonCode string

// Reasons for which only a restart helps: Live and Ready are false.
const (
	ReasonClosed ReasonCode = "closed" // Close or Shutdown has ended
	ReasonStuck  ReasonCode = "stuck"  // the store does not answer, or a flush has outlasted its time limit: goroutines that hang
)

// Reasons to send new work elsewhere: Ready is false.
const (
	ReasonClosing             ReasonCode = "closing"              // Close or Shutdown is under way
	ReasonDatabaseUnreachable ReasonCode = "database_unreachable" // it did not answer
	ReasonDatabaseRefuses     ReasonCode = "database_refuses"     // it answers that a table or a right is missing
	ReasonDatabaseReadOnly    ReasonCode = "database_read_only"   // a standby, or one that takes no writes
	ReasonSchemaTooNew        ReasonCode = "schema_too_new"       // it was migrated to what this version must not use
	ReasonSchemaMissing       ReasonCode = "schema_missing"       // it is older than this version, or gone
	ReasonBacklogFull         ReasonCode = "backlog_full"         // writers are blocked: Config.PendingLimit or PendingBytes
	ReasonLeaseLapsed         ReasonCode = "lease_lapsed"         // others may claim what this process has
)

// Warnings: they change neither.
const (
	ReasonBacklogHigh     ReasonCode = "backlog_high"     // more than half of what blocks writers is pending
	ReasonBacklogOld      ReasonCode = "backlog_old"      // something has been pending for long
	ReasonInstanceStopped ReasonCode = "instance_stopped" // an instance stopped by itself, and nobody has taken it here since
	ReasonClockSkew       ReasonCode = "clock_skew"       // this machine's clock and the database's differ
)

// Unready says whether a reason makes a container unready; the others are warnings.
func (r ReasonCode) Unready() bool {
	return !slices.Contains([]ReasonCode{ReasonBacklogHigh, ReasonBacklogOld, ReasonInstanceStopped, ReasonClockSkew}, r)
}

// Dead says whether only a restart helps.
func (r ReasonCode) Dead() bool { return r == ReasonClosed || r == ReasonStuck }

const (
	healthTimeout = 2 * time.Second  // of asking the database
	stuckAfter    = time.Second      // without an answer from memory, which takes microseconds
	backlogOld    = 10 * time.Second // many times what a flush takes, and less than the default lease
	clockSkew     = 30 * time.Second // of what is told; a second is common
)

// Health looks at the container and asks its database, for no longer than two seconds.
func (c *Container) Health(ctx context.Context) Health {
	h := c.Liveness()
	if !h.Live {
		return h
	}
	stats := c.Stats()
	c.backlogHealth(&h, stats)
	c.stoppedHealth(&h)
	if c.closing.Load() {
		h.add(ReasonClosing, "the container is being closed")
		return h
	}
	if c.lease.expired() {
		h.add(ReasonLeaseLapsed, fmt.Sprintf("the lease of %v was not renewed in time", c.cfg.Lease))
	}
	c.databaseHealth(ctx, &h)
	return h
}

// Liveness is the part of Health that tells whether only a restart helps. It asks nobody outside of the process, and takes a
// second at the most.
func (c *Container) Liveness() Health {
	h := Health{Live: true, Ready: true}
	select {
	case <-c.closeDone:
		h.add(ReasonClosed, "the container is closed")
		return h
	default:
	}
	answered := make(chan Stats, 1)
	go func() { answered <- c.Stats() }() // takes every lock that a call takes
	select {
	case stats := <-answered:
		if stats.Batcher.Flying > 2*c.cfg.FlushTimeout {
			h.add(ReasonStuck, fmt.Sprintf("a flush has been under way for %.0f s, its limit is %v", stats.Batcher.Flying.Seconds(), c.cfg.FlushTimeout))
		}
	case <-time.After(stuckAfter):
		h.add(ReasonStuck, "the store does not answer")
	}
	return h
}

func (h *Health) add(code ReasonCode, text string) {
	h.Reasons = append(h.Reasons, Reason{code, text})
	h.Ready = h.Ready && !code.Unready()
	h.Live = h.Live && !code.Dead()
}

// backlogHealth looks at what is pending.
func (c *Container) backlogHealth(h *Health, stats Stats) {
	pending := fmt.Sprintf("%d of %d keys and %d of %d bytes are pending", stats.Batcher.Pending, c.cfg.PendingLimit, stats.Batcher.PendingBytes, c.cfg.PendingBytes)
	switch {
	case stats.Batcher.Blocked > 0:
		h.add(ReasonBacklogFull, fmt.Sprintf("%d writers are blocked, %s", stats.Batcher.Blocked, pending))
	case stats.Batcher.Pending > c.cfg.PendingLimit/2, stats.Batcher.PendingBytes > c.cfg.PendingBytes/2:
		h.add(ReasonBacklogHigh, pending)
	}
	if limit := max(backlogOld, 10*c.cfg.FlushInterval); stats.Batcher.Oldest > limit {
		h.add(ReasonBacklogOld, fmt.Sprintf("the oldest pending key has waited for %.0f s", stats.Batcher.Oldest.Seconds()))
	}
}

// stoppedHealth tells of instances that stopped because of something that somebody has to look at. That another process has taken one is no such thing.
func (c *Container) stoppedHealth(h *Health) {
	kinds := make(map[string]int)
	c.mu.Lock()
	for _, err := range c.mu.stopped {
		if !errors.Is(err, ErrOwnershipLost) && !errors.Is(err, ErrDeviceDeleted) {
			kinds[ErrorType(err)]++
		}
	}
	c.mu.Unlock()
	if len(kinds) == 0 {
		return
	}
	var texts []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		texts = append(texts, fmt.Sprintf("%d (%s)", kinds[kind], kind))
	}
	h.add(ReasonInstanceStopped, "instances that stopped by themselves: "+strings.Join(texts, ", "))
}

// databaseHealth asks the database for all that can be known of it at once. The tables are those without which nothing is saved.
func (c *Container) databaseHealth(ctx context.Context, h *Health) {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	var now time.Time
	var readOnly bool
	began := time.Now()
	err := c.pool.QueryRow(ctx, `SELECT clock_timestamp(), pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool`, pgx.QueryExecModeExec).Scan(&now, &readOnly)
	took := time.Since(began)
	current := false
	if err == nil {
		current, err = c.schemaCurrent(ctx)
	}
	if current {
		_, err = c.pool.Exec(ctx, c.sql(`SELECT FROM {schema}.auth_keys k JOIN {schema}.instances i ON i.id = k.instance_id LIMIT 0`), pgx.QueryExecModeExec)
	}
	switch {
	case errors.Is(err, ErrSchemaTooNew):
		h.add(ReasonSchemaTooNew, err.Error())
	case err != nil && !unavailable(err):
		h.add(ReasonDatabaseRefuses, withoutRows(err).Error())
	case err != nil:
		h.add(ReasonDatabaseUnreachable, "the database does not answer: "+unreachable(err))
	case !current:
		h.add(ReasonSchemaMissing, fmt.Sprintf("schema %s is not there, or older than this version of the library", c.cfg.Schema))
	case readOnly:
		h.add(ReasonDatabaseReadOnly, "the database takes no writes")
	}
	if skew := max(began.Sub(now), now.Sub(began.Add(took))); err == nil && skew > clockSkew {
		h.add(ReasonClockSkew, fmt.Sprintf("this machine's clock and the database's are %.0f s apart", skew.Seconds()))
	}
}

// unreachable is why a database was not reached, without what a probe's reader need not know: hosts, users and names of databases.
func unreachable(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		return "SQLSTATE " + pgErr.Code
	case errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err):
		return "timeout"
	}
	return "no connection"
}
