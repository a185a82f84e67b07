package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// source is what is known of where a session that is put comes from.
type source struct {
	by        writer
	base      *recordValue // what the writer had read, nil if there was none
	baseKnown bool
}

// noteRead remembers what a transaction was given of a session.
func noteRead(ctx context.Context, k cache.Key, rec *recordValue) {
	tx, ok := ctx.Value(transactionKey{}).(*transaction)
	if !ok || k.Type != typeSession {
		return
	}
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if _, known := tx.read[k]; known || tx.ended {
		return // what is read later may be its own
	}
	if tx.read == nil {
		tx.read = make(map[cache.Key]*recordValue)
	}
	tx.read[k] = rec
}

func (tx *transaction) base(k cache.Key) (rec *recordValue, known bool) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	rec, known = tx.read[k]
	return rec, known
}

// movedTo says where a session is now that a transaction had read and a migration has moved meanwhile.
func (in *instance) movedTo(k cache.Key, base *recordValue) (to cache.Key, moved bool) {
	if base == nil {
		return to, false
	}
	data, err := base.bytes()
	if err != nil {
		return to, false
	}
	was, ok := ratchetOf(data)
	if !ok {
		return to, false
	}
	where, gone := in.whereGone(k, was.chain)
	return where.to, gone && where.to != (cache.Key{})
}

// putRecords puts sessions or sender keys as one group, each merged with what was stored meanwhile. Inside a transaction that
// happens at its end.
func (in *instance) putRecords(ctx context.Context, wait patience, by writer, records map[cache.Key][]byte) error {
	if in.transactionOf(ctx) != nil {
		return in.writeMany(ctx, wait, len(records), func(v *view) error {
			for k, record := range records {
				v.Put(k, newRecord(record))
			}
			return nil
		})
	}
	count := 0
	return in.counted(&count, in.writeMany(ctx, wait, len(records), func(v *view) error {
		count = 0
		for k, record := range records {
			put := in.putSenderKey
			if k.Type == typeSession {
				put = in.putSession
			}
			merged, err := put(v, k, newRecord(record), source{by: by})
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

// putSession puts a session where nothing came in between, and merges or refuses it otherwise (see ratchet.go). It says
// how many records it merged.
func (in *instance) putSession(v *view, k cache.Key, session *recordValue, from source) (merged int, err error) {
	written := session.form.Load().record
	now, readable := ratchetOf(written)
	value, exists := v.Get(k)
	stored, exists := found[*recordValue](value, exists)
	var before []byte
	if exists {
		before, err = stored.bytes()
	}
	if readable && from.by != writerDecrypt && !bytes.Contains(before, now.chain) {
		if was, gone := in.whereGone(k, now.chain); gone && was.to != (cache.Key{}) {
			return in.putSession(v, was.to, session, source{by: from.by})
		} else if gone {
			return 0, nil // deleted meanwhile
		}
	}
	if !exists {
		v.Put(k, session)
		return 0, nil
	}
	then, storedReadable := ratchetOf(before)
	if err != nil || !readable || !storedReadable {
		v.Put(k, session)
		return 0, nil
	}
	if from.by == writerUnknown {
		from.by = told(then, stored.past, now)
	}
	if from.by == writerSend && now.rest == then.rest && bytes.Equal(now.chain, then.chain) && now.counter <= then.counter && now.counter > 0 {
		return 0, ErrMessageKeyUsed
	}
	if in.undisturbed(stored, before, then, written, now, from) {
		v.Put(k, session.after(stored, then, now))
		return 0, nil
	}
	result, err := mergeRecords(before, written, from, stored.past)
	switch {
	case errors.Is(err, errUnreadable):
		v.Put(k, session.after(stored, then, now))
		return 0, nil
	case err != nil:
		return 0, err
	}
	out := newRecord(result)
	after, _ := ratchetOf(result)
	v.Put(k, out.after(stored, then, after))
	return 1, nil
}

// told says from the records whether a plain PutSession was a send.
func told(then ratchet, before *past, now ratchet) writer {
	if now.rest == then.rest && bytes.Equal(now.chain, then.chain) || before.version(now) {
		return writerSend
	}
	return writerDecrypt
}

// undisturbed says whether what is put was made of what is stored.
func (in *instance) undisturbed(stored *recordValue, before []byte, then ratchet, written []byte, now ratchet, from source) bool {
	if bytes.Equal(now.chain, then.chain) {
		if from.by == writerSend || from.by == writerMigration {
			return now.rest == then.rest && now.counter >= then.counter
		}
		return from.baseKnown && sameRecord(from.base, stored) || !from.baseKnown && now.counter == then.counter
	}
	if from.by != writerDecrypt || bytes.Contains(before, now.chain) { // an archived chain is promoted
		return false
	}
	if from.baseKnown {
		return sameRecord(from.base, stored)
	}
	// It stepped the ratchet: then it says where the chain before had got to.
	_, passed := stored.past.furthest(now.chain)
	previous, ok := previousCounter(written)
	return ok && !passed && previous == max(then.counter, 1)-1
}

// sameRecord says whether two values hold one record: the same value, or one that was evicted and fetched again.
func sameRecord(a, b *recordValue) bool {
	if a == nil || a == b {
		return a == b
	}
	x, err1 := a.bytes()
	y, err2 := b.bytes()
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// previousCounter reads the current state's, which libsignal writes first.
func previousCounter(session []byte) (uint64, bool) {
	_, after, _ := bytes.Cut(session, []byte(`"PreviousCounter":`))
	digits, _, ok := bytes.Cut(after, []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return n, ok && err == nil
}

// after gives a record its past: that of the one it replaces, and that one where it was no send.
func (v *recordValue) after(stored *recordValue, then, now ratchet) *recordValue {
	out := &recordValue{past: stored.past}
	out.form.Store(v.form.Load())
	if then.rest != now.rest {
		out.past = stored.past.then(then)
	}
	return out
}

func mergeRecords(before, written []byte, from source, past *past) ([]byte, error) {
	stored, err := parseSession(before)
	if err != nil {
		return nil, err
	}
	put, err := parseSession(written)
	if err != nil {
		return nil, err
	}
	var base *sessionRecord
	if from.base != nil {
		if data, err := from.base.bytes(); err == nil {
			base, _ = parseSession(data)
		}
	}
	merged, err := mergeSessions(stored, put, base, from.by, past)
	if err != nil {
		return nil, err
	}
	return json.Marshal(merged)
}

// putSenderKey is putSession for our own sender keys.
func (in *instance) putSenderKey(v *view, k cache.Key, senderKey *recordValue, from source) (merged int, err error) {
	written := senderKey.form.Load().record
	value, exists := v.Get(k)
	stored, exists := found[*recordValue](value, exists)
	if !exists {
		if was, gone := in.whereGone(k, senderKeyID(written)); gone && was.to != (cache.Key{}) {
			return in.putSenderKey(v, was.to, senderKey, from)
		}
		v.Put(k, senderKey)
		return 0, nil
	}
	before, err := stored.bytes()
	if err != nil {
		v.Put(k, senderKey)
		return 0, nil
	}
	then, ok1 := senderKeyIteration(before)
	now, ok2 := senderKeyIteration(written)
	if ok1 && ok2 && now > then && bytes.Equal(senderKeyID(before), senderKeyID(written)) {
		v.Put(k, senderKey)
		return 0, nil
	}
	old, err1 := parseSenderKey(before)
	put, err2 := parseSenderKey(written)
	if err1 != nil || err2 != nil {
		v.Put(k, senderKey)
		return 0, nil
	}
	result, err := mergeSenderKeys(old, put, from.by)
	if err != nil {
		return 0, err
	}
	data, err := json.Marshal(result)
	if err != nil {
		return 0, err
	}
	v.Put(k, newRecord(data))
	return 1, nil
}

// senderKeyIteration is the next iteration of the newest state.
func senderKeyIteration(senderKey []byte) (uint64, bool) {
	_, after, _ := bytes.Cut(senderKey, []byte(`"SenderChainKey":{"Iteration":`))
	digits, _, ok := bytes.Cut(after, []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return n, ok && err == nil
}

// move puts a value that was at another key, over what is there.
func (in *instance) move(v *view, to cache.Key, moved value) error {
	there := v.Has(to)
	record, ok := moved.(*recordValue)
	if !ok || !there {
		v.Put(to, moved)
		return nil
	}
	data, err := record.bytes()
	if err != nil {
		return nil // nobody could use it, so what is there stays
	}
	put := in.putSenderKey
	if to.Type == typeSession {
		put = in.putSession
	}
	_, err = put(v, to, newRecord(data), source{by: writerMigration})
	return err
}

// gone is a record that was deleted, or moved by a migration. A send that had read it puts it nevertheless.
type gone struct {
	chains []uint64  // fingerprints of the chains it has had
	to     cache.Key // where it was moved, if it was
}

// maxGone bounds what is remembered of deleted and moved records.
const maxGone = 10_000

// noteGone remembers a record that is about to be deleted or moved.
func (in *instance) noteGone(v *view, k, to cache.Key) {
	value, _ := v.Get(k)
	record, ok := value.(*recordValue)
	if !ok {
		return // an identity, or none
	}
	data, err := record.bytes()
	if err != nil {
		return
	}
	was := gone{to: to}
	if k.Type == typeSession {
		if parsed, err := parseSession(data); err == nil {
			for _, st := range statesOf(parsed) {
				if st.SenderChain != nil {
					was.chains = append(was.chains, fingerprint(ratchetKeyText(st.SenderChain)))
				}
			}
		}
		for p := record.past; p != nil; p = p.prev {
			was.chains = append(was.chains, p.chain)
		}
	} else {
		was.chains = append(was.chains, fingerprint(senderKeyID(data)))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.gone == nil {
		in.mu.gone = make(map[cache.Key]gone)
	}
	for old := range in.mu.gone {
		if len(in.mu.gone) < maxGone {
			break
		}
		delete(in.mu.gone, old)
	}
	in.mu.gone[k] = was
}

// whereGone says what became of a record that was at k and had that chain.
func (in *instance) whereGone(k cache.Key, chain []byte) (was gone, ok bool) {
	of := fingerprint(chain)
	in.mu.Lock()
	defer in.mu.Unlock()
	was, ok = in.mu.gone[k]
	if !ok {
		return gone{}, false
	}
	for _, c := range was.chains {
		if c == of {
			return was, true
		}
	}
	return gone{}, false
}
