package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// dataKeys are those that this container has unwrapped, by instance and id, so that a key service is asked once.
type dataKeys struct {
	mu        sync.Mutex
	unwrapped map[string]map[string]DataKey
}

func (d *dataKeys) get(instance, id string) DataKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.unwrapped[instance][id]
}

func (d *dataKeys) add(instance string, key DataKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unwrapped == nil {
		d.unwrapped = make(map[string]map[string]DataKey)
	}
	if d.unwrapped[instance] == nil {
		d.unwrapped[instance] = make(map[string]DataKey)
	}
	d.unwrapped[instance][key.ID()] = key
}

func (d *dataKeys) forget(instance string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.unwrapped, instance)
}

// storedDataKey is a row of data_keys.
type storedDataKey struct {
	instance string
	WrappedKey
	complete bool
}

// readDataKeys reads rows of data_keys, the oldest first.
func (c *Container) readDataKeys(ctx context.Context, where string, args ...any) (found []storedDataKey, err error) {
	err = c.read(ctx, `SELECT instance_id, id, wrapping_key, wrapped, complete FROM {schema}.data_keys `+where+` ORDER BY created_at, id`, args,
		func() { found = nil }, func(rows pgx.Rows) error {
			var k storedDataKey
			err := rows.Scan(&k.instance, &k.ID, &k.WrappingKey, &k.Wrapped, &k.complete)
			found = append(found, k)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("pgstore: reading data keys: %w", err)
	}
	return found, nil
}

// unwrap opens a data key. A key service that is away is waited for.
func (c *Container) unwrap(ctx context.Context, stored storedDataKey) (key DataKey, err error) {
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		key, err = c.cfg.Encryption.Unwrap(ctx, stored.instance, stored.WrappedKey)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pgstore: data key %s of instance %s, wrapped by %s: %w", stored.ID, stored.instance, stored.WrappingKey, err)
	}
	return key, nil
}

// keyrings are the data keys of instances as the database has them, without one to write with.
func (c *Container) keyrings(ctx context.Context, ids []string) (map[string]*keyring, error) {
	rings := make(map[string]*keyring)
	if c.cfg.Encryption == nil || len(ids) == 0 {
		return rings, nil
	}
	stored, err := c.readDataKeys(ctx, `WHERE instance_id = ANY($1)`, ids)
	if err != nil {
		return nil, err
	}
	for _, s := range stored {
		key := c.dataKeys.get(s.instance, s.ID)
		if key == nil {
			if key, err = c.unwrap(ctx, s); err != nil {
				return nil, err
			}
			c.dataKeys.add(s.instance, key)
		}
		ring := rings[s.instance]
		if ring == nil {
			ring = &keyring{keys: make(map[string]DataKey)}
			rings[s.instance] = ring
		}
		ring.keys[s.ID], ring.current, ring.complete = key, key, s.complete
	}
	return rings, nil
}

// checkedDataKeys is how many data keys of a wrapping key are tried before it is taken for the wrong one.
const checkedDataKeys = 3

// checkDataKeys tries the newest data key of each wrapping key, so that a wrong or missing one is noticed at once. A row that was damaged is that instance's
// matter, and must not keep a process from all the others: if it does not open, others that the same key has wrapped are tried.
func (c *Container) checkDataKeys(ctx context.Context) error {
	if c.cfg.Encryption == nil {
		return nil
	}
	stored, err := c.readDataKeys(ctx, `k WHERE (instance_id, id) IN (SELECT instance_id, id FROM (
		SELECT instance_id, id, row_number() OVER (PARTITION BY wrapping_key ORDER BY created_at DESC, id DESC, instance_id DESC) AS nth
		FROM {schema}.data_keys) AS newest WHERE nth <= $1)`, checkedDataKeys)
	if err != nil {
		return err
	}
	opened, failed := make(map[string]bool), make(map[string]error)
	for _, s := range slices.Backward(stored) {
		if opened[s.WrappingKey] {
			continue
		}
		key, err := c.unwrap(ctx, s)
		switch {
		case err == nil:
			c.dataKeys.add(s.instance, key)
			opened[s.WrappingKey] = true
		case !errors.Is(err, ErrDataKey):
			return err
		default:
			failed[s.WrappingKey] = errors.Join(failed[s.WrappingKey], err)
		}
	}
	for wrapping, err := range failed {
		if !opened[wrapping] {
			return err
		}
		c.cfg.Logger.Error("pgstore: stored data key does not open", "wrapping_key", wrapping, "error", err)
	}
	return nil
}

// makeDataKey makes a data key and wraps it.
func (c *Container) makeDataKey(ctx context.Context, instance string) (key DataKey, wrapped WrappedKey, err error) {
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		if key, err = c.cfg.Encryption.NewKey(ctx); err != nil {
			return err
		}
		wrapped, err = c.cfg.Encryption.Wrap(ctx, instance, key)
		return err
	})
	if err != nil {
		return nil, wrapped, fmt.Errorf("pgstore: making a data key: %w", err)
	}
	c.dataKeys.add(instance, key)
	return key, wrapped, nil
}

// openDataKeys gives an instance that was taken its data keys, and makes the first one if there is to be one.
func (c *Container) openDataKeys(ctx context.Context, in *instance) error {
	if c.cfg.Encryption == nil {
		return nil
	}
	rings, err := c.keyrings(ctx, []string{in.id})
	if err != nil {
		return err
	}
	ring := rings[in.id]
	switch {
	case c.cfg.EncryptionMode == Decrypting && ring == nil:
		ring = &keyring{complete: true}
	case c.cfg.EncryptionMode == Decrypting:
		// From now on rows are written plain, whatever becomes of this process.
		err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
			_, err := c.pool.Exec(ctx, c.sql(`UPDATE {schema}.data_keys SET complete = false WHERE instance_id = $1 AND complete`), pgx.QueryExecModeExec, in.id)
			return err
		})
		ring.current, ring.complete = nil, false
	case ring == nil:
		in.ring.Store(new(keyring))
		return c.addDataKey(ctx, in)
	}
	in.ring.Store(ring)
	return err
}

// changeKeys replaces an instance's data keys by what fn makes of them: the flush and who rotates them may do so at once.
func (in *instance) changeKeys(fn func(old *keyring) *keyring) {
	for {
		old := in.ring.Load()
		if in.ring.CompareAndSwap(old, fn(old)) {
			return
		}
	}
}

// with is the keys and others.
func (r *keyring) with(others map[string]DataKey) *keyring {
	joined := &keyring{current: r.current, keys: maps.Clone(others)}
	if joined.keys == nil {
		joined.keys = make(map[string]DataKey)
	}
	maps.Copy(joined.keys, r.keys)
	return joined
}

// addDataKeyStatement stores a data key of an instance that is as its owner knows it.
const addDataKeyStatement = `
WITH added AS (
    INSERT INTO {schema}.data_keys (instance_id, id, wrapping_key, wrapped)
    SELECT i.id, $3, $4, $5 FROM {schema}.instances i WHERE i.id = $1 AND i.epoch = $2
    ON CONFLICT (instance_id, id) DO UPDATE SET complete = false
    RETURNING instance_id, id, wrapping_key)
SELECT {schema}.audit_note(instance_id, 'rotated', 'data key ' || id || ', wrapped by ' || wrapping_key), ` + durably + ` FROM added`

// addDataKey makes a data key for an instance, stores it, and writes with it from then on.
func (c *Container) addDataKey(ctx context.Context, in *instance) error {
	key, wrapped, err := c.makeDataKey(ctx, in.id)
	if err != nil {
		return err
	}
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		tag, err := c.pool.Exec(ctx, c.sql(addDataKeyStatement), pgx.QueryExecModeExec, in.id, in.epoch(), wrapped.ID, wrapped.WrappingKey, wrapped.Wrapped)
		if err == nil && tag.RowsAffected() == 0 {
			return in.moved()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: storing a data key: %w", err)
	}
	in.changeKeys(func(old *keyring) *keyring {
		ring := old.with(map[string]DataKey{key.ID(): key})
		ring.current = key
		return ring
	})
	return nil
}

// rejoinDataKeys reads the data keys of a database that went back: rows may be under one that was given up since.
func (c *Container) rejoinDataKeys(ctx context.Context, in *instance) error {
	if in.ring.Load() == nil {
		return nil
	}
	rings, err := c.keyrings(ctx, []string{in.id})
	if found := rings[in.id]; err == nil && found != nil {
		in.changeKeys(func(old *keyring) *keyring { return old.with(found.keys) })
	}
	return err
}

// ensureDataKey stores the key that an instance writes with, if a database that went back has lost it.
func (c *Container) ensureDataKey(ctx context.Context, in *instance) error {
	ring := in.ring.Load()
	if ring == nil || ring.current == nil {
		return nil
	}
	var has bool
	err := c.pool.QueryRow(ctx, c.sql(`SELECT EXISTS (SELECT FROM {schema}.data_keys WHERE instance_id = $1 AND id = $2)`), pgx.QueryExecModeExec, in.id, ring.current.ID()).Scan(&has)
	if err != nil || has {
		return err
	}
	wrapped, err := c.cfg.Encryption.Wrap(ctx, in.id, ring.current)
	if err != nil {
		return fmt.Errorf("pgstore: wrapping a data key: %w", err)
	}
	_, err = c.pool.Exec(ctx, c.sql(addDataKeyStatement), pgx.QueryExecModeExec, in.id, in.epoch(), wrapped.ID, wrapped.WrappingKey, wrapped.Wrapped)
	if err == nil {
		c.cfg.Logger.Warn("pgstore: database had lost a data key, stored again", "instance", in.id)
	}
	return err
}

// rewrapStatement replaces the wrapping of a data key, if it is still what was unwrapped.
const rewrapStatement = `
WITH rewrapped AS (
    UPDATE {schema}.data_keys SET wrapping_key = $4, wrapped = $5, wrapped_at = clock_timestamp()
    WHERE instance_id = $1 AND id = $2 AND wrapping_key = $3 RETURNING instance_id, id)
SELECT {schema}.audit_note(instance_id, 'rotated', 'data key ' || id || ': wrapping key ' || $3::text || ' to ' || $4::text), ` + durably + ` FROM rewrapped`

// Rewrap wraps the data keys of all instances with the wrapping key of today, and returns how many were wrapped with another one. No row changes, and nobody who has an
// instance notices, so it may run in any process, or in several. It can be repeated when it fails in the middle. Afterwards nothing but backups and copies
// of the database needs the earlier wrapping key; every process has to know the new one before. Without [Config].Encryption it is [ErrInvalidInput].
func (c *Container) Rewrap(ctx context.Context) (rewrapped int, err error) {
	if c.cfg.Encryption == nil {
		return 0, invalid("Encryption is not configured")
	}
	stored, err := c.readDataKeys(ctx, `WHERE wrapping_key <> $1`, c.cfg.Encryption.WrappingKey())
	if err != nil {
		return 0, err
	}
	var failed []error
	for _, s := range stored {
		done, err := c.rewrap(ctx, s)
		switch {
		case err != nil && ctx.Err() != nil:
			return rewrapped, err
		case err != nil:
			failed = append(failed, err) // the others need not wait for it
		case done:
			rewrapped++
		}
	}
	return rewrapped, errors.Join(failed...)
}

func (c *Container) rewrap(ctx context.Context, s storedDataKey) (done bool, err error) {
	key, err := c.unwrap(ctx, s)
	if err != nil {
		return false, err
	}
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		wrapped, err := c.cfg.Encryption.Wrap(ctx, s.instance, key)
		if err != nil {
			return err
		}
		tag, err := c.pool.Exec(ctx, c.sql(rewrapStatement), pgx.QueryExecModeExec, s.instance, s.ID, s.WrappingKey, wrapped.WrappingKey, wrapped.Wrapped)
		done = tag.RowsAffected() > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("pgstore: rewrapping data key %s of instance %s: %w", s.ID, s.instance, err)
	}
	return done, nil
}

// sealedOf lists the instances of those rows that are encrypted.
func sealedOf(rows []storedCreds) []string {
	var ids []string
	for _, r := range rows {
		if _, ok := sealedText(r.data); ok {
			ids = append(ids, r.instance)
		}
	}
	return slices.Compact(ids)
}
