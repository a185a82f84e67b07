package pgstore

import (
	"bytes"
	"context"
	"slices"
	"strconv"

	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// maxPreKeyID is the highest id given out: libsignal reads 0 as "none" and never removes 2^24-1.
const maxPreKeyID = preKeyIDLimit - 2

// GetOrGenPreKeys implements [store.PreKeyStore]. New ids come from a persistent counter, so an id
// that was removed does not come back before all others were used. The keys are durable when it returns: they are published.
func (s *deviceStore) GetOrGenPreKeys(ctx context.Context, count uint32) ([]*keys.PreKey, error) {
	if count == 0 {
		return nil, nil
	}
	if count > maxPreKeyID {
		return nil, ErrPreKeysExhausted
	}
	in, err := s.instance(ctx)
	if err != nil {
		return nil, err
	}
	var out []*keys.PreKey
	err = s.makePreKeys(ctx, func(v *view) error {
		out = nil
		for _, id := range sortedPreKeyIDs(v) {
			if k, ok := preKey(v, id); ok && !k.Uploaded && len(out) < int(count) {
				out = append(out, restorePreKey(id, k))
			}
		}
		for len(out) < int(count) {
			made, err := generatePreKey(v, false)
			if err != nil {
				return err
			}
			out = append(out, made)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	in.mu.handedOut = nil
	for _, k := range out {
		in.mu.handedOut = append(in.mu.handedOut, k.KeyID)
	}
	in.mu.Unlock()
	return out, nil
}

// GenOnePreKey implements [store.PreKeyStore]: one that counts as uploaded.
func (s *deviceStore) GenOnePreKey(ctx context.Context) (made *keys.PreKey, err error) {
	err = s.makePreKeys(ctx, func(v *view) error {
		made, err = generatePreKey(v, true)
		return err
	})
	return made, err
}

func (s *deviceStore) makePreKeys(ctx context.Context, fn func(*view) error) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	in.preKeys.Lock()
	defer in.preKeys.Unlock()
	if err = in.write(ctx, patienceDurable, fn); err != nil {
		return err
	}
	// Keys that were made by an earlier call and not yet durable are part of the answer, too.
	if in.transactionOf(ctx) == nil {
		return in.waited(ctx, in.lane.Barrier(ctx))
	}
	return nil
}

// generatePreKey makes a key under the counter's next id that is not in use.
func generatePreKey(v *view, uploaded bool) (*keys.PreKey, error) {
	next, healed := uint32(1), int64(0)
	stored, ok := v.Get(counterKey)
	if counter, ok := found[*credsValue](stored, ok); ok && counter.NextPreKeyID > 0 {
		next, healed = counter.NextPreKeyID, counter.HealedThrough
	}
	for tried := 0; ; tried++ {
		if next > maxPreKeyID {
			next = 1
		}
		if tried > maxPreKeyID {
			return nil, ErrPreKeysExhausted
		}
		if !v.Has(newKey(typePreKey, preKeyID(next))) {
			break
		}
		next++
	}
	made := keys.NewPreKey(next)
	v.Put(newKey(typePreKey, preKeyID(next)), &preKeyValue{Private: bytes.Clone(made.Priv[:]), Uploaded: uploaded})
	v.Put(counterKey, &credsValue{NextPreKeyID: next + 1, HealedThrough: healed})
	return made, nil
}

func sortedPreKeyIDs(v *view) []uint32 {
	var ids []uint32
	for _, text := range v.IDs(typePreKey, "") {
		if id, err := strconv.ParseUint(text, 10, 32); err == nil {
			ids = append(ids, uint32(id))
		}
	}
	slices.Sort(ids)
	return ids
}

func preKey(v *view, id uint32) (*preKeyValue, bool) {
	stored, ok := v.Get(newKey(typePreKey, preKeyID(id)))
	return found[*preKeyValue](stored, ok)
}

func restorePreKey(id uint32, k *preKeyValue) *keys.PreKey {
	return &keys.PreKey{KeyPair: *keys.NewKeyPairFromPrivateKey([32]byte(k.Private)), KeyID: id}
}

// GetPreKey implements [store.PreKeyStore].
func (s *deviceStore) GetPreKey(ctx context.Context, id uint32) (*keys.PreKey, error) {
	v, ok, err := s.get(ctx, newKey(typePreKey, preKeyID(id)))
	k, ok := found[*preKeyValue](v, ok)
	if err != nil || !ok {
		return nil, err
	}
	return restorePreKey(id, k), nil
}

// RemovePreKey implements [store.PreKeyStore].
func (s *deviceStore) RemovePreKey(ctx context.Context, id uint32) error {
	return s.remove(ctx, typePreKey, one(preKeyID(id)))
}

// MarkPreKeysAsUploaded implements [store.PreKeyStore]. The client passes the last id of those it was given: when ids have
// begun anew from 1, "all up to it" would be others, so what was handed out is remembered.
func (s *deviceStore) MarkPreKeysAsUploaded(ctx context.Context, upToID uint32) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	in.mu.Lock()
	batch := in.mu.handedOut
	in.mu.Unlock()
	marked := func(id uint32) bool { return id <= upToID }
	if n := len(batch); n > 0 && batch[n-1] == upToID {
		marked = func(id uint32) bool { return slices.Contains(batch, id) }
	}
	return s.write(ctx, patienceNone, func(v *view) error {
		for _, id := range sortedPreKeyIDs(v) {
			if k, ok := preKey(v, id); ok && marked(id) && !k.Uploaded {
				v.Put(newKey(typePreKey, preKeyID(id)), &preKeyValue{Private: k.Private, Uploaded: true})
			}
		}
		return nil
	})
}

// UploadedPreKeyCount implements [store.PreKeyStore].
func (s *deviceStore) UploadedPreKeyCount(ctx context.Context) (count int, err error) {
	err = s.read(ctx, func(v *view) error {
		count = 0
		for _, id := range v.IDs(typePreKey, "") {
			stored, ok := v.Get(cache.Key{Type: typePreKey, ID: id})
			if k, ok := found[*preKeyValue](stored, ok); ok && k.Uploaded && !k.Stale {
				count++
			}
		}
		return nil
	})
	return count, err
}
