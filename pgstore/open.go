package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// takeStatement makes this process the owner of an instance: a new epoch, so that no flush of an earlier owner
// is accepted any more. If the last owner did not leave cleanly, or the database is on
// another timeline than it was, that is noted for the rows written so far. It is on disk when it returns, since sends rely on it before anything else
// is flushed.
const takeStatement = `
UPDATE {schema}.instances i SET
    epoch = nextval('{schema}.epochs'), owner = $2, taken_at = now(),
    step_through = CASE WHEN i.clean_at_epoch <> i.epoch OR i.timeline <> db.timeline THEN greatest(i.step_through, i.seq) ELSE i.step_through END,
    abandon_through = CASE WHEN i.timeline <> db.timeline THEN greatest(i.abandon_through, i.seq) ELSE i.abandon_through END,
    timeline = db.timeline
FROM (SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline) AS db
WHERE i.id = $1
RETURNING i.epoch, i.seq, i.timeline, i.step_through, i.abandon_through,
    set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`

func (c *Container) take(ctx context.Context, id string) (t taken, err error) {
	err = c.pool.QueryRow(ctx, c.sql(takeStatement), pgx.QueryExecModeExec, id, c.cfg.Owner).Scan(&t.epoch, &t.seq, &t.timeline, &t.stepThrough, &t.abandonThrough, nil)
	return t, err
}

// open takes an instance and loads its resident keys. Callers at once share one take and one load. The
// rows are read after the take was committed, so no earlier owner can change them any more. The answer is nil if the
// instance is gone again.
func (c *Container) open(ctx context.Context, id string) (*instance, error) {
	in := c.newInstance(id)
	_, err := c.cache.Open(ctx, id, &fetcher{c: c, id: id, in: in}, func(ctx context.Context, fill *cache.Filler[value]) error {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		err := c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
			t, err := c.take(ctx, id)
			in.fence.epoch, in.fence.seq, in.fence.timeline = t.epoch, t.seq, t.timeline
			in.stepThrough, in.abandonThrough = t.stepThrough, t.abandonThrough
			return err
		})
		if err != nil {
			return err
		}
		if err = c.retry(ctx, loadTimeout, func(ctx context.Context) error { return c.load(ctx, in, fill) }); err != nil {
			return err
		}
		in.keys = fill.Instance()
		if err = c.LIDMap.preload(ctx, in.keys); err != nil {
			return err
		}
		return c.register(in)
	})
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%w: opening instance: %w", ErrUnavailable, err)
	} else if err != nil {
		return nil, fmt.Errorf("pgstore: opening instance: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.instances[id], nil
}

const (
	loadTimeout = 2 * time.Minute // of one attempt to read an instance's rows
	openTimeout = 5 * time.Minute // of taking and loading, which nobody may be waiting for any more
)

func (c *Container) newInstance(id string) *instance {
	in := &instance{c: c, id: id}
	in.mu.groups = make(map[string]*cache.Overlay[value])
	in.mu.migrated = make(map[string]string)
	in.mu.open = make(map[*transaction]struct{})
	return in
}

// register makes an opened instance known and connects it with the batcher.
func (c *Container) register(in *instance) error {
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
		in.keys.Durable(writes)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed() {
		return ErrClosed
	}
	c.mu.instances[in.id] = in
	return nil
}

// load reads what is held in memory. A row that does not parse is set aside and answers absent.
func (c *Container) load(ctx context.Context, in *instance, fill *cache.Filler[value]) error {
	rows, err := c.pool.Query(ctx, c.sql(`SELECT key_type, key_id, data::text, seq::text FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = ANY($2)`),
		pgx.QueryExecModeExec, in.id, loadedTypes())
	if err != nil {
		return err
	}
	corrupt, err := c.scan(rows, in, fill.Add)
	if err != nil {
		return err
	}
	for _, row := range corrupt {
		if row.key.Type == typeCreds {
			return fmt.Errorf("%w: creds", ErrCorrupt)
		}
		if err = c.moveAside(ctx, in, row); err != nil {
			return err
		}
	}
	rows, err = c.pool.Query(ctx, c.sql(`SELECT key_id FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = $2`),
		pgx.QueryExecModeExec, in.id, typeName(typeBufferedEvent))
	if err != nil {
		return err
	}
	var keyID string
	_, err = pgx.ForEachRow(rows, []any{&keyID}, func() error {
		fill.AddKey(cache.Key{Type: typeBufferedEvent, ID: keyID})
		return nil
	})
	return err
}

// corruptRow is a row that cannot be read.
type corruptRow struct {
	key  cache.Key
	data []byte
}

// scan reads rows of key_type, key_id, data and seq, and returns those that do not parse. They are those of in, nil for one that was not taken.
func (c *Container) scan(rows pgx.Rows, in *instance, add func(cache.Key, value)) (corrupt []corruptRow, err error) {
	defer rows.Close()
	for rows.Next() {
		raw := rows.RawValues() // Scan would copy a megabyte of sessions twice
		k := cache.Key{Type: typesByName[string(raw[0])], ID: string(raw[1])}
		data := bytes.Clone(raw[2])
		if v, err := decodeKey(k, data); err != nil {
			corrupt = append(corrupt, corruptRow{k, data})
		} else {
			if rec, ok := v.(*recordValue); ok {
				seq, err := strconv.ParseInt(string(raw[3]), 10, 64)
				if err != nil {
					return nil, fmt.Errorf("pgstore: reading seq: %w", err)
				}
				rec.mark = in.markOf(seq)
			}
			add(k, v)
		}
	}
	return corrupt, rows.Err()
}

// moveAside moves a row that cannot be read to where a person can look at it, if it still is what was read. It checks the epoch, as
// every write does. It does not go through the batcher: what is written to that key meanwhile must find no row in its way.
func (c *Container) moveAside(ctx context.Context, in *instance, row corruptRow) error {
	c.cfg.Logger.Error("pgstore: stored row cannot be read, set aside", "instance", in.id, "key_type", typeName(row.key.Type))
	_, err := c.pool.Exec(ctx, c.sql(`WITH gone AS (
			DELETE FROM {schema}.auth_keys k USING {schema}.instances i
			WHERE i.id = $1 AND i.epoch = $2 AND k.instance_id = i.id AND k.key_type = $3 AND k.key_id = $4 AND k.data::text = $5 RETURNING k.*)
		INSERT INTO {schema}.set_aside (instance_id, key_type, key_id, data, reason)
		SELECT instance_id, key_type, key_id, data, 'does not parse' FROM gone`),
		pgx.QueryExecModeExec, in.id, in.epoch(), typeName(row.key.Type), row.key.ID, string(row.data))
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
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		attempt, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		err := fn(attempt)
		if err != nil && (ctx.Err() != nil || !unavailable(err)) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(&backoff.ExponentialBackOff{
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
	return f.query(ctx, `SELECT k.key_type, k.key_id, k.data::text, k.seq::text FROM {schema}.auth_keys k
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
	err := f.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		clear(out)
		rows, err := f.c.pool.Query(ctx, f.c.sql(statement), append([]any{pgx.QueryExecModeExec}, args...)...)
		if err != nil {
			return err
		}
		corrupt, err := f.c.scan(rows, f.in, func(k cache.Key, v value) { out[k] = v })
		for _, row := range corrupt {
			if f.in == nil { // who looks changes nothing
				f.c.cfg.Logger.Error("pgstore: stored row cannot be read, counts as absent", "instance", f.id, "key_type", typeName(row.key.Type))
			} else if err == nil {
				err = f.c.moveAside(ctx, f.in, row)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pgstore: reading from the database: %w", err)
	}
	return out, nil
}

// markClean notes that the owner left with nothing unsaved. A failover just then is waited for, until the context ends.
func (c *Container) markClean(ctx context.Context, instances []*instance) error {
	var lanes laneColumns
	for _, in := range instances {
		if in.lane.Pending() == 0 && (in.lane.Err() == nil || errors.Is(in.lane.Err(), batcher.ErrClosed)) {
			lanes.add(in)
		}
	}
	if len(lanes.ids) == 0 {
		return nil
	}
	err := c.persist(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := c.pool.Exec(ctx, c.sql(`UPDATE {schema}.instances i SET clean_at_epoch = i.epoch
			FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS l (id, epoch, seq)
			WHERE i.id = l.id AND i.epoch = l.epoch AND i.seq = l.seq`), pgx.QueryExecModeExec, lanes.ids, lanes.epochs, lanes.seqs)
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: instances could not be marked as cleanly left: %w", err)
	}
	return nil
}
