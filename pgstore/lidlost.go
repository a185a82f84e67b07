package pgstore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// again writes all pairs that are in memory once more, after the database went back, when nothing else is to be saved. Instances notice one by one;
// it is done once for those on one timeline, within a minute.
func (m *LIDMap) again(timeline string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed || m.mu.rewound.timeline == timeline && time.Since(m.mu.rewound.at) < time.Minute {
		return
	}
	m.mu.rewound.timeline, m.mu.rewound.at = timeline, time.Now()
	m.mu.lost = make(map[string]string, len(m.mu.lids))
	for pn, lid := range m.mu.lids {
		if lid != "" {
			m.mu.lost[pn] = lid
		}
	}
	m.saveLocked()
}

// saveLost writes some of the pairs that the database may have lost, and says whether there was none. What a row contradicts is left out: another
// process may have learnt something newer. It fails only if the context ends.
func (m *LIDMap) saveLost(ctx context.Context) (done bool, err error) {
	var pns, lids, ids []string
	m.mu.RLock()
	for pn, lid := range m.mu.lost {
		if len(pns) == m.c.segmentSize() {
			break
		}
		pns, lids, ids = append(pns, pn), append(lids, keyID(lid)), append(ids, keyID(pn))
	}
	m.mu.RUnlock()
	if len(pns) == 0 {
		return true, nil
	}
	err = m.c.persist(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := m.c.pool.Exec(ctx, m.c.sql(`INSERT INTO {schema}.lid_map (lid, pn) SELECT * FROM unnest($1::text[], $2::text[]) AS n (lid, pn)
			ORDER BY lid ON CONFLICT DO NOTHING`), pgx.QueryExecModeExec, lids, ids)
		return err
	})
	if ctx.Err() != nil {
		return false, fmt.Errorf("pgstore: storing LID mappings: %w", context.Cause(ctx))
	} else if err != nil { // for good
		m.c.cfg.Logger.Error("pgstore: database refuses LID pairs", "count", len(pns), "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pn := range pns {
		delete(m.mu.lost, pn)
	}
	return false, nil
}
