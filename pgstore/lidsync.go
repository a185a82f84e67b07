package pgstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// lidOverlap is how far back a sync looks beyond the last one: longer than the transaction that stores a pair may take between its row and its commit.
const lidOverlap = 2 * attemptTimeout

// sync corrects answers in memory by what other processes have stored, as often as the lease is renewed:
//
//  1. Read the pairs that are new since the last time.
//  2. Learn those of which memory says something else. What nobody here has asked for is left alone, and so is what this process has learnt itself and
//     not yet saved, and what it has learnt while the table was read: the rows may be older. The next time reads them again, since it looks
//     further back than to this time.
func (m *LIDMap) sync(ctx context.Context) error {
	m.mu.Lock()
	m.mu.meanwhile = make(map[string]bool)
	since := m.mu.synced
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.meanwhile = nil
	}()
	pairs := make(map[string]string)
	var now time.Time
	rows, err := m.c.pool.Query(ctx, m.c.sql(`SELECT l.lid, l.pn, t.now FROM (SELECT clock_timestamp() AS now) AS t
		LEFT JOIN {schema}.lid_map l ON l.changed_at > coalesce($1, t.now) - make_interval(secs => $2)`), pgx.QueryExecModeExec, since, lidOverlap.Seconds())
	if err != nil {
		return fmt.Errorf("pgstore: reading LID pairs: %w", err)
	}
	var lid, pn *string
	_, err = pgx.ForEachRow(rows, []any{&lid, &pn, &now}, func() error {
		if lid != nil && pn != nil {
			pairs[unescapeID(*pn)] = unescapeID(*lid)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pgstore: reading LID pairs: %w", err)
	}
	m.correct(pairs, now)
	return nil
}

// correct learns what contradicts memory, and was not learnt meanwhile.
func (m *LIDMap) correct(pairs map[string]string, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.synced = &now
	wrong := make(map[string]string)
	for pn, lid := range m.notSupersededLocked(&lidBatch{pairs: pairs}) {
		if m.mu.meanwhile[pn] || m.mu.meanwhile[lid] {
			continue
		}
		knownLID, known1 := m.mu.lids[pn]
		knownPN, known2 := m.mu.pns[lid]
		if known1 && knownLID != lid || known2 && knownPN != pn {
			wrong[pn] = lid
		}
	}
	if len(wrong) > 0 {
		m.learnLocked(wrong)
	}
}
