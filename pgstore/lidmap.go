package pgstore

import (
	"context"
	"errors"
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

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

// LIDMap is the mapping between phone numbers and LIDs, one to one, shared by all devices of a database. It is
// safe for concurrent use.
//
// Answers, also negative ones, are kept in memory, about as many as [Config].MemoryBudget has kilobytes. New pairs are written through,
// those of concurrent calls in one transaction, and seen when they are durable; while the database is away they are seen after
// [Config].OutageWait and written when it is back, and from [Config].PendingLimit on writers block. No lock is held while the
// database is asked. What other processes store contradicts an answer for no longer than a third of [Config].Lease (lidsync.go).
type LIDMap struct {
	c *Container

	mu struct {
		sync.RWMutex
		lids      map[string]string // by phone number; "" is known to be absent
		pns       map[string]string // by LID
		version   uint64            // grows with every pair that is learnt
		synced    *time.Time        // by the database's clock, when memory was compared with what others have stored; nil for never
		meanwhile map[string]bool   // what is learnt while a comparison is under way, of either side; nil if none is
		queue     []*lidBatch       // what is not saved, in order
		lost      map[string]string // LIDs by phone number that a database which went back may have lost
		rewound   struct {          // where and when that was noticed
			timeline string
			at       time.Time
		}
		room    chan struct{} // closed when the queue gets shorter; nil if nobody waits for that
		saving  bool          // the saver runs
		closed  bool
		refused int   // pairs that were seen and then refused
		refusal error // why
	}
}

// lidBatch is a set of pairs on its way to the table.
type lidBatch struct {
	pairs   map[string]string // LID by phone number
	byLID   map[string]string // the same, the other way round
	sealed  bool              // the saver has it
	seen    bool              // some did not wait, and go on with it from memory
	done    chan struct{}     // closed when it is saved or refused
	refused map[string]error  // by phone number; set before done is closed
}

var _ store.LIDStore = (*LIDMap)(nil)

func newLIDMap(c *Container) *LIDMap {
	m := &LIDMap{c: c}
	m.mu.lids, m.mu.pns = make(map[string]string), make(map[string]string)
	return m
}

// flush waits until all pairs that were put before are saved.
func (m *LIDMap) flush(ctx context.Context) error {
	for done := false; !done; {
		var err error
		if done, err = m.saveLost(ctx); err != nil {
			return err
		}
	}
	m.mu.RLock()
	batches := slices.Clone(m.mu.queue)
	m.mu.RUnlock()
	for _, batch := range batches {
		select {
		case <-batch.done:
			for _, err := range batch.refused {
				return fmt.Errorf("pgstore: storing LID mappings: %w", err)
			}
		case <-ctx.Done():
			return fmt.Errorf("pgstore: storing LID mappings: %w", context.Cause(ctx))
		}
	}
	return nil
}

// close saves what is still queued, and tells what it could not save.
func (m *LIDMap) close(ctx context.Context) error {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.Unlock()
	m.run(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	unsaved := len(m.mu.lost)
	m.mu.lost = nil
	for _, batch := range m.mu.queue {
		unsaved += len(batch.pairs)
		batch.refused = make(map[string]error, len(batch.pairs))
		for pn := range batch.pairs {
			batch.refused[pn] = ErrClosed
		}
		close(batch.done)
	}
	m.mu.queue = nil
	m.roomLocked()
	var errs []error
	if unsaved > 0 {
		errs = append(errs, fmt.Errorf("%w: %d LID pairs are not saved", ErrUnavailable, unsaved))
	}
	if m.mu.refused > 0 {
		errs = append(errs, fmt.Errorf("pgstore: %d LID pairs were refused: %w", m.mu.refused, m.mu.refusal))
	}
	return errors.Join(errs...)
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
	if m.c.closed() {
		return nil, m.failed(ErrClosed)
	}
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
			if !ok && storableUser(user) {
				missing = append(missing, user)
			}
			found[user] = other
		}
		m.mu.RUnlock()
		if len(missing) == 0 {
			return found, nil
		}
		pairs, err := m.query(ctx, byPN, missing)
		if err != nil {
			return nil, m.failed(err)
		}
		if m.keep(byPN, missing, pairs, version) {
			for _, p := range pairs {
				if byPN {
					found[p.PN.User] = p.LID.User
				} else {
					found[p.LID.User] = p.PN.User
				}
			}
			return found, nil
		}
	}
}

// keep remembers what the table answered, unless a pair was learnt since version.
func (m *LIDMap) keep(byPN bool, asked []string, pairs []store.LIDMapping, version uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.version != version {
		return false
	}
	known := m.mu.pns
	if byPN {
		known = m.mu.lids
	}
	for _, user := range asked {
		known[user] = ""
	}
	for _, p := range pairs {
		m.mu.lids[p.PN.User], m.mu.pns[p.LID.User] = p.LID.User, p.PN.User
	}
	m.shrinkLocked()
	return true
}

// minLIDAnswers is how many answers are kept in each direction whatever the budget.
const minLIDAnswers = 1000

// shrinkLocked forgets answers, any of them, until no more are kept than may be. While a pair is seen that is not in the table yet,
// nothing is forgotten: the table would give the old answer.
func (m *LIDMap) shrinkLocked() {
	if m.c.cfg.MemoryBudget < 0 || slices.ContainsFunc(m.mu.queue, func(b *lidBatch) bool { return b.seen }) {
		return
	}
	limit := max(minLIDAnswers, int(m.c.cfg.MemoryBudget>>10))
	for _, known := range []map[string]string{m.mu.lids, m.mu.pns} {
		for user := range known {
			if len(known) <= limit {
				break
			}
			delete(known, user)
		}
	}
}

// storableUser says whether the user part of a JID is stored as itself. A longer one would come back cut.
func storableUser(user string) bool { return len(escapeID(user)) <= maxIDBytes }

func (m *LIDMap) query(ctx context.Context, byPN bool, users []string) (pairs []store.LIDMapping, err error) {
	column := "lid"
	if byPN {
		column = "pn"
	}
	ids := make([]string, len(users))
	for i, user := range users {
		ids[i] = keyID(user)
	}
	err = m.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		rows, err := m.c.pool.Query(ctx, m.c.sql(`SELECT lid, pn FROM {schema}.lid_map WHERE `+column+` = ANY($1)`), pgx.QueryExecModeExec, ids)
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
	if !storableUser(lid.User) || !storableUser(pn.User) {
		return invalid("LID or phone number is too long")
	}
	return m.put(ctx, []store.LIDMapping{{LID: lid, PN: pn}})
}

// PutManyLIDMappings implements [store.LIDStore]; invalid entries are skipped. Thousands are stored in pieces.
func (m *LIDMap) PutManyLIDMappings(ctx context.Context, mappings []store.LIDMapping) error {
	valid := make([]store.LIDMapping, 0, len(mappings))
	for _, p := range mappings {
		if p.LID.Server == types.HiddenUserServer && p.PN.Server == types.DefaultUserServer && storableUser(p.LID.User) && storableUser(p.PN.User) {
			valid = append(valid, p)
		}
	}
	return m.put(ctx, valid)
}

func (m *LIDMap) put(ctx context.Context, pairs []store.LIDMapping) error {
	if m.c.closed() {
		return m.failed(ErrClosed)
	}
	news := m.unknown(pairs)
	if len(news) == 0 {
		return nil
	}
	return m.failed(m.putNew(ctx, news))
}

// failed tells of an error of a call, and returns it.
func (m *LIDMap) failed(err error) error {
	if err != nil {
		m.c.observers.failed("", err)
	}
	return err
}

func (m *LIDMap) putNew(ctx context.Context, news map[string]string) error {
	batches, err := m.enqueue(ctx, news)
	if err != nil {
		return err
	}
	patience := time.NewTimer(m.c.cfg.OutageWait)
	defer patience.Stop()
	waiting := m.c.waits(WaitLIDPair, "")
	var inVain error
	defer func() { waiting.over(inVain) }()
	for i, batch := range batches {
		select {
		case <-batch.done:
			for pn := range news {
				if err := batch.refused[pn]; err != nil {
					return fmt.Errorf("pgstore: storing LID mapping: %w", err)
				}
			}
		case <-ctx.Done():
			inVain = fmt.Errorf("%w: storing LID mapping: %w", ErrUnavailable, context.Cause(ctx))
			return inVain
		case <-patience.C:
			inVain = context.DeadlineExceeded
			m.goOn(news, batches[i:])
			return nil
		}
	}
	return nil
}

// goOn makes pairs visible that are not saved yet.
func (m *LIDMap) goOn(pairs map[string]string, batches []*lidBatch) {
	m.c.cfg.Logger.Warn("pgstore: database is away, LID mapping kept in memory", "count", len(pairs))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, batch := range batches {
		batch.seen = true
	}
	m.learnLocked(pairs)
}

// pending is how many pairs are not durable.
func (m *LIDMap) pending() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := len(m.mu.lost)
	for _, batch := range m.mu.queue {
		n += len(batch.pairs)
	}
	return n
}

// enqueue adds pairs to the queue and sees to it that the saver runs. It blocks while the queue is full.
func (m *LIDMap) enqueue(ctx context.Context, pairs map[string]string) (batches []*lidBatch, err error) {
	for pn, lid := range pairs {
		batch, err := m.enqueueOne(ctx, pn, lid)
		if err != nil {
			return nil, err
		}
		if len(batches) == 0 || batches[len(batches)-1] != batch {
			batches = append(batches, batch)
		}
	}
	return batches, nil
}

func (m *LIDMap) enqueueOne(ctx context.Context, pn, lid string) (*lidBatch, error) {
	for {
		m.mu.Lock()
		if m.mu.closed {
			m.mu.Unlock()
			return nil, ErrClosed
		}
		pending := 0
		for _, batch := range m.mu.queue {
			pending += len(batch.pairs)
		}
		if pending < m.c.cfg.PendingLimit {
			defer m.mu.Unlock()
			return m.addLocked(pn, lid), nil
		}
		if m.mu.room == nil {
			m.mu.room = make(chan struct{})
		}
		room := m.mu.room
		m.mu.Unlock()
		waiting := m.c.waits(WaitBacklog, "")
		select {
		case <-room:
			waiting.over(nil)
		case <-ctx.Done():
			waiting.over(context.Cause(ctx))
			return nil, fmt.Errorf("%w: storing LID mapping: %w: %w", ErrUnavailable, batcher.ErrBacklogFull, context.Cause(ctx))
		}
	}
}

// addLocked adds a pair to the last batch if that may still change, else to a new one.
func (m *LIDMap) addLocked(pn, lid string) *lidBatch {
	n := len(m.mu.queue)
	if n == 0 || m.mu.queue[n-1].sealed || len(m.mu.queue[n-1].pairs) >= m.c.segmentSize() {
		m.mu.queue = append(m.mu.queue, &lidBatch{pairs: make(map[string]string), byLID: make(map[string]string), done: make(chan struct{})})
		n++
	}
	batch := m.mu.queue[n-1]
	if old, ok := batch.byLID[lid]; ok {
		delete(batch.pairs, old)
	}
	if old, ok := batch.pairs[pn]; ok {
		delete(batch.byLID, old)
	}
	batch.pairs[pn], batch.byLID[lid] = lid, pn
	m.saveLocked()
	return batch
}

func (m *LIDMap) saveLocked() {
	if !m.mu.saving {
		m.mu.saving = true
		m.c.background(m.run)
	}
}

// roomLocked lets those go on who wait for the queue to get shorter.
func (m *LIDMap) roomLocked() {
	if m.mu.room != nil {
		close(m.mu.room)
		m.mu.room = nil
	}
}

// run is the saver: one batch after the other, until there is none or the context ends. What is not saved then stays queued.
func (m *LIDMap) run(ctx context.Context) {
	for {
		m.mu.Lock()
		m.mu.saving = len(m.mu.queue)+len(m.mu.lost) > 0
		if !m.mu.saving {
			m.mu.Unlock()
			return
		}
		if len(m.mu.queue) == 0 {
			m.mu.Unlock()
			if _, err := m.saveLost(ctx); err != nil { // the context ended
				m.mu.Lock()
				m.mu.saving = false
				m.mu.Unlock()
				return
			}
			continue
		}
		batch := m.mu.queue[0]
		batch.sealed = true
		m.mu.Unlock()
		err := m.saveBatch(ctx, batch)
		m.mu.Lock()
		if err != nil { // the context ended
			m.mu.saving = false
			m.mu.Unlock()
			return
		}
		m.mu.queue = m.mu.queue[1:]
		m.learnLocked(m.notSupersededLocked(batch))
		if batch.seen {
			for _, err := range batch.refused {
				m.mu.refused++
				m.mu.refusal = err
			}
		}
		m.roomLocked()
		m.mu.Unlock()
		close(batch.done)
	}
}

// saveBatch saves the pairs, and notes those that the database refuses. It fails only if the context ends.
func (m *LIDMap) saveBatch(ctx context.Context, batch *lidBatch) error {
	var guilty bool // the server refused what it was given, and not the statement as such
	save := func(pairs map[string]string) error {
		return m.c.persist(ctx, attemptTimeout, func(ctx context.Context) error {
			err := m.save(ctx, pairs)
			guilty = aboutData(err)
			return err
		})
	}
	err := save(batch.pairs)
	if err == nil || ctx.Err() != nil {
		return err
	}
	oneByOne := len(batch.pairs) > 1 && guilty // one of them is, the others are not
	batch.refused = make(map[string]error)
	for pn, lid := range batch.pairs {
		why := err
		if oneByOne {
			why = save(map[string]string{pn: lid})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if why != nil {
			batch.refused[pn] = why
		}
	}
	m.c.cfg.Logger.Error("pgstore: database refuses LID pairs", "count", len(batch.refused), "error", err)
	return nil
}

// notSupersededLocked leaves out what was refused, and the pairs of which a newer one was seen already.
func (m *LIDMap) notSupersededLocked(batch *lidBatch) map[string]string {
	pairs := maps.Clone(batch.pairs)
	maps.DeleteFunc(pairs, func(pn, lid string) bool {
		if batch.refused[pn] != nil {
			return true
		}
		return slices.ContainsFunc(m.mu.queue, func(newer *lidBatch) bool {
			_, samePN := newer.pairs[pn]
			_, sameLID := newer.byLID[lid]
			return newer.seen && (samePN || sameLID)
		})
	})
	return pairs
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

// learnLocked makes pairs visible; older pairings of either side go.
func (m *LIDMap) learnLocked(pairs map[string]string) {
	m.mu.version++
	for pn, lid := range pairs {
		if old := m.mu.lids[pn]; old != "" && old != lid {
			m.mu.pns[old] = ""
		}
		if old := m.mu.pns[lid]; old != "" && old != pn {
			m.mu.lids[old] = ""
		}
		m.mu.lids[pn], m.mu.pns[lid] = lid, pn
		if m.mu.meanwhile != nil {
			m.mu.meanwhile[pn], m.mu.meanwhile[lid] = true, true
		}
	}
	m.shrinkLocked()
}

func (m *LIDMap) save(ctx context.Context, pairs map[string]string) error {
	return pgx.BeginFunc(ctx, m.c.pool, func(tx pgx.Tx) error { return m.saveIn(ctx, tx, pairs) })
}

// sortedPairs are the columns of pairs in one order, so that two writers do not wait for each other in a circle.
func sortedPairs(pairs map[string]string) (lids, pns []string) {
	for pn := range pairs {
		pns = append(pns, pn)
	}
	slices.SortFunc(pns, func(a, b string) int { return strings.Compare(pairs[a], pairs[b]) })
	for i, pn := range pns {
		lids = append(lids, keyID(pairs[pn]))
		pns[i] = keyID(pn)
	}
	return lids, pns
}

func (m *LIDMap) saveIn(ctx context.Context, tx pgx.Tx, pairs map[string]string) error {
	lids, pns := sortedPairs(pairs)
	// Two joins, each on a column with an index: one over both would compare every pair with every row.
	if _, err := tx.Exec(ctx, m.c.sql(`WITH n AS (SELECT * FROM unnest($1::text[], $2::text[]) AS n (lid, pn)),
		old AS (SELECT l.lid FROM {schema}.lid_map l WHERE l.lid IN (
			SELECT l.lid FROM {schema}.lid_map l JOIN n ON l.lid = n.lid WHERE l.pn <> n.pn
			UNION ALL SELECT l.lid FROM {schema}.lid_map l JOIN n ON l.pn = n.pn WHERE l.lid <> n.lid) ORDER BY l.lid FOR UPDATE OF l)
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
	if d.ID == nil {
		return nil
	}
	return pairOf(*d.ID, d.LID)
}

func pairOf(pn, lid types.JID) map[string]string {
	if lid.IsEmpty() || pn.Server != types.DefaultUserServer || lid.Server != types.HiddenUserServer {
		return nil
	}
	return map[string]string{pn.User: lid.User}
}

func (m *LIDMap) putOwn(ctx context.Context, tx pgx.Tx, d *store.Device) error {
	pair := ownPair(d)
	if pair == nil {
		return nil
	}
	return m.saveIn(ctx, tx, pair)
}

func (m *LIDMap) learnOwn(d *store.Device) { m.learn(ownPair(d)) }

// learn makes pairs visible that are in the table.
func (m *LIDMap) learn(pairs map[string]string) {
	if len(pairs) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.learnLocked(pairs)
}

// add stores the pairs that contradict none that is there, in a transaction of their own, and says how many were new.
func (m *LIDMap) add(ctx context.Context, pairs map[string]string) (stored int, err error) {
	lids, pns := sortedPairs(pairs)
	news := make(map[string]string)
	err = m.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		rows, err := m.c.pool.Query(ctx, m.c.sql(`INSERT INTO {schema}.lid_map (lid, pn) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING RETURNING lid, pn`),
			pgx.QueryExecModeExec, lids, pns)
		if err != nil {
			return err
		}
		var lid, pn string
		_, err = pgx.ForEachRow(rows, []any{&lid, &pn}, func() error {
			news[unescapeID(pn)] = unescapeID(lid)
			return nil
		})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("storing LID mappings: %w", err)
	}
	m.learn(news)
	return len(news), nil
}
