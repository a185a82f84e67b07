package pgstore

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// A reader is who was given sessions or sender keys and may put what it makes of them: a call of GetManySessions (a send), a plain
// GetSession or GetSenderKey (a retry answer, a message to our own phone, a decrypt without the event buffer), or a transaction (a decrypt).
// From what it was given, a Put tells who it comes from and whether anything came in between. What is deleted or
// moved while a reader holds it is told to the reader, so that its Put does not bring it back, goes where it is now, and uses
// no message key that was used meanwhile.
//
// Readers of which no Put comes are forgotten after a while; then a Put is taken for one of somebody who had read nothing. Any number of retry
// answers may hold one key, so plain readers are kept by key, and those of one do not push out those of another.

const (
	readerAge   = 2 * time.Minute // longer than the client waits for bundles
	manyAtMost  = 64              // from GetManySessions, more than put at once: the client sends one message at a time
	plainAtMost = 4096            // of one key
	sweepEvery  = 1024            // plain readers, after which those of all keys are looked through for old ones
)

// held is what a reader holds. It is guarded by the instance's mu.
type held struct {
	given map[cache.Key]*recordValue // nil where there was no record
	gone  map[cache.Key]*gone        // what of it was deleted or moved meanwhile
	since time.Time                  // when it was given, or began to read
}

// gone is a record that was deleted, or moved to another key, while somebody holds it. Its readers share it.
type gone struct {
	to      cache.Key         // where it is now, if it was moved
	reached map[uint64]uint64 // by the fingerprint of a sending chain, how far it had got
}

func (g *gone) moved() bool { return g.to != (cache.Key{}) }

// reader is one outside of transactions.
type reader struct {
	held
	plain     cache.Key // what it reads, if it is not from GetManySessions
	began     time.Time
	forgotten bool // it is not among the readers any more
	turn           // see turns.go
}

func (r *reader) many() bool { return r.plain == (cache.Key{}) }

// readers are those outside of transactions, the oldest first. They are guarded by the instance's mu.
type readers struct {
	many  []*reader
	plain map[cache.Key][]*reader
	count int // of plain ones since all were looked through
}

// all calls fn with what each reader holds.
func (rs *readers) all(fn func(*held)) {
	for _, r := range rs.many {
		fn(&r.held)
	}
	for _, plain := range rs.plain {
		for _, r := range plain {
			fn(&r.held)
		}
	}
}

// kept is a list without those that are too old, and without the oldest of too many.
func kept(list []*reader, atMost int, now time.Time) []*reader {
	over := 0
	for over < len(list) && (len(list)-over > atMost || now.Sub(list[over].since) > readerAge) {
		over++
	}
	clear(list[:over])
	return list[over:]
}

// add notes a reader that is about to read.
func (rs *readers) add(r *reader) {
	if r.many() {
		rs.many = kept(append(rs.many, r), manyAtMost, r.began)
		return
	}
	if rs.plain == nil {
		rs.plain = make(map[cache.Key][]*reader)
	}
	if rs.count++; rs.count >= sweepEvery {
		rs.count = 0
		for k, list := range rs.plain {
			rs.set(k, kept(list, plainAtMost, r.began))
		}
	}
	rs.set(r.plain, kept(append(rs.plain[r.plain], r), plainAtMost, r.began))
}

func (rs *readers) set(k cache.Key, list []*reader) {
	if len(list) == 0 {
		delete(rs.plain, k)
	} else {
		rs.plain[k] = list
	}
}

// remove forgets a reader.
func (rs *readers) remove(r *reader) {
	if r.many() {
		rs.many = without(rs.many, r)
	} else {
		rs.set(r.plain, without(rs.plain[r.plain], r))
	}
}

// without looks from the end, where who puts nearly always is: a group send reads its sender key twice and puts it once.
func without(list []*reader, r *reader) []*reader {
	for i, other := range slices.Backward(list) {
		if other == r {
			return slices.Delete(list, i, i+1)
		}
	}
	return list
}

// source is what is known of where a Put of a record comes from.
type source struct {
	by     writer
	held   *held  // what the writer holds, nil if it is not known to have read anything
	inside bool   // a decryption transaction, so it is certainly no send
	done   func() // to be called when the Put is visible, or has failed; once more does no harm
}

// base is what the writer had read at a key, nil for no record.
func (in *instance) base(from source, k cache.Key) (base *recordValue, known bool) {
	if from.held == nil {
		return nil, false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	base, known = from.held.given[k]
	return base, known
}

// goneFrom says what became of the record at a key since the writer had read it, nil if nothing.
func (in *instance) goneFrom(from source, k cache.Key) *gone {
	if from.held == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return from.held.gone[k]
}

// give notes what a reader was given. It runs under the lock of the keys, so that nothing is deleted or moved in between.
func (in *instance) give(to *held, keys []cache.Key, records []*recordValue) {
	if in.c.storeAsPut {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	to.since = time.Now()
	if to.given == nil {
		to.given = make(map[cache.Key]*recordValue, len(keys))
	}
	for i, k := range keys {
		if _, known := to.given[k]; !known { // in a transaction, what is read later may be its own
			to.given[k] = records[i]
		}
	}
}

// noteGone tells all who hold a record that it was deleted or moved. It runs under the lock of the keys, once that has happened.
func (in *instance) noteGone(k, to cache.Key, record *recordValue) {
	in.mu.Lock()
	defer in.mu.Unlock()
	var was *gone
	tell := func(h *held) {
		at := k
		for from, earlier := range h.gone {
			if earlier.to == k {
				at = from // it was moved before
			}
		}
		given, has := h.given[k]
		if at == k && (!has || given == nil && to == (cache.Key{})) {
			return // what is made of nothing was not deleted
		}
		if earlier := h.gone[at]; earlier != nil && !earlier.moved() {
			return // another one has been begun there since
		}
		if was == nil { // nearly always nobody holds it
			was = &gone{to: to, reached: record.chains(k.Type)}
		}
		if h.gone == nil {
			h.gone = make(map[cache.Key]*gone)
		}
		h.gone[at] = was
	}
	in.mu.readers.all(tell)
	for tx := range in.mu.open {
		tell(&tx.held)
	}
}

// use notes how far a send has got on a chain of a record that is gone.
func (in *instance) use(g *gone, chain, counter uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	g.reached[chain] = max(g.reached[chain], counter)
}

// reached is how far a chain of a record had got when it was gone, and since.
func (in *instance) reached(g *gone, chain uint64) (counter uint64, known bool) {
	if g == nil {
		return 0, false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	counter, known = g.reached[chain]
	return counter, known
}

// newReader notes somebody who is about to read one key, or many.
func (in *instance) newReader(keys []cache.Key, many bool) *reader {
	r := &reader{began: time.Now()}
	r.since = r.began
	if !many {
		r.plain = keys[0]
	}
	if in.c.storeAsPut {
		return r
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.readers.add(r)
	return r
}

// forget ends a reader: it has put, or was given nothing.
func (in *instance) forget(r *reader) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if r.forgotten { // who puts says so twice, and nobody is to look for it in vain among thousands
		return
	}
	r.forgotten = true
	in.mu.readers.remove(r)
	r.end()
}

// whoRead finds the reader that a plain Put outside of transactions comes from: one whose record differs in nothing but one message sent, and then
// it is a send; else it is a decrypt, of the version that they all hold. The reader is nil if that is nobody, or not clear; then it
// is still known what became of the record, if that is the same for all.
func (in *instance) whoRead(k cache.Key, put *recordValue, sends bool) (by writer, r *reader) {
	in.mu.Lock()
	defer in.mu.Unlock()
	var last *reader
	sameBase, sameFate := true, true
	for _, r := range slices.Backward(in.mu.readers.plain[k]) {
		given, holds := r.given[k]
		if !holds {
			continue
		}
		if sends && put.sentFrom(k.Type, given) {
			return writerSend, r
		}
		switch {
		case last != nil && last.given[k] == given:
			sameFate = sameFate && last.gone[k] == r.gone[k]
		case !madeOf(k, given, put):
		case last == nil:
			last = r
		default:
			sameBase, sameFate = false, sameFate && last.gone[k] == r.gone[k]
		}
	}
	switch {
	case last == nil || last.given[k].sameText(put): // nobody, or it is put again as it was
		return writerUnknown, nil
	case sameBase:
		return writerDecrypt, last
	case sameFate && last.gone[k] != nil:
		return writerDecrypt, &reader{held: held{gone: last.gone}, plain: k}
	}
	return writerDecrypt, nil
}

// sourceOf says where a plain Put comes from. A transaction is looked at when it ends. Sender keys of others are never sent with.
func (in *instance) sourceOf(ctx context.Context, k cache.Key, put *recordValue, sends bool) source {
	if in.transactionOf(ctx) != nil {
		return source{done: func() {}}
	}
	by, r := in.whoRead(k, put, sends)
	if r == nil {
		return source{by: by, done: func() {}}
	}
	return source{by: by, held: &r.held, done: func() { in.forget(r) }}
}

// whoReadMany finds the reader that a PutManySessions comes from, nil if nobody has read.
func (in *instance) whoReadMany(put []keyed) (reading *reader) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, r := range slices.Backward(in.mu.readers.many) {
		holdsAll := true // a send puts nothing that it has not read
		for _, p := range put {
			given, holds := r.given[p.key]
			if holds && p.record.sentFrom(typeSession, given) {
				return r
			}
			if holdsAll = holds && madeOf(p.key, given, p.record); !holdsAll {
				break
			}
		}
		if holdsAll && reading == nil {
			reading = r
		}
	}
	return reading
}

// giveRecords reads records and gives them to a reader, the transaction's if ctx is one's.
func (in *instance) giveRecords(ctx context.Context, r *reader, keys []cache.Key, fn func(cache.Key, *recordValue) *recordValue) error {
	to := in.holder(ctx, r)
	return in.read(ctx, func(v *view) error {
		given := make([]*recordValue, len(keys))
		for i, k := range keys {
			value, ok := v.Get(k)
			rec, _ := found[*recordValue](value, ok)
			given[i] = fn(k, rec)
		}
		v.Then(func() { in.give(to, keys, given) })
		return nil
	})
}

func (in *instance) holder(ctx context.Context, r *reader) *held {
	if tx := in.transactionOf(ctx); tx != nil {
		return &tx.held
	}
	return &r.held
}

// madeOf says whether a record may be made of another one, or of none: it still has the session, or the sender key, that was current in it.
// Of what libsignal has not written nothing is known.
func madeOf(k cache.Key, base, put *recordValue) bool {
	if base == nil {
		_, ok := put.ratchet()
		return ok || k.Type == typeSenderKey
	}
	text, ok1 := put.read()
	was, ok2 := base.read()
	if !ok1 || !ok2 {
		return false
	}
	if k.Type == typeSenderKey {
		id := senderKeyID(was)
		return id != nil && bytes.Contains(text, slices.Concat([]byte(`"KeyID":`), id, []byte(",")))
	}
	at, ok := base.ratchet()
	return ok && len(at.session) > 0 && bytes.Contains(text, at.session)
}

// sentFrom says whether a session or an own sender key is what a send of one message makes of base.
func (v *recordValue) sentFrom(t cache.Type, base *recordValue) bool {
	if base == nil {
		return false
	}
	if t == typeSenderKey {
		text, ok1 := v.read()
		was, ok2 := base.read()
		return ok1 && ok2 && nextIteration(was, text)
	}
	now, ok1 := v.ratchet()
	then, ok2 := base.ratchet()
	return ok1 && ok2 && now.sentFrom(then)
}

// sameVersion says whether a writer had read what is stored.
func sameVersion(base, stored *recordValue, known bool) bool {
	return known && base != nil && base.sameText(stored)
}

// chains says how far the sending chains of a record have got, as far as that is known.
func (v *recordValue) chains(t cache.Type) map[uint64]uint64 {
	reached := make(map[uint64]uint64)
	data, ok := v.read()
	if !ok {
		return reached
	}
	for p := v.past; p != nil; p = p.prev {
		reached[p.chain] = p.counter
	}
	if t == typeSenderKey {
		if iteration, ok := senderKeyIteration(data); ok {
			reached[fingerprint(senderKeyID(data))] = iteration
		}
		return reached
	}
	if parsed, err := parseSession(data); err == nil {
		for _, st := range statesOf(parsed) {
			chain := chainID(st.SenderChain)
			reached[chain] = max(reached[chain], uint64(st.SenderChain.ChainKey.Index))
		}
	} else if now, ok := v.ratchet(); ok {
		reached[fingerprint(now.chain)] = now.counter
	}
	return reached
}

func isRecordType(t cache.Type) bool { return t == typeSession || t == typeSenderKey }

// removeRecord deletes a session or a sender key, or moves it over what is at another key, and tells who holds it.
func (in *instance) removeRecord(v *view, k, to cache.Key) error {
	value, ok := v.Get(k)
	if !ok {
		return nil
	}
	record := value.(*recordValue)
	v.Delete(k)
	v.Then(func() { in.noteGone(k, to, record) })
	if to == (cache.Key{}) {
		return nil
	}
	return in.arrive(v, to, record)
}

// move moves what is stored for an address to another one, over what is there. Of a session that both have, no
// chain goes back.
func (in *instance) move(v *view, k, to cache.Key) error {
	if isRecordType(k.Type) {
		return in.removeRecord(v, k, to)
	}
	if value, ok := v.Get(k); ok {
		v.Delete(k)
		v.Put(to, value)
	}
	return nil
}

// created notes that something is stored at an address where there was nothing: if its user was migrated, that is to be done again.
func (in *instance) created(v *view, k cache.Key) {
	user, _, _ := strings.Cut(k.ID, ":")
	v.Then(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		delete(in.mu.migrated, user)
	})
}

// arrive puts a record that was at another key.
func (in *instance) arrive(v *view, to cache.Key, record *recordValue) error {
	if !v.Has(to) {
		v.Put(to, record)
		return nil
	}
	data, ok := record.read()
	if !ok {
		return nil // nobody could use it, so what is there stays
	}
	moved := newRecord(data)
	moved.past = record.past
	moved.follow(record, moved) // what its row holds counts at its new place
	_, err := in.putRecord(v, to, moved, source{by: writerMigration})
	return err
}
