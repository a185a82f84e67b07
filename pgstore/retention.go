package pgstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// Retention says from which age on things are let go of. Zero keeps them.
type Retention struct {
	// BufferedEvents is for the hashes of messages that were decrypted, and the plaintexts of those that were not handled. The client itself deletes them after
	// 14 days, for as long the server may deliver a message again: at least that is needed not to handle one twice.
	BufferedEvents time.Duration
	// OutgoingEvents is for what was sent, kept for retry receipts; the client itself deletes it after seven days.
	OutgoingEvents time.Duration
	// MessageSecrets is for the secrets of messages, with which later edits, reactions and votes of a poll are read. Nobody else deletes them: of a message that is older,
	// such things cannot be read any more.
	MessageSecrets time.Duration
}

// Pruned says how many keys [Container.Prune] has let go of.
type Pruned struct {
	BufferedEvents, OutgoingEvents, MessageSecrets int
}

// Prune deletes what is older than keep says, of an instance: the way that every write goes, so it takes the instance as its first write would if this container does
// not have it, and clients of this container go on meanwhile. It returns when that is durable; after an error, part of it may be deleted. The error is
// [ErrNoInstance] if there is no such instance.
func (c *Container) Prune(ctx context.Context, id string, keep Retention) (p Pruned, err error) {
	for name, age := range map[string]time.Duration{"BufferedEvents": keep.BufferedEvents, "OutgoingEvents": keep.OutgoingEvents, "MessageSecrets": keep.MessageSecrets} {
		if age < 0 {
			return p, fmt.Errorf("%w: %s is %v, must be positive", ErrInvalidInput, name, age)
		}
	}
	d, err := c.takeDevice(ctx, id)
	if err != nil {
		return p, err
	} else if d == nil {
		return p, ErrNoInstance
	}
	in, err := c.instance(ctx, id)
	if err != nil {
		return p, err
	}
	now := time.Now()
	if keep.BufferedEvents > 0 {
		p.BufferedEvents, err = in.prune(ctx, typeBufferedEvent, now.Add(-keep.BufferedEvents))
	}
	if err == nil && keep.OutgoingEvents > 0 {
		p.OutgoingEvents, err = in.prune(ctx, typeOutgoingEvent, now.Add(-keep.OutgoingEvents))
	}
	if err == nil && keep.MessageSecrets > 0 {
		p.MessageSecrets, err = in.pruneSecrets(ctx, keep.MessageSecrets)
	}
	if err != nil {
		return p, err
	}
	last, err := in.lane.Last()
	if err != nil {
		return p, in.failed(in.translate(err))
	}
	return p, in.failed(in.waitFor(ctx, WaitDurable, last))
}

// pruneSecrets deletes secrets whose rows were written longer ago than age, by the database's clock: a secret is written once.
func (in *instance) pruneSecrets(ctx context.Context, age time.Duration) (deleted int, err error) {
	var old []string
	err = in.c.read(ctx, `SELECT key_id FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = $2 AND updated_at < clock_timestamp() - make_interval(secs => $3)`,
		[]any{in.id, typeName(typeMessageSecret), age.Seconds()}, func() { old = nil }, func(rows pgx.Rows) error { return scanID(rows, &old) })
	if err != nil {
		return 0, err
	}
	for ids := range slices.Chunk(old, pruneChunk) {
		err = in.writeMany(ctx, patienceNone, len(ids), func(v *view) error {
			for _, id := range ids {
				v.Delete(cache.Key{Type: typeMessageSecret, ID: id})
			}
			return nil
		})
		if err != nil {
			return deleted, err
		}
		deleted += len(ids)
	}
	return deleted, nil
}
