package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// The audit trail (migrations/00005_audit.sql) is written by the database, in the transaction of what it tells of: by triggers what happens in the life of an
// instance, and what anybody changes who is not the library; by the flush itself, with [AuditAll], each key. So a process that dies, or one that is of another
// version, leaves nothing out.

// byLibrary marks a statement's transaction as one of the library, so that no trigger takes its writes for an outsider's. It must be evaluated before they happen.
const byLibrary = `set_config('pgstore.writer', 'on', true)`

// auditedSegments is what a flush does besides with [AuditAll]: one entry for each lane.
const auditedSegments = `, audited AS (
    SELECT {schema}.audit_flush(id, epoch, seq, array_agg(key_type ORDER BY key_type, key_id), array_agg(key_id ORDER BY key_type, key_id),
        array_agg(op ORDER BY key_type, key_id), array_agg(data ORDER BY key_type, key_id)) AS n
    FROM op GROUP BY id, epoch, seq
)`

// auditInterval is how often the months ahead are looked after.
const auditInterval = 24 * time.Hour

// keepAudit makes the audit trail's partitions ahead. Without them entries go to a default partition, which cannot be dropped month by month.
func (c *Container) keepAudit(ctx context.Context) {
	ahead := func() {
		_, err := c.pool.Exec(ctx, c.sql(`SELECT {schema}.audit_partitions()`), pgx.QueryExecModeExec)
		if err != nil && ctx.Err() == nil {
			c.cfg.Logger.Warn("pgstore: audit trail has no partitions ahead", "error", withoutRows(err))
		}
	}
	ahead()
	every(ctx, auditInterval, ahead)
}
