package pgstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

const (
	bufferedHashAge  = 14 * 24 * time.Hour // how long the server keeps a message for redelivery
	outgoingEventAge = 7 * 24 * time.Hour
	pruneInterval    = time.Hour // the client asks for pruning with every send
)

// errBuffered is returned for a hash that is buffered already, as sqlstore's insert fails. It happens where a connection ended while a message
// of it was handled, and the next one brings that message again: whoever came first deals with it. It matches context.Canceled, so that
// the client asks for nothing and acknowledges nothing.
var errBuffered = fmt.Errorf("pgstore: event is buffered already: %w", context.Canceled)

func bufferedKey(hash [32]byte) cache.Key { return newKey(typeBufferedEvent, binaryID(hash[:])) }

// keepUnprocessed keeps a buffered event in memory until its plaintext is cleared, which comes soon.
func keepUnprocessed(_ cache.Key, v value) bool {
	event, ok := v.(*bufferedEventValue)
	return ok && event.Plaintext != nil
}

// GetBufferedEvent implements [store.EventBuffer]. It is asked for every inbound message and nearly always absent, which memory answers.
func (s *deviceStore) GetBufferedEvent(ctx context.Context, ciphertextHash [32]byte) (*store.BufferedEvent, error) {
	v, ok, err := s.get(ctx, bufferedKey(ciphertextHash))
	event, ok := found[*bufferedEventValue](v, ok)
	if err != nil || !ok {
		return nil, err
	}
	out := &store.BufferedEvent{ServerTime: time.Unix(event.ServerS, 0), InsertTime: time.UnixMilli(event.InsertMS)}
	if event.Plaintext != nil {
		out.Plaintext = append([]byte{}, event.Plaintext...)
	}
	return out, nil
}

// PutBufferedEvent implements [store.EventBuffer]. A plaintext that is empty is not one that was cleared.
func (s *deviceStore) PutBufferedEvent(ctx context.Context, ciphertextHash [32]byte, plaintext []byte, serverTimestamp time.Time) error {
	k := bufferedKey(ciphertextHash)
	event := &bufferedEventValue{ServerS: serverTimestamp.Unix(), InsertMS: time.Now().UnixMilli()}
	if plaintext != nil {
		event.Plaintext = append([]byte{}, plaintext...)
	}
	return s.write(ctx, patienceNone, func(v *view) error {
		if v.Has(k) {
			return errBuffered
		}
		v.Put(k, event)
		return nil
	})
}

// DoDecryptionTxn implements [store.EventBuffer]: what fn writes through its context becomes visible and durable all together, or, if
// fn fails or panics, not at all. A nested call joins the outer one.
func (s *deviceStore) DoDecryptionTxn(ctx context.Context, fn func(context.Context) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.transact(ctx, fn)
}

// ClearBufferedEventPlaintext implements [store.EventBuffer]. It comes after the handler and before the acknowledgement: with
// [Config].DurableAcks it waits until everything before it is durable.
func (s *deviceStore) ClearBufferedEventPlaintext(ctx context.Context, ciphertextHash [32]byte) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	k := bufferedKey(ciphertextHash)
	err = in.write(ctx, patienceNone, func(v *view) error {
		if !v.Has(k) {
			return nil
		}
		stored, ok := v.Get(k)
		if event, ok := found[*bufferedEventValue](stored, ok); ok && event.Plaintext != nil {
			v.Put(k, &bufferedEventValue{ServerS: event.ServerS, InsertMS: event.InsertMS})
		}
		return nil
	})
	if err != nil || !s.c.cfg.DurableAcks || in.transactionOf(ctx) != nil {
		return err
	}
	last, err := in.lane.Last()
	if err != nil {
		return in.failed(in.translate(err))
	}
	return in.failed(in.waitFor(ctx, WaitAcknowledgement, last))
}

// DeleteOldBufferedHashes implements [store.EventBuffer], for all instances that this container has taken: each client calls it after a start, so those of others
// are looked through only if that was not done lately. What goes wrong with them is logged.
func (s *deviceStore) DeleteOldBufferedHashes(ctx context.Context) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	if err = in.failure(); err != nil {
		return err
	}
	now := time.Now()
	for _, other := range s.c.taken() {
		if other == in || !other.usable() || other.releasing.Load() || !other.pruneDue(typeBufferedEvent, now) {
			continue
		}
		if _, err := other.prune(ctx, typeBufferedEvent, now.Add(-bufferedHashAge)); err != nil {
			if ctx.Err() != nil {
				return err
			}
			s.c.cfg.Logger.Warn("pgstore: old buffered hashes not pruned", "instance", other.id, "error", err)
		}
	}
	in.pruneDue(typeBufferedEvent, now)
	_, err = in.prune(ctx, typeBufferedEvent, now.Add(-bufferedHashAge))
	return err
}

// pruneDue says whether an instance's events were not looked through lately, and notes that they are now.
func (in *instance) pruneDue(t cache.Type, now time.Time) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if now.Sub(in.mu.pruned[t]) < pruneInterval {
		return false
	}
	in.mu.pruned[t] = now
	return true
}

// pruneChunk is how many events are looked at together.
const pruneChunk = 500

// prune deletes events that were inserted before cutoff: through the instance's own lane, as every write. One
// that was stored anew since it was listed stays. One whose time cannot be read is listed, too, and so found and set aside. Of an encrypted one only the row's own
// time can be seen, which is no earlier.
func (in *instance) prune(ctx context.Context, t cache.Type, cutoff time.Time) (deleted int, err error) {
	var old []string
	err = in.c.read(ctx, `SELECT key_id FROM {schema}.auth_keys WHERE instance_id = $1 AND key_type = $2
		AND CASE WHEN data ? 'enc' THEN updated_at < to_timestamp($3::bigint / 1000.0)
			WHEN jsonb_typeof(data->'insert_ms') = 'number' THEN (data->>'insert_ms')::numeric < $3 ELSE true END`,
		[]any{in.id, typeName(t), cutoff.UnixMilli()}, func() { old = nil }, func(rows pgx.Rows) error { return scanID(rows, &old) })
	if err != nil {
		return 0, err
	}
	for ids := range slices.Chunk(old, pruneChunk) {
		gone := 0
		err = in.write(ctx, patienceNone, func(v *view) error {
			gone = 0
			for _, id := range ids {
				k := cache.Key{Type: t, ID: id}
				stored, _ := v.Get(k)
				if event, ok := stored.(interface{ inserted() int64 }); ok && event.inserted() < cutoff.UnixMilli() {
					v.Delete(k)
					gone++
				}
			}
			return nil
		})
		if err != nil {
			return deleted, err
		}
		deleted += gone
	}
	return deleted, nil
}

func outgoingKey(chat types.JID, id types.MessageID) cache.Key {
	return newKey(typeOutgoingEvent, chat.String(), id)
}

// GetOutgoingEvent implements [store.EventBuffer]. Absent is [sql.ErrNoRows], as the client expects.
func (s *deviceStore) GetOutgoingEvent(ctx context.Context, chatJID, altChatJID types.JID, id types.MessageID) (format string, plaintext []byte, err error) {
	err = s.readSome(ctx, typeOutgoingEvent, func(v *view) error {
		format, plaintext = "", nil
		for _, chat := range []types.JID{chatJID, altChatJID} {
			stored, ok := v.Get(outgoingKey(chat, id))
			if event, ok := found[*outgoingEventValue](stored, ok); ok {
				format, plaintext = string(event.Format), append([]byte{}, event.Plaintext...)
				return nil
			}
		}
		return sql.ErrNoRows
	})
	return format, plaintext, err
}

// AddOutgoingEvent implements [store.EventBuffer].
func (s *deviceStore) AddOutgoingEvent(ctx context.Context, chatJID types.JID, id types.MessageID, format string, plaintext []byte) error {
	if plaintext == nil {
		return invalid("plaintext of an outgoing event is nil")
	}
	return s.put(ctx, patienceNone, outgoingKey(chatJID, id),
		&outgoingEventValue{Format: text(format), Plaintext: append([]byte{}, plaintext...), InsertMS: time.Now().UnixMilli()})
}

// DeleteOldOutgoingEvents implements [store.EventBuffer]. The client calls it with every send: it does something once an hour, in the
// background, so that no send waits for it.
func (s *deviceStore) DeleteOldOutgoingEvents(ctx context.Context) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	if err = in.failure(); err != nil {
		return err
	}
	if in.pruneDue(typeOutgoingEvent, time.Now()) {
		s.c.background(func(ctx context.Context) {
			if _, err := in.prune(ctx, typeOutgoingEvent, time.Now().Add(-outgoingEventAge)); err != nil && ctx.Err() == nil {
				s.c.cfg.Logger.Warn("pgstore: old outgoing events not pruned", "instance", in.id, "error", err)
			}
		})
	}
	return nil
}
