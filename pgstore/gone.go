package pgstore

import (
	"time"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// gone is a record that was deleted, or moved by a migration. A writer that had read it before puts it nevertheless: a deleted one must not come
// back, a moved one is put where it is now, and in both cases no message key may be used twice. Who had not read it may put
// it anew.
type gone struct {
	at      time.Time
	reached map[uint64]uint64 // by the fingerprint of a sending chain, how far it had got
	to      cache.Key         // where it was moved, if it was
}

func (g *gone) moved() bool { return g.to != (cache.Key{}) }

// maxGone bounds what is remembered of deleted and moved records.
const maxGone = 10_000

func isRecordType(t cache.Type) bool { return t == typeSession || t == typeSenderKey }

// removeRecord deletes a session or a sender key, or moves it, and remembers that once it has happened.
func (in *instance) removeRecord(v *view, k, to cache.Key) error {
	value, ok := v.Get(k)
	if !ok {
		return nil
	}
	v.Delete(k)
	was := &gone{reached: value.(*recordValue).chains(k.Type), to: to}
	v.Then(func() {
		was.at = time.Now()
		in.noteGone(k, was)
	})
	if !was.moved() {
		return nil
	}
	return in.arrive(v, to, value.(*recordValue))
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
	_, err := in.putRecord(v, to, moved, source{by: writerMigration})
	return err
}

func (in *instance) noteGone(k cache.Key, was *gone) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.gone == nil {
		in.mu.gone = make(map[cache.Key]*gone)
	}
	for old := range in.mu.gone {
		if len(in.mu.gone) < maxGone {
			break
		}
		delete(in.mu.gone, old)
	}
	in.mu.gone[k] = was
	delete(in.mu.gone, was.to) // it is there again
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
		for chain, counter := range sendingChains(parsed) {
			reached[fingerprint([]byte(chain))] = counter
		}
	}
	return reached
}

// whereGone says what became of a record that was at k and had that chain, and how far the chain had got.
func (in *instance) whereGone(k cache.Key, chain []byte) (was *gone, reached uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	was = in.mu.gone[k]
	if was == nil {
		return nil, 0
	}
	reached, ok := was.reached[fingerprint(chain)]
	if !ok {
		return nil, 0
	}
	return was, reached
}

// sentWhenGone is a send with a record that was deleted meanwhile: nothing is stored, and its message key is used.
func (in *instance) sentWhenGone(v *view, was *gone, chain []byte, counter uint64) {
	of := fingerprint(chain)
	v.Then(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		was.reached[of] = max(was.reached[of], counter)
	})
}

// movedTo says where a record is now that a transaction had read and a migration has moved meanwhile.
func (in *instance) movedTo(k cache.Key, base *recordValue) (to cache.Key, moved bool) {
	if base == nil {
		return to, false
	}
	was, ok := base.ratchet()
	chain := was.chain
	if !ok {
		data, readable := base.read()
		if !readable {
			return to, false
		}
		chain = senderKeyID(data)
	}
	g, _ := in.whereGone(k, chain)
	if g == nil || !g.moved() {
		return to, false
	}
	return g.to, true
}
