package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// putRecords puts sessions or sender keys as one group, each merged with what was stored meanwhile; if one is refused, none is stored.
// Inside a transaction that happens at its end.
func (in *instance) putRecords(ctx context.Context, wait patience, from source, records map[cache.Key]*recordValue) error {
	if in.transactionOf(ctx) != nil {
		return in.writeMany(ctx, wait, len(records), func(v *view) error {
			for k, record := range records {
				v.Put(k, record)
			}
			return nil
		})
	}
	count := 0
	return in.counted(&count, in.writeMany(ctx, wait, len(records), func(v *view) error {
		count = 0
		for k, record := range records {
			merged, err := in.putRecord(v, k, record, from)
			if err != nil {
				return err
			}
			count += merged
		}
		return nil
	}))
}

// counted counts what a write merged, or that it was refused.
func (in *instance) counted(merged *int, err error) error {
	if errors.Is(err, ErrMessageKeyUsed) {
		in.c.refused.Add(1)
		in.c.cfg.Logger.Debug("pgstore: send refused, its message key was used", "instance", in.id)
	} else if *merged > 0 {
		in.c.merged.Add(int64(*merged))
		in.c.cfg.Logger.Debug("pgstore: records merged that were changed at once", "instance", in.id, "records", *merged)
	}
	return err
}

// putRecord puts a session or a sender key where nothing came in between, and merges or refuses it otherwise (see
// ratchet.go). It says how many records it merged.
func (in *instance) putRecord(v *view, k cache.Key, record *recordValue, from source) (merged int, err error) {
	if k.Type == typeSenderKey {
		return in.putSenderKey(v, k, record, from)
	}
	return in.putSession(v, k, record, from)
}

func (in *instance) putSession(v *view, k cache.Key, session *recordValue, from source) (merged int, err error) {
	written := session.form.Load().record
	now, readable := session.ratchet()
	value, exists := v.Get(k)
	stored, exists := found[*recordValue](value, exists)
	var before []byte
	if exists {
		before, _ = stored.read()
	}
	if readable && !from.moved && from.by != writerMigration && !bytes.Contains(before, now.chain) {
		was, reached := in.whereGone(k, now.chain)
		switch {
		case was == nil || !from.before(was.at):
		case was.moved():
			from.moved, from.reached = true, max(from.reached, reached)
			return in.putSession(v, was.to, session, from)
		case from.by == writerSend && reached >= now.counter:
			return 0, ErrMessageKeyUsed
		default:
			if from.by == writerSend {
				in.sentWhenGone(v, was, now.chain, now.counter)
			}
			return 0, nil
		}
	}
	then, storedReadable := stored.ratchet()
	if !readable || !storedReadable {
		v.Put(k, session)
		return 0, nil
	}
	if from.by == writerUnknown {
		from.by = writerDecrypt
		if now.sentFrom(then) {
			from.by = writerSend
		}
	}
	if in.untouched(stored, before, then, written, now, from) {
		v.Put(k, session.after(stored, then, now))
		return 0, nil
	}
	result, left, err := mergeRecords(before, written, from, stored.past)
	switch {
	case errors.Is(err, errUnreadable):
		v.Put(k, session)
		return 0, nil
	case err != nil:
		return 0, err
	}
	out := newRecord(result)
	out.past = left
	v.Put(k, out)
	if from.undisturbed(stored) {
		return 0, nil // an archived state was promoted, nothing raced
	}
	return 1, nil
}

// untouched says whether what is put was made of what is stored, so that it can be stored as it is.
func (in *instance) untouched(stored *recordValue, before []byte, then ratchet, written []byte, now ratchet, from source) bool {
	switch {
	case from.by == writerDecrypt && now.sameChain(then):
		return from.undisturbed(stored) && now.counter == then.counter
	case from.by == writerDecrypt:
		// Not if an archived state is promoted: the attempt to use the current one has left a needless step in it.
		return from.undisturbed(stored) && (bytes.Equal(now.session, then.session) || !bytes.Contains(before, now.session))
	case now.sameChain(then):
		return now.rest == then.rest && now.counter > then.counter
	default:
		return from.by == writerSend && beganOn(before, written)
	}
}

// beganOn says whether a record is a stored one with a new session on top.
func beganOn(before, written []byte) bool {
	const head, archive, tail = `{"SessionState":`, `,"PreviousStates":[`, `]}`
	current, archived, ok := bytes.Cut(before, []byte(archive))
	if !ok || !bytes.HasPrefix(current, []byte(head)) || !bytes.HasSuffix(archived, []byte(tail)) {
		return false
	}
	expected := append([]byte(archive), current[len(head):]...)
	if archived = bytes.TrimSuffix(archived, []byte(tail)); len(archived) > 0 {
		expected = append(append(expected, ','), archived...)
	}
	return bytes.HasSuffix(written, append(expected, tail...))
}

// after is a record that is stored as it was put. It keeps the past of the one it replaces, and the chain of that if it has been stepped over.
func (v *recordValue) after(stored *recordValue, then, now ratchet) *recordValue {
	v.past = stored.past
	if written := v.form.Load().record; !now.sameChain(then) && !bytes.Contains(written, then.chain) {
		v.past = v.past.then(fingerprint(then.chain), then.counter)
	}
	return v
}

// mergeRecords merges the written session into the stored one, and says which chains it left behind.
func mergeRecords(before, written []byte, from source, past *past) (result []byte, left *past, err error) {
	stored, err := parseSession(before)
	if err != nil {
		return nil, nil, err
	}
	put, err := parseSession(written)
	if err != nil {
		return nil, nil, err
	}
	chains := sendingChains(stored)
	merged, err := mergeSessions(stored, put, from, past)
	if err != nil {
		return nil, nil, err
	}
	if from.by != writerDecrypt { // a decrypt's own new chain has not been sent on
		for chain, counter := range sendingChains(put) {
			chains[chain] = max(chains[chain], counter)
		}
	}
	kept := sendingChains(merged)
	left = past
	for chain, counter := range chains {
		if _, ok := kept[chain]; !ok {
			left = left.then(fingerprint([]byte(chain)), counter)
		}
	}
	result, err = encodeSession(merged)
	return result, left, err
}

// putSenderKey is putSession for sender keys. Only of our own it is a send.
func (in *instance) putSenderKey(v *view, k cache.Key, senderKey *recordValue, from source) (merged int, err error) {
	written := senderKey.form.Load().record
	value, exists := v.Get(k)
	stored, exists := found[*recordValue](value, exists)
	if !exists {
		if was, _ := in.whereGone(k, senderKeyID(written)); was != nil && was.moved() && !from.moved {
			from.moved = true
			return in.putSenderKey(v, was.to, senderKey, from)
		}
		v.Put(k, senderKey)
		return 0, nil
	}
	before, ok := stored.read()
	if !ok {
		v.Put(k, senderKey)
		return 0, nil
	}
	then, ok1 := senderKeyIteration(before)
	now, ok2 := senderKeyIteration(written)
	untouched := from.by != writerMigration && !from.known || from.undisturbed(stored) // nothing is known: nobody read it
	if from.by == writerSend {
		untouched = ok1 && ok2 && now > then && bytes.Equal(senderKeyID(before), senderKeyID(written))
	}
	var result []byte
	if !untouched {
		result, err = mergeSenderKeyRecords(before, written, from.by)
	}
	switch {
	case untouched, errors.Is(err, errUnreadable):
		v.Put(k, senderKey)
		return 0, nil
	case err != nil:
		return 0, err
	}
	v.Put(k, newRecord(result))
	return 1, nil
}

func mergeSenderKeyRecords(before, written []byte, by writer) ([]byte, error) {
	stored, err := parseSenderKey(before)
	if err != nil {
		return nil, err
	}
	put, err := parseSenderKey(written)
	if err != nil {
		return nil, err
	}
	merged, err := mergeSenderKeys(stored, put, by)
	if err != nil {
		return nil, err
	}
	return json.Marshal(merged)
}

// senderKeyIteration is the next iteration of the newest state.
func senderKeyIteration(senderKey []byte) (uint64, bool) {
	_, after, _ := bytes.Cut(senderKey, []byte(`"SenderChainKey":{"Iteration":`))
	digits, _, ok := bytes.Cut(after, []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return n, ok && err == nil
}
