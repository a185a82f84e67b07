package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

// flushStatement makes the segments of many lanes durable in one round trip, each atomically:
//
//  1. lane: advance seq of the instances that are still as this process took and left them. A delayed,
//     repeated or foreign flush finds another epoch, seq or timeline and changes nothing. The row notes the timeline, to which
//     the owner may have gone since it took the instance ([Trust]). With [Config].Encryption the data key has to be there under which the rows are (encryption.go).
//  2. op: the writes of those lanes alone.
//  3. Delete, upsert and insert them. A key occurs once per segment and a lane once per flush, so the three do not meet.
//     What is inserted gives way to a row that is there (message secrets), unless that has nothing to be read, or is under a data key that is not there.
//
// With [AuditAll] each lane's writes go into the audit trail, in the same transaction.
//
// Lanes and keys are sorted, so that two flushes lock rows in one order. What is reported as durable
// is on disk, also in a database that commits asynchronously by default.
const flushStatement = `
WITH lane AS (
    UPDATE {schema}.instances i SET seq = i.seq + 1, timeline = l.timeline
    FROM {lanes}
    WHERE i.id = l.id AND i.epoch = l.epoch AND i.seq = l.seq
      AND l.timeline = substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8){keyed}
    RETURNING i.id, i.epoch, i.seq, ` + byLibrary + `
), op AS (
    SELECT lane.id, lane.epoch, lane.seq, o.key_type, o.key_id, o.op, o.data
    FROM unnest($5::text[], $6::text[], $7::text[], $8::smallint[], $9::text[]) AS o (instance_id, key_type, key_id, op, data)
    JOIN lane ON lane.id = o.instance_id
), removed AS (
    DELETE FROM {schema}.auth_keys k USING op
    WHERE op.op = 2 AND k.instance_id = op.id AND k.key_type = op.key_type AND k.key_id = op.key_id
), put AS (
    INSERT INTO {schema}.auth_keys (instance_id, key_type, key_id, data, seq)
    SELECT id, key_type, key_id, data::jsonb, seq FROM op WHERE op = 0
    ON CONFLICT (instance_id, key_type, key_id) DO UPDATE SET data = excluded.data, seq = excluded.seq, updated_at = now()
), first AS (
    INSERT INTO {schema}.auth_keys AS k (instance_id, key_type, key_id, data, seq)
    SELECT id, key_type, key_id, data::jsonb, seq FROM op WHERE op = 1
    ON CONFLICT (instance_id, key_type, key_id) DO UPDATE SET data = excluded.data, seq = excluded.seq, updated_at = now()
    WHERE jsonb_typeof(k.data->'secret') IS DISTINCT FROM 'string'
      AND (jsonb_typeof(k.data->'enc') IS DISTINCT FROM 'string' OR NOT {schema}.sealed_by_data_key(k.instance_id, k.data->>'enc'))
){audited}
SELECT id, ` + durably + `{audits}
FROM lane`

// What the lanes of a flush are, and, with encryption, the key without which none is.
const (
	plainLanes = `unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS l (id, epoch, seq, timeline)`
	keyedLanes = `unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $10::text[]) AS l (id, epoch, seq, timeline, key)`
	keyedLane  = `
      AND {schema}.has_data_key(l.id, l.key)`
)

// flush is the batcher's flush function:
//
//  1. Send the statement. The lanes for which it held are durable.
//  2. Ask at once how the database has all others (resolve). A lane that somebody else has taken, or whose row is older or gone,
//     stops. One whose segment an earlier attempt has committed, so that only the answer was lost, is durable.
//  3. The rest are this process's, as it left them or taken anew from a database that went back. They are sent again without a pause.
//  4. What is left then, or when a query failed, is tried again later, and the others need not wait for it.
func (c *Container) flush(ctx context.Context, segments []segment) ([]error, error) {
	sorted := slices.SortedFunc(slices.Values(segments), func(a, b segment) int { return strings.Compare(a.Lane.id, b.Lane.id) })
	ended := make(map[*instance]error)
	rest, err := c.flushOnce(ctx, sorted, ended)
	if err == nil && len(rest) > 0 {
		rest, err = c.flushOnce(ctx, rest, ended)
	}
	switch {
	case err != nil:
		err = flushError(err)
	case len(rest) > 0:
		err = errAgain
	}
	if len(rest) == len(segments) {
		return nil, err
	}
	for _, s := range rest {
		ended[s.Lane] = fmt.Errorf("%w: %w", batcher.ErrAgain, err)
	}
	results := make([]error, len(segments))
	for i, s := range segments {
		results[i] = ended[s.Lane]
	}
	return results, nil
}

// flushOnce sends segments, notes why lanes stop, and returns the segments of which nothing is known, or that are to be sent again.
func (c *Container) flushOnce(ctx context.Context, segments []segment, ended map[*instance]error) (rest []segment, err error) {
	var lanes laneColumns
	var ops opColumns
	for _, s := range segments {
		seq, ring := lanes.add(s.Lane)
		if err = ops.add(s, c.cfg.Reserve, seq+1, ring); err != nil {
			return segments, err
		}
	}
	mode := pgx.QueryExecModeExec
	if len(ops.ids) <= preparedOps && !c.unprepared.Load() {
		mode = pgx.QueryExecModeCacheStatement
	}
	held, err := c.sendFlush(ctx, mode, lanes, ops)
	if mode == pgx.QueryExecModeCacheStatement && preparedRefused(err) {
		c.unprepared.Store(true)
		held, err = c.sendFlush(ctx, pgx.QueryExecModeExec, lanes, ops)
	}
	if err != nil {
		return segments, err
	}
	for _, s := range segments {
		if _, ok := held[s.Lane.id]; ok {
			s.Lane.advance()
		} else {
			rest = append(rest, s)
		}
	}
	if len(rest) == 0 {
		return nil, nil
	}
	return c.resolve(ctx, rest, ended)
}

// preparedOps is how many operations a flush may have to be sent as a prepared statement. Planning takes longer than
// executing a small flush, which a send may be waiting for; a large one wants a plan that knows its size.
const preparedOps = 32

// preparedRefused says whether a connection pooler between us and the server lost a prepared statement, or has one of
// another client under its name: PgBouncer before 1.21 in transaction mode. Nothing was executed then.
func preparedRefused(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "26000" || pgErr.Code == "42P05")
}

// sendFlush sends the statement and returns the ids of the instances for which it held.
func (c *Container) sendFlush(ctx context.Context, mode pgx.QueryExecMode, lanes laneColumns, ops opColumns) (map[string]struct{}, error) {
	args := []any{mode, lanes.ids, lanes.epochs, lanes.seqs, lanes.timelines, ops.instances, ops.types, ops.ids, ops.kinds, ops.data}
	if c.cfg.Encryption != nil {
		args = append(args, lanes.keys)
	}
	rows, err := c.pool.Query(ctx, c.sql(flushStatement), args...)
	if err != nil {
		return nil, err
	}
	held := make(map[string]struct{}, len(lanes.ids))
	var id string
	_, err = pgx.ForEachRow(rows, []any{&id, nil}, func() error {
		held[id] = struct{}{}
		return nil
	})
	return held, err
}

type laneColumns struct {
	ids, timelines, keys []string
	epochs, seqs         []int64
}

// add adds an instance, and says at which seq the fence lets it be flushed, and under which data keys.
func (l *laneColumns) add(in *instance) (seq int64, ring *keyring) {
	ring = in.ring.Load()
	key := ""
	if ring != nil && ring.current != nil {
		key = ring.current.ID()
	}
	l.keys = append(l.keys, key)
	in.fence.Lock()
	defer in.fence.Unlock()
	l.ids = append(l.ids, in.id)
	l.epochs = append(l.epochs, in.fence.epoch)
	l.seqs = append(l.seqs, in.fence.seq)
	l.timelines = append(l.timelines, in.fence.timeline)
	return in.fence.seq, ring
}

type opColumns struct {
	instances, types, ids, data []string
	kinds                       []int16
}

// add adds what a segment writes; its rows will have that seq.
func (o *opColumns) add(s segment, ahead int, seq int64, ring *keyring) error {
	ops := slices.Clone(s.Ops)
	slices.SortFunc(ops, func(a, b op) int {
		if a.Key.Type != b.Key.Type {
			return strings.Compare(typeName(a.Key.Type), typeName(b.Key.Type))
		}
		return strings.Compare(a.Key.ID, b.Key.ID)
	})
	for _, w := range ops {
		data := ""
		if w.Kind != batcher.Delete {
			var err error
			if rec, ok := w.Value.Value.(*recordValue); ok {
				if rec.reserve(ahead) {
					s.Lane.c.raised.Add(1)
				}
				if rec.era < s.Lane.era.Load() { // nothing in memory need have it any more: it was deleted or moved since
					rec.giveUp()
				}
			}
			if data, err = encode(w.Value.Value); err != nil {
				return fmt.Errorf("pgstore: encoding %s: %w", typeName(w.Key.Type), err)
			}
			if data, err = ring.seal(s.Lane.id, w.Key, seq, data); err != nil {
				return err
			}
		}
		o.instances = append(o.instances, s.Lane.id)
		o.types = append(o.types, typeName(w.Key.Type))
		o.ids = append(o.ids, w.Key.ID)
		o.kinds = append(o.kinds, int16(w.Kind))
		o.data = append(o.data, data)
	}
	return nil
}

func (in *instance) advance() {
	in.fence.Lock()
	in.fence.seq++
	in.fence.Unlock()
}

// replayTurn is how long one flush takes instances anew whose rows went back. The others come with the next: whoever waits for one is to hear of it soon,
// however many there are.
const replayTurn = time.Second

// errAgain makes what came across a change by others begin again.
var errAgain = errors.New("pgstore: changed meanwhile")

// resolve finds out why the database did not take segments, and returns those to be sent again.
//
//  0. It has no row: its device was deleted. Where the database went back it may be that its pairing was lost, which is told as such.
//  1. Somebody else has the instance: a later take is in the row, or any on a timeline on which this process has never been. A failover that
//     lost a take gives its epoch out again, so the number alone does not tell.
//  2. A segment's content never changes once it was sent, so a seq that is one ahead under our epoch means that an earlier
//     attempt was committed.
//  3. All is as this process left it: try again.
//  4. The database went back, or may have: its timeline is another, or the row is older than what was acknowledged. That every flush is
//     there does not help: somebody else may have had the instance in the tail that was lost, and have sent. The owner takes it anew (replay.go), unless
//     nothing is missing and the user trusts that ([Config].OnTimelineChange).
func (c *Container) resolve(ctx context.Context, segments []segment, ended map[*instance]error) (rest []segment, err error) {
	ids := make([]string, len(segments))
	for i, s := range segments {
		ids[i] = s.Lane.id
	}
	rows, err := c.pool.Query(ctx, c.sql(`SELECT l.id, coalesce(i.epoch, 0), coalesce(i.seq, 0), coalesce(i.timeline, ''), substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
		FROM unnest($1::text[]) AS l (id) LEFT JOIN {schema}.instances i USING (id)`), pgx.QueryExecModeExec, ids)
	if err != nil {
		return segments, err
	}
	stored := make(map[string]position, len(ids))
	var id, now string
	var found position
	_, err = pgx.ForEachRow(rows, []any{&id, &found.epoch, &found.seq, &found.timeline, &now}, func() error {
		stored[id] = found
		return nil
	})
	if err != nil {
		return segments, err
	}
	began := time.Now()
	for i, s := range segments {
		in := s.Lane
		r := stored[in.id]
		at, claim := in.at(), in.claimed()
		moved := now != at.timeline
		leaving := c.closed() || in.releasing.Load()
		trusted := !moved || c.cfg.OnTimelineChange == Trust
		switch {
		case r.epoch == 0 && !trusted: // deleted, or paired after the moment to which the database went back
			ended[in] = ErrDatabaseRewound
			continue
		case r.epoch == 0:
			ended[in] = c.gone(in)
		case leaving && r.epoch == claim: // who is letting go does not come back
			ended[in] = ErrDatabaseRewound
			continue
		case r.epoch == claim: // we have taken it anew, and the answer was lost
			err = c.replay(ctx, in, r)
		case moved && r.timeline == now, r.epoch > at.epoch, r.epoch == at.epoch && r.seq > at.seq+1:
			ended[in] = ErrOwnershipLost
			continue
		case trusted && r.epoch == at.epoch && r.seq == at.seq+1:
			if err = c.acknowledged(ctx, in.id, r); err == nil {
				in.advance()
				continue
			}
		case trusted && r.epoch == at.epoch && r.seq == at.seq:
			in.follow(now)
		case leaving: // whoever takes it next might not see that the database went back
			if err = c.noteRewound(ctx, []*instance{in}); err == nil {
				ended[in] = ErrDatabaseRewound
				continue
			}
		case time.Since(began) > replayTurn:
			rest = append(rest, s)
			continue
		default:
			err = c.replay(ctx, in, r)
		}
		if err == nil {
			err = c.ensureDataKey(ctx, in)
		}
		if err != nil && ctx.Err() != nil {
			return append(rest, segments[i:]...), err
		} else if err != nil { // the others need not wait for it
			ended[in] = againLater(err)
		}
		if ended[in] == nil {
			rest = append(rest, s)
		}
	}
	return rest, nil
}

// acknowledged returns when a commit that was only seen is durable: its own acknowledgement was lost, and where a synchronous standby is to have it,
// being seen does not mean that it has.
func (c *Container) acknowledged(ctx context.Context, id string, r position) error {
	tag, err := c.pool.Exec(ctx, c.sql(`UPDATE {schema}.instances SET seq = seq WHERE id = $1 AND epoch = $2 AND seq = $3 AND `+durably+` IS NOT NULL`),
		pgx.QueryExecModeExec, id, r.epoch, r.seq)
	if err == nil && tag.RowsAffected() == 0 {
		err = errAgain
	}
	return err
}

// follow makes an instance go with the database to its timeline, which the next flush notes in its row.
func (in *instance) follow(timeline string) {
	in.fence.Lock()
	in.fence.timeline = timeline
	in.fence.Unlock()
}

// gone gives up an instance whose device was deleted, by this process or another. That is no failure of it.
func (c *Container) gone(in *instance) error {
	c.cfg.Logger.Info("pgstore: device was deleted", "instance", in.id)
	in.stop(ErrDeviceDeleted)
	c.forget(in)
	return ErrDeviceDeleted
}

// againLater is a segment's result after an error of its own: it is tried again, unless that is of no use.
func againLater(err error) error {
	if errors.Is(err, batcher.ErrAgain) {
		return err
	}
	if err = flushError(err); permanent(err) {
		return err
	}
	return fmt.Errorf("%w: %w", batcher.ErrAgain, err)
}

// flushError marks an error for good as one, and keeps what a server says about values out of it.
func flushError(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		// Detail and Where may quote a row; Message names only tables, columns and constraints.
		return &databaseError{code: pgErr.Code, message: pgErr.Message}
	}
	return fmt.Errorf("pgstore: flush: %w", err)
}

// databaseError is a server's error without what it may quote of a row.
type databaseError struct{ code, message string }

// Error implements error.
func (e *databaseError) Error() string {
	if strings.HasPrefix(e.code, "22") {
		return "pgstore: flush: SQLSTATE " + e.code
	}
	return "pgstore: flush: " + e.message + " (SQLSTATE " + e.code + ")"
}

// Is makes an error for good match [ErrRefused], and context.Canceled with it.
func (e *databaseError) Is(target error) bool {
	return (target == ErrRefused || target == context.Canceled) && e.permanent()
}

// permanent says whether repeating is of no use. Connection loss, shutdown, disk full, deadlock, serialization failure,
// time-out and read-only (a standby) pass; bad data, missing rights or tables, broken constraints, and what is more than the server
// can ever do (54) do not.
func (e *databaseError) permanent() bool {
	if len(e.code) < 2 || e.code == "25006" {
		return false
	}
	switch e.code[:2] {
	case "22", "23", "42", "54", "3F", "0A":
		return true
	}
	return false
}

func permanent(err error) bool {
	var dbErr *databaseError
	return errors.As(err, &dbErr) && dbErr.permanent()
}

// aboutData says whether a server refused what it was given, and not the statement as such.
func aboutData(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains([]string{"22", "23", "54"}, pgErr.Code[:min(2, len(pgErr.Code))])
}

// final are the answers that stay the same however often one asks.
var final = []error{
	pgx.ErrNoRows, ErrCorrupt, ErrDeviceConflict, ErrDeviceDeleted, ErrClosed, ErrReleased, ErrRefused, ErrOwnershipLost, ErrDatabaseRewound, ErrLeased, ErrNoInstance, errMoved,
	ErrDataKey, ErrNotEncrypted, errUnwanted,
}

// unavailable says whether a read may succeed when it is repeated.
func unavailable(err error) bool {
	if slices.ContainsFunc(final, func(f error) bool { return errors.Is(err, f) }) {
		return false
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return !(&databaseError{code: pgErr.Code}).permanent()
	}
	return true
}

// columnsOf splits keys into the columns that name them.
func columnsOf(keys []cache.Key) (types, ids []string) {
	for _, k := range keys {
		types = append(types, typeName(k.Type))
		ids = append(ids, k.ID)
	}
	return types, ids
}
