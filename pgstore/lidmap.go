package pgstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// LIDMap is the mapping between phone numbers and LIDs, one to one, shared by all devices of a database. It is
// safe for concurrent use.
//
// Answers, also negative ones, are kept in memory. New pairs are written through, those of concurrent calls in one
// transaction, and seen when they are durable; while the database is away they are seen after [Config].OutageWait
// and written when it is back. No lock is held while the database is asked.
type LIDMap struct {
	c *Container

	mu struct {
		sync.RWMutex
		lids    map[string]string // by phone number; "" is known to be absent
		pns     map[string]string // by LID
		version uint64            // grows with every pair that is learnt
		queue   *lidBatch         // what the saver takes next, or nil
		saving  bool              // the saver runs
	}
}

// lidBatch is a set of pairs on its way to the table.
type lidBatch struct {
	pairs map[string]string // LID by phone number
	done  chan struct{}     // closed when it is saved or refused
	err   error
}

var _ store.LIDStore = (*LIDMap)(nil)

func newLIDMap(c *Container) *LIDMap {
	m := &LIDMap{c: c}
	m.mu.lids, m.mu.pns = make(map[string]string), make(map[string]string)
	return m
}

// close saves what is still queued.
func (m *LIDMap) close(ctx context.Context) error {
	m.run(ctx)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.mu.queue != nil {
		return fmt.Errorf("%w: %d LID pairs are not saved", ErrUnavailable, len(m.mu.queue.pairs))
	}
	return nil
}

// GetLIDForPN implements [store.LIDStore]; a JID that is no phone number is an error.
func (m *LIDMap) GetLIDForPN(ctx context.Context, pn types.JID) (types.JID, error) {
	if pn.Server != types.DefaultUserServer {
		return types.JID{}, fmt.Errorf("%w: GetLIDForPN of the non-PN JID %s", ErrInvalidInput, pn)
	}
	found, err := m.lookup(ctx, true, []string{pn.User})
	if err != nil || found[pn.User] == "" {
		return types.JID{}, err
	}
	return types.JID{User: found[pn.User], Device: pn.Device, Server: types.HiddenUserServer}, nil
}

// GetPNForLID implements [store.LIDStore]; a JID that is no LID is an error.
func (m *LIDMap) GetPNForLID(ctx context.Context, lid types.JID) (types.JID, error) {
	if lid.Server != types.HiddenUserServer {
		return types.JID{}, fmt.Errorf("%w: GetPNForLID of the non-LID JID %s", ErrInvalidInput, lid)
	}
	found, err := m.lookup(ctx, false, []string{lid.User})
	if err != nil || found[lid.User] == "" {
		return types.JID{}, err
	}
	return types.JID{User: found[lid.User], Device: lid.Device, Server: types.DefaultUserServer}, nil
}

// GetManyLIDsForPNs implements [store.LIDStore]: only what it found; JIDs that are no phone numbers are skipped.
func (m *LIDMap) GetManyLIDsForPNs(ctx context.Context, pns []types.JID) (map[types.JID]types.JID, error) {
	if len(pns) == 0 {
		return nil, nil
	}
	users := make([]string, 0, len(pns))
	for _, pn := range pns {
		if pn.Server == types.DefaultUserServer {
			users = append(users, pn.User)
		}
	}
	found, err := m.lookup(ctx, true, users)
	if err != nil {
		return nil, err
	}
	result := make(map[types.JID]types.JID, len(pns))
	for _, pn := range pns {
		if lid := found[pn.User]; lid != "" && pn.Server == types.DefaultUserServer {
			result[pn] = types.JID{User: lid, Device: pn.Device, Server: types.HiddenUserServer}
		}
	}
	return result, nil
}

// preload gets the pairs of all users with whom an instance has a session, so that no message waits for one.
func (m *LIDMap) preload(ctx context.Context, keys *cache.Instance[value]) error {
	pns, lids := make(map[string]struct{}), make(map[string]struct{})
	err := keys.Read(ctx, nil, func(v *view) error {
		for _, id := range v.IDs(typeSession, "") {
			address, _, _ := strings.Cut(unescapeID(id), ":")
			user, agent, _ := strings.Cut(address, "_")
			switch agent {
			case "":
				pns[user] = struct{}{}
			case lidAgent:
				lids[user] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, err = m.lookup(ctx, false, slices.Collect(maps.Keys(lids))); err != nil {
		return err
	}
	_, err = m.lookup(ctx, true, slices.Collect(maps.Keys(pns)))
	return err
}

// lidAgent is how a Signal address says that its user is a LID.
var lidAgent = strconv.Itoa(int(types.JID{Server: types.HiddenUserServer}.ActualAgent()))

// lookup answers from memory and asks the table for the rest. If a pair was learnt meanwhile, it begins again.
func (m *LIDMap) lookup(ctx context.Context, byPN bool, users []string) (map[string]string, error) {
	found := make(map[string]string, len(users))
	for {
		var missing []string
		m.mu.RLock()
		known, version := m.mu.pns, m.mu.version
		if byPN {
			known = m.mu.lids
		}
		for _, user := range users {
			other, ok := known[user]
			if !ok {
				missing = append(missing, keyID(user))
			}
			found[user] = other
		}
		m.mu.RUnlock()
		if len(missing) == 0 {
			return found, nil
		}
		if m.c.closed() {
			return nil, ErrClosed
		}
		pairs, err := m.query(ctx, byPN, missing)
		if err != nil {
			return nil, err
		}
		m.mu.Lock()
		if m.mu.version == version {
			for _, user := range users {
				if _, ok := known[user]; !ok {
					known[user] = ""
				}
			}
			for _, p := range pairs {
				m.mu.lids[p.PN.User], m.mu.pns[p.LID.User] = p.LID.User, p.PN.User
			}
		}
		m.mu.Unlock()
	}
}

func (m *LIDMap) query(ctx context.Context, byPN bool, users []string) (pairs []store.LIDMapping, err error) {
	column := "lid"
	if byPN {
		column = "pn"
	}
	err = m.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		rows, err := m.c.pool.Query(ctx, m.c.sql(`SELECT lid, pn FROM {schema}.lid_map WHERE `+column+` = ANY($1)`), pgx.QueryExecModeExec, users)
		if err != nil {
			return err
		}
		pairs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p store.LIDMapping, err error) {
			var lid, pn string
			err = row.Scan(&lid, &pn)
			p.LID.User, p.PN.User = unescapeID(lid), unescapeID(pn)
			return p, err
		})
		return err
	})
	return pairs, err
}

// PutLIDMapping implements [store.LIDStore]. A pair that is known costs nothing: the client stores it with every message.
func (m *LIDMap) PutLIDMapping(ctx context.Context, lid, pn types.JID) error {
	if lid.Server != types.HiddenUserServer || pn.Server != types.DefaultUserServer {
		return fmt.Errorf("%w: PutLIDMapping of %s and %s", ErrInvalidInput, lid, pn)
	}
	return m.put(ctx, []store.LIDMapping{{LID: lid, PN: pn}})
}

// PutManyLIDMappings implements [store.LIDStore]; invalid entries are skipped.
func (m *LIDMap) PutManyLIDMappings(ctx context.Context, mappings []store.LIDMapping) error {
	valid := make([]store.LIDMapping, 0, len(mappings))
	for _, p := range mappings {
		if p.LID.Server == types.HiddenUserServer && p.PN.Server == types.DefaultUserServer {
			valid = append(valid, p)
		}
	}
	return m.put(ctx, valid)
}

func (m *LIDMap) put(ctx context.Context, pairs []store.LIDMapping) error {
	news := m.unknown(pairs)
	if len(news) == 0 {
		return nil
	}
	if m.c.closed() {
		return ErrClosed
	}
	batch := m.enqueue(news)
	patience := time.NewTimer(m.c.cfg.OutageWait)
	defer patience.Stop()
	select {
	case <-batch.done:
		if batch.err != nil {
			return fmt.Errorf("pgstore: storing LID mapping: %w", batch.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: storing LID mapping: %w", ErrUnavailable, context.Cause(ctx))
	case <-patience.C:
		m.learn(news)
		m.c.cfg.Logger.Warn("pgstore: database is away, LID mapping kept in memory", "count", len(news))
		return nil
	}
}

// enqueue adds pairs to the next batch and sees to it that the saver runs.
func (m *LIDMap) enqueue(pairs map[string]string) *lidBatch {
	m.mu.Lock()
	defer m.mu.Unlock()
	batch := m.mu.queue
	if batch == nil {
		batch = &lidBatch{pairs: make(map[string]string), done: make(chan struct{})}
		m.mu.queue = batch
	}
	batch.add(pairs)
	if !m.mu.saving {
		m.mu.saving = true
		m.c.background(m.run)
	}
	return batch
}

// add merges newer pairs; older ones of the same LID go.
func (b *lidBatch) add(pairs map[string]string) {
	lids := make(map[string]struct{}, len(pairs))
	for _, lid := range pairs {
		lids[lid] = struct{}{}
	}
	maps.DeleteFunc(b.pairs, func(_, lid string) bool { _, newer := lids[lid]; return newer })
	maps.Copy(b.pairs, pairs)
}

// run is the saver: one batch after the other, until there is none or the context ends. What is not saved then stays queued.
func (m *LIDMap) run(ctx context.Context) {
	for {
		m.mu.Lock()
		batch := m.mu.queue
		m.mu.queue, m.mu.saving = nil, batch != nil
		m.mu.Unlock()
		if batch == nil {
			return
		}
		err := m.c.persist(ctx, attemptTimeout, func(ctx context.Context) error { return m.save(ctx, batch.pairs) })
		if err != nil && ctx.Err() != nil {
			m.putBack(batch)
			return
		}
		if err == nil {
			m.learn(m.notSuperseded(batch.pairs))
		}
		batch.err = err
		close(batch.done)
	}
}

// putBack queues a batch again, before what came after it.
func (m *LIDMap) putBack(batch *lidBatch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.saving = false
	if newer := m.mu.queue; newer != nil {
		newer.pairs, batch.pairs = batch.pairs, newer.pairs
		newer.add(batch.pairs)
		return
	}
	m.mu.queue = batch
}

// notSuperseded leaves out the pairs of which a newer one is queued and may have been learnt already.
func (m *LIDMap) notSuperseded(pairs map[string]string) map[string]string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.mu.queue == nil {
		return pairs
	}
	newer := &lidBatch{pairs: maps.Clone(pairs)}
	newer.add(m.mu.queue.pairs)
	maps.DeleteFunc(newer.pairs, func(pn, _ string) bool { _, queued := m.mu.queue.pairs[pn]; return queued })
	return newer.pairs
}

// unknown leaves out what is known already, and of pairs that contradict each other the earlier.
func (m *LIDMap) unknown(pairs []store.LIDMapping) map[string]string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	news, byLID := make(map[string]string), make(map[string]string)
	for _, p := range pairs {
		if old, ok := news[p.PN.User]; ok {
			delete(byLID, old)
		}
		if old, ok := byLID[p.LID.User]; ok {
			delete(news, old)
		}
		news[p.PN.User], byLID[p.LID.User] = p.LID.User, p.PN.User
	}
	for pn, lid := range news {
		if m.mu.lids[pn] == lid {
			delete(news, pn)
		}
	}
	return news
}

// learn makes pairs visible; older pairings of either side go.
func (m *LIDMap) learn(pairs map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.version++
	for pn, lid := range pairs {
		if old := m.mu.lids[pn]; old != "" && old != lid {
			m.mu.pns[old] = ""
		}
		if old := m.mu.pns[lid]; old != "" && old != pn {
			m.mu.lids[old] = ""
		}
		m.mu.lids[pn], m.mu.pns[lid] = lid, pn
	}
}

func (m *LIDMap) save(ctx context.Context, pairs map[string]string) error {
	return pgx.BeginFunc(ctx, m.c.pool, func(tx pgx.Tx) error { return m.saveIn(ctx, tx, pairs) })
}

// saveIn writes pairs in one order, so that two writers do not wait for each other in a circle.
func (m *LIDMap) saveIn(ctx context.Context, tx pgx.Tx, pairs map[string]string) error {
	lids, pns := make([]string, 0, len(pairs)), make([]string, 0, len(pairs))
	for pn := range pairs {
		pns = append(pns, pn)
	}
	slices.SortFunc(pns, func(a, b string) int { return strings.Compare(pairs[a], pairs[b]) })
	for i, pn := range pns {
		lids = append(lids, keyID(pairs[pn]))
		pns[i] = keyID(pn)
	}
	if _, err := tx.Exec(ctx, m.c.sql(`WITH old AS (SELECT l.lid FROM {schema}.lid_map l JOIN unnest($1::text[], $2::text[]) AS n (lid, pn)
			ON (l.lid = n.lid) <> (l.pn = n.pn) ORDER BY l.lid FOR UPDATE OF l)
		DELETE FROM {schema}.lid_map WHERE lid IN (SELECT lid FROM old)`), pgx.QueryExecModeExec, lids, pns); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, m.c.sql(`INSERT INTO {schema}.lid_map (lid, pn) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING`),
		pgx.QueryExecModeExec, lids, pns); err != nil {
		return err
	}
	var stored int
	err := tx.QueryRow(ctx, m.c.sql(`SELECT count(*) FROM {schema}.lid_map JOIN unnest($1::text[], $2::text[]) AS n (lid, pn) USING (lid, pn)`),
		pgx.QueryExecModeExec, lids, pns).Scan(&stored)
	if err == nil && stored < len(pns) {
		err = errAgain // another process stored a pair that contradicts ours since the first statement
	}
	return err
}

// ownPair is the device's own mapping, which must be durable with the device: without it messages to our own phone have no address.
func ownPair(d *store.Device) map[string]string {
	if d.LID.IsEmpty() || d.ID == nil || d.ID.Server != types.DefaultUserServer || d.LID.Server != types.HiddenUserServer {
		return nil
	}
	return map[string]string{d.ID.User: d.LID.User}
}

func (m *LIDMap) putOwn(ctx context.Context, tx pgx.Tx, d *store.Device) error {
	pair := ownPair(d)
	if pair == nil {
		return nil
	}
	return m.saveIn(ctx, tx, pair)
}

func (m *LIDMap) learnOwn(d *store.Device) {
	if pair := ownPair(d); pair != nil {
		m.learn(pair)
	}
}
