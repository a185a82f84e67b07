package life

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
)

// withPgBackRest is a restore to a moment in the middle of things, as an operator does it: the server and its disk are gone, and so is all WAL that was not in the repository.
func withPgBackRest(repository *pgtest.PgBackRest) loss {
	return loss{"pgBackRest", func(r *rewound) func() {
		repository.Backup()
		r.talkAbout("what the archive has")
		r.while(func() { repository.Mark("moment") })
		repository.Archive()
		return func() {
			repository.Disaster()
			repository.Restore("name", "moment")
		}
	}}
}

// The drill: pairing, traffic, a full backup, traffic, a moment, traffic that will be lost, a disaster, a restore to the moment. Then the client goes on: nobody scans a QR code, no message
// key is used twice, everything is read at once or after it was asked for again. It is in the log what was healed, and the audit trail tells of it.
func TestP4ARestoreWithPgBackRest(t *testing.T) {
	t.Parallel()
	for _, f := range []fate{dead, alive} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			repository := pgtest.NewPgBackRest(t)
			r := newRewoundOn(t, repository.DSN)
			r.cluster = repository.Cluster
			f.of(r, withPgBackRest(repository))
			r.requireHealed(f.name == alive.name)
			r.goOn()
		})
	}
}

// requireHealed requires that the instance was healed once, by who took it or by the owner that lived, and that the audit trail of the restored database is whole and tells of it.
func (r *rewound) requireHealed(living bool) {
	r.t.Helper()
	r.db.pool.Reset()
	stats := r.stats()
	r.t.Logf("healed by who took it: %d, written again by who had it: %d", stats.Healed, stats.Replayed)
	if living {
		require.EqualValues(r.t, 1, stats.Replayed)
	} else {
		require.EqualValues(r.t, 1, stats.Healed)
	}

	report, err := audit.Verify(r.ctx, r.db.pool, audit.Options{})
	require.NoError(r.t, err)
	require.Empty(r.t, report.Breaks)
	rows, err := r.db.pool.Query(r.ctx, `SELECT event, detail FROM whatsmeow.audit WHERE event IN ('paired', 'taken', 'rewound') ORDER BY n`)
	require.NoError(r.t, err)
	trail, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (what string, err error) {
		var event, detail string
		err = row.Scan(&event, &detail)
		return fmt.Sprintf("%s (%s)", event, detail), err
	})
	require.NoError(r.t, err)
	r.t.Logf("the audit trail, of %d entries: %q", report.Entries, trail)
	require.Equal(r.t, 1, r.db.number(`SELECT count(*) FROM whatsmeow.audit WHERE event = 'rewound' AND detail LIKE '%timeline 00000001 to 00000002'`))
}
