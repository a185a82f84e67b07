package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// Rows that are not as they are to be written now, plain ones, encrypted ones, or those under an older data key, are written again by who has the instance, the way that
// every write goes: through the cache and the batcher, so that nothing of it is older than what a client has just put, and a flush of somebody who has lost the instance
// changes nothing.
//
//  1. Wait for what is being flushed. Whatever comes after it is written as it is to be.
//  2. List a piece of the other rows, put each as memory or the database has it, and wait until that is durable. Go on after the last one.
//  3. When none is left, say so where the instance's data keys are, and delete those under which nothing is, not even a row that was set aside.
//
// It goes on where it was when an instance is taken that is not complete.

// reencryptPiece is how many rows are written again together.
const reencryptPiece = 200

// notAsWritten are the rows of an instance ($1) that are not under the data key $2, or, if that is empty, not plain.
const notAsWritten = `{schema}.auth_keys k WHERE k.instance_id = $1 AND CASE WHEN $2::text = '' THEN k.data ? 'enc' ELSE NOT starts_with(coalesce(k.data->>'enc', ''), $2) END`

// completeStatement notes that all rows are as they are written, if that is so, and lets go of the other data keys, but for those of rows that were set aside: these
// stay as they were until a person has looked at them.
const completeStatement = `
WITH whole AS (
    SELECT i.id FROM {schema}.instances i WHERE i.id = $1 AND i.epoch = $3 AND NOT EXISTS (SELECT FROM ` + notAsWritten + `)
), gone AS (
    DELETE FROM {schema}.data_keys d USING whole WHERE d.instance_id = whole.id AND d.id <> $2
        AND NOT EXISTS (SELECT FROM {schema}.set_aside s WHERE s.instance_id = d.instance_id AND starts_with(s.data->>'enc', d.id)) RETURNING d.id
), kept AS (
    UPDATE {schema}.data_keys d SET complete = true FROM whole WHERE d.instance_id = whole.id AND d.id = $2
)
SELECT {schema}.audit_note(id, 'rotated', CASE WHEN $2 = '' THEN 'all values are plain' ELSE 'all values are under data key ' || $2 END
    || (SELECT coalesce(', deleted: ' || string_agg(gone.id, ' '), '') FROM gone)), ` + durably + ` FROM whole`

// RotateDataKey makes a new data key for an instance, encrypts all its values with it, and deletes the older ones, except what rows in set_aside are under. It takes the instance as its first write would, if this container does not have it: call it
// where the instance is, since a process that has it would lose it. Clients go on meanwhile. It returns when nothing is under another key any more; if it fails before, what is
// written from then on is under the new key nevertheless, and the rest follows in the background when the instance is next taken. Without [Config].Encryption, or with
// [Decrypting], it is [ErrInvalidInput]; [ErrDeviceDeleted] if there is no such instance.
func (c *Container) RotateDataKey(ctx context.Context, id string) error {
	if c.cfg.Encryption == nil || c.cfg.EncryptionMode == Decrypting {
		return invalid("Encryption is not configured")
	}
	in, err := c.instance(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrDeviceDeleted
	} else if err != nil {
		return err
	}
	if err = in.beginRekeying(ctx); err != nil {
		return err
	}
	defer in.endRekeying()
	if err = c.addDataKey(ctx, in); err != nil {
		return err
	}
	return in.reencrypt(ctx)
}

// beginRekeying waits until nobody else encrypts the instance's rows anew.
func (in *instance) beginRekeying(ctx context.Context) error {
	select {
	case in.rekeying <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: values are being encrypted anew: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func (in *instance) endRekeying() { <-in.rekeying }

// reencryptInBackground goes on with what is not complete.
func (in *instance) reencryptInBackground(ctx context.Context) {
	if err := in.beginRekeying(ctx); err != nil {
		return
	}
	defer in.endRekeying()
	if err := in.reencrypt(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		in.c.cfg.Logger.Warn("pgstore: values are not encrypted anew, goes on when the instance is next taken", "instance", in.id, "error", err)
	}
}

// reencrypt writes again what is not as it is to be written.
func (in *instance) reencrypt(ctx context.Context) error {
	id := ""
	if current := in.ring.Load().current; current != nil {
		id = current.ID()
	}
	written := 0
	for {
		last, err := in.lane.Last()
		if err == nil {
			err = in.waitFor(ctx, WaitDurable, last)
		}
		if err != nil {
			return in.translate(err)
		}
		n, err := in.rewriteOthers(ctx, id)
		written += n
		if err != nil {
			return err
		}
		var complete bool
		err = in.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
			tag, err := in.c.pool.Exec(ctx, in.c.sql(completeStatement), pgx.QueryExecModeExec, in.id, id, in.epoch())
			complete = tag.RowsAffected() > 0
			return err
		})
		if err != nil {
			return err
		}
		if complete {
			in.c.cfg.Logger.Info("pgstore: all values are under one data key, or plain", "instance", in.id, "data_key", id, "written", written)
			return nil
		}
		if n == 0 { // nothing to do, and it is not complete: others have it, or a row of a later version
			return in.notComplete()
		}
	}
}

// errNotComplete is of an instance some of whose rows cannot be written again.
var errNotComplete = errors.New("pgstore: some rows cannot be encrypted anew")

func (in *instance) notComplete() error {
	if err := in.moved(); !errors.Is(err, errAgain) {
		return err
	}
	return errNotComplete
}

// rewriteOthers goes once through the rows that are not as they are to be written, and says how many were.
func (in *instance) rewriteOthers(ctx context.Context, id string) (written int, err error) {
	var after cache.Key
	for {
		keys, err := in.others(ctx, id, after)
		if err != nil || len(keys) == 0 {
			return written, err
		}
		unreadable := make(map[cache.Key]*recordValue)
		err = in.writeMany(ctx, patienceDurable, len(keys), func(v *view) error {
			for _, k := range keys {
				stored, ok := v.Get(k)
				if rec, is := stored.(*recordValue); ok && is && !rec.decoded() {
					unreadable[k] = rec
				} else if ok {
					v.Write(cache.Write[value]{Key: k, Op: cache.Put, Value: stored}) // a Put would change nothing
				}
			}
			return nil
		})
		if err != nil {
			return written, err
		}
		for k, rec := range unreadable {
			if rec.aside.CompareAndSwap(false, true) {
				in.setAside(ctx, k, rec)
			}
		}
		written += len(keys)
		after = keys[len(keys)-1]
	}
}

// others lists a piece of the rows that are not as they are to be written, after one of them.
func (in *instance) others(ctx context.Context, id string, after cache.Key) (keys []cache.Key, err error) {
	kind := ""
	if after != (cache.Key{}) {
		kind = typeName(after.Type)
	}
	err = in.c.read(ctx, `SELECT k.key_type, k.key_id FROM `+notAsWritten+` AND (k.key_type, k.key_id) > ($3, $4) AND k.key_type = ANY($5) ORDER BY k.key_type, k.key_id LIMIT $6`,
		[]any{in.id, id, kind, after.ID, knownTypes(), reencryptPiece}, func() { keys = nil }, func(rows pgx.Rows) error {
			var typ string
			var k cache.Key
			err := rows.Scan(&typ, &k.ID)
			k.Type = typesByName[typ]
			keys = append(keys, k)
			return err
		})
	return keys, err
}

// knownTypes lists the key_type of all types.
func knownTypes() (names []string) {
	for _, d := range keyTypes {
		names = append(names, d.name)
	}
	return names
}
