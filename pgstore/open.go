package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/cache"
)

// taken is the fence that a take returned.
type taken struct {
	epoch, seq                  int64
	timeline                    string
	stepThrough, abandonThrough int64
}

// database is what tells one moment of a database from another, and one database from another: the WAL timeline, which a promotion and a
// point-in-time restore change; and the system (the server's identifier, that of the database, and that of the table, which a dump does not
// carry along). A plain role may ask for both.
const database = `(SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline,
    (SELECT system_identifier FROM pg_control_system()) || '/' ||
    (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || '{schema}.instances'::regclass::oid AS system) AS db`

// newEpoch is an epoch that no take has had: one from the sequence would come back with a database that goes back, and the clock does not go back with it.
const newEpoch = `greatest(nextval('{schema}.epochs'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)`

// durably makes a statement's transaction durable as [Config].SynchronousCommit says.
const durably = `set_config('synchronous_commit', {durable}, true)`

// takeStatement makes this process the owner of an instance: a new epoch, so that no flush of an earlier owner
// is accepted any more.
//
//  1. If the last owner did not leave cleanly, the rows written so far may be behind what has left, by less than their ceilings.
//  2. If the database is on another timeline than it was, or is another one, or older than a witness remembers, they may be behind by more.
//  3. With leases, nothing happens while the owner's holds.
//
// It is on disk when it returns, since sends rely on it before anything else is flushed.
const takeStatement = `
UPDATE {schema}.instances i SET
    epoch = greatest(i.epoch + 1, ` + newEpoch + `), owner = $2, process = $3, taken_at = now(),
    step_through = CASE WHEN i.clean_at_epoch <> i.epoch THEN greatest(i.step_through, i.seq) ELSE i.step_through END,
    abandon_through = CASE
        WHEN i.system NOT IN ('', db.system) AND $4 THEN greatest(i.abandon_through, i.seq)
        WHEN i.system IN ('', db.system) AND i.timeline <> db.timeline AND $5 THEN greatest(i.abandon_through, i.seq)
        WHEN (i.epoch, i.seq) < ($6::bigint, $7::bigint) THEN greatest(i.abandon_through, i.seq)
        ELSE i.abandon_through END,
    timeline = db.timeline, system = db.system
FROM ` + database + `
WHERE i.id = $1{opened} AND ($8 OR i.process IS NULL OR i.process = $3 OR NOT EXISTS (
    SELECT FROM {schema}.processes p WHERE p.id = i.process AND p.expires > clock_timestamp()))
RETURNING i.epoch, i.seq, i.timeline, i.step_through, i.abandon_through, ` + durably

// plainOpened keeps who has no key from taking an instance that is encrypted.
const plainOpened = ` AND NOT {schema}.has_data_keys(i.id)`

// take takes an instance, from a living owner only if it is forced; else that is [ErrLeased].
func (c *Container) take(ctx context.Context, id string, forced bool) (t taken, err error) {
	witnessed, err := c.witnessed(ctx, id)
	if err != nil {
		return t, err
	}
	if c.isRewound(id) {
		witnessed = latest
	}
	err = c.pool.QueryRow(ctx, c.sql(takeStatement), pgx.QueryExecModeExec, id, c.cfg.Owner, c.process,
		c.cfg.OnNewSystem == Heal, c.cfg.OnTimelineChange == Heal, witnessed.Epoch, witnessed.Seq, forced).
		Scan(&t.epoch, &t.seq, &t.timeline, &t.stepThrough, &t.abandonThrough, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		var exists, encrypted bool
		err := c.pool.QueryRow(ctx, c.sql(`SELECT EXISTS (SELECT FROM {schema}.instances WHERE id = $1), {schema}.has_data_keys($1)`),
			pgx.QueryExecModeExec, id).Scan(&exists, &encrypted)
		switch {
		case err != nil:
			return t, err
		case encrypted && c.cfg.Encryption == nil:
			return t, fmt.Errorf("%w: instance %s is encrypted, and Config.Encryption is not set", ErrDataKey, id)
		case exists && !forced:
			return t, ErrLeased
		}
	}
	return t, err
}

// How often a take looks whether the owner has let go.
const (
	takePoll    = 5 * time.Millisecond
	takePollMax = 50 * time.Millisecond
)

// takeWhenFree takes an instance, and waits for its living owner as [Config].Takes and TakeWait say. Each attempt is made by attempt, which calls take.
func (c *Container) takeWhenFree(ctx context.Context, id string, attempt func(take func() error) error) (t taken, err error) {
	force := time.Now().Add(c.cfg.TakeWait)
	var waiting waiting
	defer func() { waiting.over(err) }()
	for pause := takePoll; ; pause = min(2*pause, takePollMax) {
		forced := c.cfg.Takes == Forced && !time.Now().Before(force)
		err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
			return attempt(func() error {
				t, err = c.take(ctx, id, forced)
				return err
			})
		})
		if !errors.Is(err, ErrLeased) {
			return t, err
		}
		if waiting.o == nil {
			waiting = c.waits(WaitOwner, id)
		}
		select {
		case <-ctx.Done():
			return t, err
		case <-c.readsCtx.Done():
			return t, ErrClosed
		case <-time.After(pause):
		}
	}
}

// whoeverWaits is an attempt of those who wait until the end.
func whoeverWaits(take func() error) error { return take() }

// open takes an instance and loads its resident keys. Callers at once share one take and one load. The
// rows are read after the take was committed, so no earlier owner can change them any more. The answer is nil if the
// instance is gone again.
func (c *Container) open(ctx context.Context, id string) (*instance, error) {
	in := c.newInstance(id)
	c.await(id)
	_, err := c.cache.Open(ctx, id, &fetcher{c: c, id: id, in: in}, func(ctx context.Context, fill *cache.Filler[value]) error {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		in.lapses = c.lease.lapsed()
		if _, err := c.keyrings(ctx, []string{id}); err != nil { // before it is taken from who can read it
			return err
		}
		return c.takeThen(ctx, in, func(t taken) error { return c.fillTaken(ctx, in, t, fill) })
	})
	opened, leased := c.answered(id, err)
	if err != nil {
		return nil, in.notOpened(ctx, err, leased)
	}
	return opened, nil
}

// fillTaken loads an instance that was taken and makes it known.
func (c *Container) fillTaken(ctx context.Context, in *instance, t taken, fill *cache.Filler[value]) (err error) {
	in.fence.epoch, in.fence.seq, in.fence.timeline = t.epoch, t.seq, t.timeline
	in.stepThrough.Store(t.stepThrough)
	in.abandonThrough.Store(t.abandonThrough)
	if err = c.tellWitness(ctx, []*instance{in}); err != nil {
		return err
	}
	if err = c.openDataKeys(ctx, in); err != nil {
		return err
	}
	began, keys := time.Now(), 0
	err = c.retry(ctx, loadTimeout, func(ctx context.Context) error {
		keys, err = c.load(ctx, in, fill)
		return err
	})
	c.observers.fetched(Fetch{Kind: FetchInstance, Instance: in.id, Keys: keys, Took: time.Since(began), Err: err})
	if err != nil {
		return err
	}
	in.keys = fill.Instance()
	if err = c.LIDMap.preload(ctx, in.keys); err != nil {
		return err
	}
	c.connect(in)
	if err = c.heal(ctx, in); err != nil {
		in.stop(err)
		return err
	}
	return c.register(in)
}

const (
	loadTimeout = 2 * time.Minute // of one attempt to read an instance's rows
	openTimeout = 5 * time.Minute // of taking and loading, which nobody may be waiting for any more
)

func (c *Container) newInstance(id string) *instance {
	in := &instance{c: c, id: id, rekeying: make(chan struct{}, 1)}
	in.mu.groups = make(map[string]*cache.Overlay[value])
	in.mu.migrated = make(map[string]string)
	in.mu.open = make(map[*transaction]struct{})
	return in
}

// connect connects an opened instance with the batcher.
func (c *Container) connect(in *instance) {
	in.lane = c.writes.Lane(in)
	in.lane.OnDurable(func(ops []op) {
		writes := make([]cache.Write[value], len(ops))
		for i, o := range ops {
			writes[i] = o.Value
			if rec, ok := o.Value.Value.(*recordValue); ok && o.Kind != batcher.Delete {
				rec.durable()
			}
		}
		c.hasty.Store(false)
		in.hasty.Store(false)
		in.keys.Durable(writes)
	})
}

// register makes an opened instance known.
func (c *Container) register(in *instance) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed() {
		return ErrClosed
	}
	c.mu.instances[in.id] = in
	delete(c.mu.stopped, in.id)
	if ring := in.ring.Load(); ring != nil && !ring.complete {
		c.tasks.Go(func() { in.reencryptInBackground(c.tasksCtx) })
	}
	c.abandonLocked(in) // if all who waited have left
	return nil
}

// load reads what is held in memory: the resident keys, and of buffered events only which there are. A row that does not parse is set aside and answers
// absent.
func (c *Container) load(ctx context.Context, in *instance, fill *cache.Filler[value]) (keys int, err error) {
	fence := in.at()
	rows, err := c.pool.Query(ctx, c.sql(fenced+`SELECT key_type, key_id, data::text, seq::text FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = ANY($2)
		UNION ALL SELECT key_type, key_id, NULL, NULL FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = $3`),
		pgx.QueryExecModeExec, in.id, loadedTypes(), typeName(typeBufferedEvent))
	if err != nil {
		return 0, err
	}
	corrupt, err := c.scan(rows, in, in.id, in.ring.Load(), fence, func(k cache.Key, v value) {
		keys++
		if v == nil {
			fill.AddKey(k)
			return
		}
		fill.Add(k, v)
	})
	if err != nil {
		return 0, err
	}
	for _, row := range corrupt { // before anything is moved: without the credentials it may be the key that is wrong
		if row.key.Type == typeCreds {
			return 0, row.ofCreds(in.id)
		}
	}
	for _, row := range corrupt {
		if err = c.moveAside(ctx, in, row); err != nil {
			return 0, err
		}
	}
	return keys, nil
}

// corruptRow is a row that cannot be read.
type corruptRow struct {
	key  cache.Key
	data []byte // the column, or the plain JSON of one that is encrypted
	seq  int64
	err  error
}

// ofCreds is the error of an instance whose credentials cannot be read.
func (r corruptRow) ofCreds(instance string) error {
	if errors.Is(r.err, errForeignKey) {
		return fmt.Errorf("%w: the data key of the credentials of instance %s is not in the database", ErrDataKey, instance)
	}
	return fmt.Errorf("%w: creds", ErrCorrupt)
}

// reason is why a row was set aside, with what is needed to decrypt it nevertheless.
func (r corruptRow) reason() string {
	if r.err == nil {
		return "does not parse"
	}
	return fmt.Sprintf("%s (seq %d)", r.err, r.seq)
}

// fenced precedes a query of rows by a row that says how the database has the instance, at that very moment: its key_type is empty.
const fenced = `SELECT '' AS key_type, i.epoch::text AS key_id, i.timeline || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS data, i.seq::text AS seq
	FROM {schema}.instances i WHERE i.id = $1 UNION ALL `

// position is what a fence says: under which take the rows are, how many flushes there were, and on which timeline.
type position struct {
	epoch, seq int64
	timeline   string
}

// at is where the instance is, as far as this process knows.
func (in *instance) at() position {
	in.fence.Lock()
	defer in.fence.Unlock()
	return position{in.fence.epoch, in.fence.seq, in.fence.timeline}
}

// holds says whether rows are those of an instance as its owner left it at p, or later, and at which seq they are. Those of a database that has gone back are not: a
// session that is read from it may have sent since.
func (p position) holds(raw [][]byte) (at int64, holds bool) {
	epoch, err1 := strconv.ParseInt(string(raw[1]), 10, 64)
	seq, err2 := strconv.ParseInt(string(raw[3]), 10, 64)
	return seq, err1 == nil && err2 == nil && epoch == p.epoch && seq >= p.seq && string(raw[2]) == p.timeline+p.timeline
}

// errMoved is returned for rows that are not those of the instance as its owner left it.
var errMoved = errors.New("pgstore: the database has another moment of the instance")

// scan reads rows of key_type, key_id, data and seq, and returns those that do not parse. They are those of in, after one of [fenced] that must
// hold at fence; or in is nil for an instance that was not taken. A row without data is a key without a value. What is encrypted is so under ring.
func (c *Container) scan(rows pgx.Rows, in *instance, id string, ring *keyring, fence position, add func(cache.Key, value)) (corrupt []corruptRow, err error) {
	defer rows.Close()
	held := in == nil
	newest := int64(math.MaxInt64)
	for rows.Next() {
		raw := rows.RawValues() // Scan would copy a megabyte of sessions twice
		if len(raw[0]) == 0 {
			if newest, held = fence.holds(raw); !held {
				return nil, errMoved
			}
			continue
		}
		k := cache.Key{Type: typesByName[string(raw[0])], ID: string(raw[1])}
		if raw[2] == nil {
			add(k, nil)
			continue
		}
		data := bytes.Clone(raw[2])
		seq, err := strconv.ParseInt(string(raw[3]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("pgstore: reading seq: %w", err)
		}
		plain, err := c.unseal(ring, id, k, seq, data)
		if errors.Is(err, ErrDataKey) || errors.Is(err, ErrNotEncrypted) {
			return nil, err
		}
		if _, encrypted := sealedText(data); err == nil && encrypted && seq > newest { // the instance was put back, and not its rows
			return nil, fmt.Errorf("%w: %s of instance %s is newer than its instance", ErrCorrupt, typeName(k.Type), id)
		}
		if err != nil {
			corrupt = append(corrupt, corruptRow{k, data, seq, err})
		} else if v, err := decodeKey(k, plain); err != nil {
			corrupt = append(corrupt, corruptRow{key: k, data: data, seq: seq})
		} else {
			if in != nil {
				switch v := v.(type) {
				case *recordValue:
					v.from, v.seq, v.era = in, seq, in.era.Load()
				case *preKeyValue:
					if in.markOf(seq) == markAbandon {
						v.Uploaded, v.Stale = true, true
					}
				}
			}
			add(k, v)
		}
	}
	if err = rows.Err(); err == nil && !held {
		err = errMoved // the instance is gone
	}
	return corrupt, err
}

// moveAside moves a row that cannot be read to where a person can look at it, if it still is what was read. It checks the epoch, as
// every write does. It does not go through the batcher: what is written to that key meanwhile must find no row in its way. The mark is
// there before the row is deleted: a trigger's WHEN is asked before RETURNING is evaluated.
func (c *Container) moveAside(ctx context.Context, in *instance, row corruptRow) error {
	c.cfg.Logger.Error("pgstore: stored row cannot be read, set aside", "instance", in.id, "key_type", typeName(row.key.Type))
	tag, err := c.pool.Exec(ctx, c.sql(`WITH i AS MATERIALIZED (SELECT id, `+byLibrary+` AS library FROM {schema}.instances WHERE id = $1 AND epoch = $2),
		gone AS (
			DELETE FROM {schema}.auth_keys k USING i
			WHERE i.library = 'on' AND k.instance_id = i.id AND k.key_type = $3 AND k.key_id = $4
				AND (k.data::text = $5 OR k.data ? 'enc' AND k.seq = $6) RETURNING k.*),
		aside AS (INSERT INTO {schema}.set_aside (instance_id, key_type, key_id, data, reason)
			SELECT instance_id, key_type, key_id, data, $7 FROM gone RETURNING instance_id, key_type)
		SELECT {schema}.audit_note(instance_id, 'set_aside', key_type) FROM aside`),
		pgx.QueryExecModeExec, in.id, in.epoch(), typeName(row.key.Type), row.key.ID, string(row.data), row.seq, row.reason())
	c.setAside.Add(tag.RowsAffected())
	return err
}

// attemptTimeout bounds one attempt at a statement, so that a connection that is half open does not hold up the next one.
const attemptTimeout = 30 * time.Second

// retry is persist until the container is closed: an attempt that Shutdown finds under way ends with it.
func (c *Container) retry(ctx context.Context, limit time.Duration, fn func(context.Context) error) error {
	return c.persist(ctx, limit, func(ctx context.Context) error {
		if c.closed() {
			return ErrClosed
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(c.readsCtx, cancel)() //nolint:contextcheck // it ends ctx, which comes from elsewhere
		err := fn(ctx)
		if err != nil && c.readsCtx.Err() != nil && unavailable(err) {
			return ErrClosed
		}
		return err
	})
}

// persist repeats fn until it succeeds, its error is for good, or the context ends: a
// database that cannot be reached is waited for, it never looks like one that is empty. Each attempt has a limit of its own. What the
// server itself refuses for good is [ErrRefused]; fn sees its error with all that it says, the caller without what may quote a row.
func (c *Container) persist(ctx context.Context, limit time.Duration, fn func(context.Context) error) error {
	attempts := 0
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		attempt, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err := fn(attempt)
		if err != nil && (ctx.Err() != nil || !unavailable(err)) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, delay time.Duration) {
		attempts++
		c.observers.retried(Retry{Operation: RetryStatement, Attempt: attempts, Delay: delay, Err: withoutRows(err)})
	}), backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 20 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 2 * time.Second,
	}))
	var permanent *backoff.PermanentError
	if errors.As(err, &permanent) {
		err = permanent.Unwrap()
	}
	if err != nil && unavailable(err) {
		return fmt.Errorf("%w: %w", ErrUnavailable, withoutRows(err))
	}
	return withoutRows(err)
}

// fetcher gets what an instance does not hold in memory.
type fetcher struct {
	c  *Container
	id string
	in *instance // nil if it was not taken
}

// FetchKeys implements [cache.Fetcher].
func (f *fetcher) FetchKeys(ctx context.Context, keys []cache.Key) (map[cache.Key]value, error) {
	types, ids := columnsOf(keys)
	return f.query(ctx, `SELECT k.key_type, k.key_id, k.data::text AS data, k.seq::text AS seq FROM {schema}.auth_keys k
		JOIN unnest($2::text[], $3::text[]) AS want (key_type, key_id) USING (key_type, key_id)
		WHERE k.instance_id = $1`, f.id, types, ids)
}

// FetchScope implements [cache.Fetcher].
func (f *fetcher) FetchScope(ctx context.Context, t cache.Type, scope string) (map[cache.Key]value, error) {
	return f.query(ctx, `SELECT key_type, key_id, data::text, seq::text FROM {schema}.auth_keys
		WHERE instance_id = $1 AND key_type = $2 AND starts_with(key_id, $3)`, f.id, typeName(t), scope+idSeparator)
}

// fetchType gets all keys of a type.
func (f *fetcher) fetchType(ctx context.Context, t cache.Type) (map[cache.Key]value, error) {
	return f.query(ctx, `SELECT key_type, key_id, data::text, seq::text FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = $2`, f.id, typeName(t))
}

func (f *fetcher) query(ctx context.Context, statement string, args ...any) (map[cache.Key]value, error) {
	out := make(map[cache.Key]value)
	began, attempts := time.Now(), 0
	if f.in != nil {
		statement = fenced + statement
	}
	err := f.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		clear(out)
		fence, ring, err := f.reading(ctx)
		if err != nil {
			return err
		}
		rows, err := f.c.pool.Query(ctx, f.c.sql(statement), append([]any{pgx.QueryExecModeExec}, args...)...)
		if err != nil {
			return err
		}
		corrupt, err := f.c.scan(rows, f.in, f.id, ring, fence, func(k cache.Key, v value) { out[k] = v })
		if errors.Is(err, errMoved) {
			return f.in.moved()
		}
		attempts++
		if f.in == nil && attempts == 1 && slices.ContainsFunc(corrupt, func(r corruptRow) bool { return errors.Is(r.err, errForeignKey) }) {
			return errAgain // between the two reads the owner may have made a new data key
		}
		for _, row := range corrupt {
			if f.in == nil { // who looks changes nothing
				f.c.cfg.Logger.Error("pgstore: stored row cannot be read, counts as absent", "instance", f.id, "key_type", typeName(row.key.Type))
			} else if err == nil {
				err = f.c.moveAside(ctx, f.in, row)
			}
		}
		return err
	})
	f.c.observers.fetched(Fetch{Kind: FetchKeys, Instance: f.id, Keys: len(out), Took: time.Since(began), Err: err})
	if err != nil {
		return nil, fmt.Errorf("pgstore: reading from the database: %w", err)
	}
	return out, nil
}

// reading is what rows are read with: the fence of an instance that was taken, and its data keys.
func (f *fetcher) reading(ctx context.Context) (fence position, ring *keyring, err error) {
	if f.in != nil {
		return f.in.at(), f.in.ring.Load(), nil
	}
	rings, err := f.c.keyrings(ctx, []string{f.id})
	return fence, rings[f.id], err
}

// moved lets a flush find out why the rows are not as this process left them, and says that they are to be read again.
func (in *instance) moved() error {
	if in.lane == nil {
		return errMoved
	}
	if err := in.failure(); err != nil {
		return err
	}
	if err := in.lane.Probe(); err != nil {
		return in.translate(err)
	}
	return errAgain
}

// noteRewound abandons the chains of instances whose rows are older than what this process has saved: it does not come back for them, and who takes them
// next might not see that the database went back.
func (c *Container) noteRewound(ctx context.Context, instances []*instance) error {
	var all laneColumns
	for _, in := range instances {
		all.add(in)
	}
	err := c.persist(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := c.pool.Exec(ctx, c.sql(`UPDATE {schema}.instances i SET
			step_through = greatest(i.step_through, i.seq), abandon_through = greatest(i.abandon_through, i.seq)
			FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS l (id, epoch, seq) WHERE i.id = l.id AND i.epoch <= l.epoch AND (i.epoch, i.seq) < (l.epoch, l.seq)`),
			pgx.QueryExecModeExec, all.ids, all.epochs, all.seqs)
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: looking whether the database went back: %w", err)
	}
	return nil
}

// leftClean says of an instance whose owner leaves it that the row is what he has saved, on the timeline on which he saved it, unless the user trusts failovers.
const leftClean = `(i.epoch = l.epoch AND i.seq = l.seq AND (l.timeline = db.timeline OR $5))`

// leaveStatement lets go of instances. Those of which it cannot be said that they are as their owner left them, since the database was moved meanwhile or has gone
// back, are not marked as cleanly left, and their rows keep the old timeline: who takes them next finds out. What another process has claimed meanwhile stays that one's.
const leaveStatement = `
WITH gone AS (
    UPDATE {schema}.instances i SET process = nullif(i.process, $6),
        clean_at_epoch = CASE WHEN ` + leftClean + ` THEN i.epoch ELSE i.clean_at_epoch END,
        timeline = CASE WHEN ` + leftClean + ` THEN db.timeline ELSE i.timeline END
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) AS l (id, epoch, seq, timeline),
        (SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline) AS db
    WHERE i.id = l.id AND i.epoch <= l.epoch AND (i.process = $6 OR ` + leftClean + `)
    RETURNING i.id, ` + leftClean + ` AS clean
)
SELECT clean, pg_notify($7, '') FROM gone`

// markClean lets go of instances, and notes of those that have nothing unsaved that they were cleanly left. A failover just then is waited for, until the context ends.
func (c *Container) markClean(ctx context.Context, instances []*instance) error {
	var lanes laneColumns
	var ours []*instance
	for _, in := range instances {
		if err := in.lane.Err(); err == nil || errors.Is(err, batcher.ErrClosed) || errors.Is(err, ErrDatabaseRewound) {
			ours = append(ours, in)
		}
		if in.lane.Pending() == 0 && (in.lane.Err() == nil || errors.Is(in.lane.Err(), batcher.ErrClosed)) {
			lanes.add(in)
		}
	}
	if len(ours) > 0 {
		if err := c.noteRewound(ctx, ours); err != nil {
			return err
		}
	}
	if len(lanes.ids) == 0 {
		return nil
	}
	var marked int
	err := c.persist(ctx, attemptTimeout, func(ctx context.Context) error {
		marked = 0
		rows, err := c.pool.Query(ctx, c.sql(leaveStatement), pgx.QueryExecModeExec,
			lanes.ids, lanes.epochs, lanes.seqs, lanes.timelines, c.cfg.OnTimelineChange == Trust, c.process, c.channel())
		if err != nil {
			return err
		}
		var clean bool
		_, err = pgx.ForEachRow(rows, []any{&clean, nil}, func() error {
			if clean {
				marked++
			}
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: instances could not be marked as cleanly left: %w", err)
	}
	if others := len(lanes.ids) - marked; others > 0 {
		c.cfg.Logger.Warn("pgstore: instances are not as they were left", "instances", others)
	}
	return nil
}
