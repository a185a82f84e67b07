package pgstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// BenchmarkAudit flushes the sessions of messages in turns without the audit trail, with that of lives, and with that of all, and reports how many times as long it
// takes, and how much it adds to the write-ahead log.
func BenchmarkAudit(b *testing.B) {
	for _, rows := range []int{1, 100} {
		b.Run(fmt.Sprintf("%d rows", rows), func(b *testing.B) {
			levels := []pgstore.AuditLevel{pgstore.AuditLife, pgstore.AuditLife, pgstore.AuditAll}
			const none = 0
			rounds, wal := make([]func(int) error, len(levels)), make([]float64, len(levels))
			var dsn string // all are on one server, whose log they share
			for l, level := range levels {
				var c *pgstore.Container
				c, dsn = open(b, func(cfg *pgstore.Config) { cfg.Sends, cfg.Audit = pgstore.WriteBehind, level })
				if l == none {
					require.NoError(b, execSQL(b, dsn, `ALTER TABLE whatsmeow.auth_keys DISABLE TRIGGER USER`, `ALTER TABLE whatsmeow.instances DISABLE TRIGGER USER`))
				}
				d := pair(b, c.NewDevice())
				sessions := make(map[string][]byte, rows)
				rounds[l] = func(round int) error {
					for i := range rows {
						sessions[fmt.Sprintf("%d:0", i)] = recordOf(2600, round)
					}
					if err := d.Sessions.PutManySessions(ctx, sessions); err != nil {
						return err
					}
					return c.Flush(ctx)
				}
			}
			times := inTurns(b, rounds)
			for l, round := range rounds {
				const more = 50
				position := func() float64 { return scalar[float64](b, dsn, `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`) }
				before := position()
				for i := range more {
					require.NoError(b, round(b.N+i))
				}
				wal[l] = (position() - before) / float64(more*rows)
			}
			b.ReportMetric(times[1]/times[none], "life/none")
			b.ReportMetric(times[2]/times[none], "all/none")
			b.ReportMetric(times[none]/1000, "µs-none")
			b.ReportMetric(wal[none], "WAL-B/row-none")
			b.ReportMetric(wal[1], "WAL-B/row-life")
			b.ReportMetric(wal[2], "WAL-B/row-all")
		})
	}
}
