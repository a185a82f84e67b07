package pgstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

// What becomes of an instance whose database went back in time, or may have: an asynchronous standby was promoted, a backup restored, a volume put
// back. The rows are older than what has left on the wire, their ceilings included.
//
// Who takes it heals (heal). The take has raised abandon_through to the present: all sending chains in rows written up to there are abandoned
// when they are first used (unclean.go), which costs a bundle each, when a chat is answered. What else was published since is made anew, once:
//
//	pre-keys           ids go on 100,000 further, and those that were uploaded count as none, so that the client uploads fresh ones
//	app-state versions dropped with their MACs, so that the client fetches the collections
//
// Identities, credentials and all the rest stay. That an instance was healed is in the row of its pre-key counter, so that a crash in
// between heals it again.
//
// Who has it and lives replays (replay): its memory is newer than the rows.
//
//  1. Take the instance anew, under an epoch that was drawn before: so a lost answer is known to be ours.
//  2. At one moment, under the lock of its keys: give up all sending chains in memory, queue what memory holds of older writes before all that is
//     pending, so that nothing is reported as durable before that is so again (what is pending anyway keeps its place), and heal what is
//     published behind that. Rows that have come back are deleted. What is not held (what was evicted) stays abandoned with its row. App-state versions are dropped, since their MACs are
//     hardly ever in memory.
//  3. The flush goes on under the new epoch.
//
// Pairs of phone numbers and LIDs that memory holds are written again as well.
//
// Chains are given up because somebody else may have had the instance in the tail that was lost, and have sent on them above our ceilings.
// Only where takes respect leases, and ours never lapsed, nobody has: then they stay, with no ceiling on disk, as if they were new.

// preKeysSkipped is how many pre-key ids are left out: more than were made in any tail that was lost.
const preKeysSkipped = 100_000

// heal makes anew what an instance has published, if it was not done since the database went back.
func (c *Container) heal(ctx context.Context, in *instance) error {
	through := in.abandonThrough.Load()
	counter, _, err := in.keys.Get(ctx, nil, counterKey)
	if err != nil {
		return err
	}
	if healed, ok := counter.(*credsValue); through == 0 || ok && healed.HealedThrough >= through {
		return nil
	}
	stored, err := c.storedKeys(ctx, in.id, []string{typeName(typeAppStateMAC)})
	if err != nil {
		return err
	}
	err = in.rewrite(append(stored, counterKey), nil, func() {}, func(k cache.Key, _ cache.Held, v value) (cache.Write[value], bool) {
		return published(k, v, through)
	})
	if err != nil {
		return err
	}
	c.LIDMap.again(in.at().timeline)
	c.healed.Add(1)
	c.cfg.Logger.Warn("pgstore: database went back or may have, sending chains are abandoned", "instance", in.id)
	return nil
}

// published is what becomes of a key that others have seen; false for any other one.
func published(k cache.Key, v value, through int64) (cache.Write[value], bool) {
	switch {
	case k == counterKey:
		next := uint32(1)
		if counter, ok := v.(*credsValue); ok && counter.NextPreKeyID > 0 {
			next = counter.NextPreKeyID
		}
		return put(k, &credsValue{NextPreKeyID: (next+preKeysSkipped-1)%maxPreKeyID + 1, HealedThrough: through})
	case k.Type == typePreKey && v != nil:
		return put(k, &preKeyValue{Private: v.(*preKeyValue).Private, Uploaded: true, Stale: true})
	case k.Type == typeAppStateVersion, k.Type == typeAppStateMAC:
		return cache.Write[value]{Key: k, Op: cache.Delete}, true
	}
	return cache.Write[value]{}, false
}

func put(k cache.Key, v value) (cache.Write[value], bool) {
	return cache.Write[value]{Key: k, Op: cache.Put, Value: v}, true
}

// claimed is the epoch under which this process is taking the instance anew; -1 for none.
func (in *instance) claimed() int64 {
	in.fence.Lock()
	defer in.fence.Unlock()
	return cmp.Or(in.fence.claim, -1)
}

// retakeStatement is a take by who has the instance, of a row as it was found.
const retakeStatement = `
UPDATE {schema}.instances i SET
    epoch = $5, owner = $6, process = $7, taken_at = now(), timeline = db.timeline, system = db.system,
    step_through = greatest(i.step_through, i.seq), abandon_through = greatest(i.abandon_through, i.seq)
FROM ` + database + `
WHERE i.id = $1 AND i.epoch = $2 AND i.seq = $3 AND i.timeline = $4
RETURNING i.epoch, i.seq, i.timeline, i.step_through, i.abandon_through, ` + durably

// errReplayed is the result of a segment before which older writes were queued.
var errReplayed = fmt.Errorf("%w: after what was written before it", batcher.ErrAgain)

// replay takes an instance anew whose row was found to be older than what this process knows, and queues what is in memory. It fails with
// errReplayed if that comes before what is being flushed.
func (c *Container) replay(ctx context.Context, in *instance, found position) error {
	if in.claimed() < 0 {
		var claim int64
		if err := c.pool.QueryRow(ctx, c.sql(`SELECT `+newEpoch), pgx.QueryExecModeExec).Scan(&claim); err != nil {
			return err
		}
		in.fence.Lock()
		in.fence.claim = claim
		in.fence.Unlock()
	}
	if c.cfg.Takes == RespectLease { // only the database knows whether it has lapsed while the machine stood still
		if err := c.renewLease(ctx); err != nil {
			return err
		}
	}
	lapses := c.lease.lapsed()
	var t taken
	err := c.pool.QueryRow(ctx, c.sql(retakeStatement), pgx.QueryExecModeExec, in.id, found.epoch, found.seq, found.timeline,
		in.claimed(), c.cfg.Owner, c.process).Scan(&t.epoch, &t.seq, &t.timeline, &t.stepThrough, &t.abandonThrough, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		return errAgain
	} else if err != nil {
		return err
	}
	if err = c.rejoinDataKeys(ctx, in); err != nil {
		return err
	}
	stored, err := c.storedKeys(ctx, in.id, append(loadedTypes(), typeName(typeAppStateMAC)))
	if err != nil {
		return err
	}
	keep := c.cfg.Takes == RespectLease && c.lease.lapsed() == in.lapses && lapses == in.lapses || c.ignoreMarks
	older := make(map[cache.Key]bool)
	if !slices.Contains(stored, counterKey) {
		stored = append(stored, counterKey)
	}
	err = in.rewrite(stored, older, func() {
		in.fence.Lock()
		in.fence.epoch, in.fence.seq, in.fence.timeline, in.fence.claim = t.epoch, t.seq, t.timeline, 0
		in.fence.Unlock()
		in.lapses = lapses
		in.dropOpenGroups()
		in.stepThrough.Store(t.stepThrough)
		in.abandonThrough.Store(t.abandonThrough)
		if !keep {
			in.era.Add(1)
		}
	}, func(k cache.Key, held cache.Held, v value) (cache.Write[value], bool) {
		if rec, ok := v.(*recordValue); ok {
			rec.replayed(keep)
		}
		if w, ok := replayed(k, v, keep, t.abandonThrough); ok {
			return w, ok
		}
		w, ok := again(k, held, v)
		if ok {
			older[k] = true
		}
		return w, ok
	})
	if err != nil {
		return err
	}
	c.LIDMap.again(t.timeline)
	c.replayed.Add(1)
	c.cfg.Logger.Warn("pgstore: database went back or may have, instance taken anew and written again", "instance", in.id, "keys", len(older), "chains_kept", keep)
	if len(older) > 0 {
		return errReplayed
	}
	return nil
}

// replayed is what becomes of a key that others have seen when the rows are older than memory; false for any other one. keep is whether nobody else can
// have published anything.
func replayed(k cache.Key, v value, keep bool, through int64) (cache.Write[value], bool) {
	switch {
	case keep && k == counterKey:
		next := uint32(1)
		if counter, ok := v.(*credsValue); ok {
			next = counter.NextPreKeyID
		}
		return put(k, &credsValue{NextPreKeyID: next, HealedThrough: through})
	case keep && k.Type == typePreKey:
		return cache.Write[value]{}, false
	}
	return published(k, v, through)
}

// again is what is written of a key to have it as memory has it.
func again(k cache.Key, held cache.Held, v value) (cache.Write[value], bool) {
	switch residency := keyTypes[k.Type].residency; {
	case residency == cache.OnDemand || held == cache.HeldNot: // what is not in memory stays as it is
	case held == cache.HeldUnknown:
		return cache.Write[value]{Key: k, Op: cache.Delete}, true // it was deleted, and has come back
	case held == cache.HeldClean:
		return put(k, v)
	}
	return cache.Write[value]{}, false
}

// rewrite is [cache.Instance.Rewrite] with what it writes queued, in groups that fit a flush, however much is pending: before that if it is older, else
// behind it. The pre-key counter comes last: it says that all the rest is there. then runs when it is queued.
func (in *instance) rewrite(others []cache.Key, older map[cache.Key]bool, then func(), decide func(cache.Key, cache.Held, value) (cache.Write[value], bool)) error {
	return in.keys.Rewrite(others, func(writes []cache.Write[value]) error {
		order := func(k cache.Key) int {
			if k == counterKey {
				return int(typeCount)
			}
			return int(k.Type)
		}
		slices.SortStableFunc(writes, func(a, b cache.Write[value]) int { return cmp.Compare(order(a.Key), order(b.Key)) })
		var front, behind []op
		for _, w := range writes {
			if older[w.Key] {
				front = append(front, newOp(w))
			} else {
				behind = append(behind, newOp(w))
			}
		}
		groups := func(ops []op) [][]op { return slices.Collect(slices.Chunk(ops, in.c.segmentSize())) }
		if err := in.lane.Push(groups(front), groups(behind)); err != nil {
			return in.translate(err)
		}
		in.noteDeletions(writes)
		then()
		return nil
	}, decide)
}

// storedKeys lists the keys of types that an instance has in the database.
func (c *Container) storedKeys(ctx context.Context, id string, types []string) (keys []cache.Key, err error) {
	rows, err := c.pool.Query(ctx, c.sql(`SELECT key_type, key_id FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = ANY($2)`), pgx.QueryExecModeExec, id, types)
	if err != nil {
		return nil, err
	}
	var typ, keyID string
	_, err = pgx.ForEachRow(rows, []any{&typ, &keyID}, func() error {
		keys = append(keys, cache.Key{Type: typesByName[typ], ID: keyID})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pgstore: listing keys: %w", err)
	}
	return keys, nil
}
