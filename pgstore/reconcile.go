package pgstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// Neither whatsmeow nor libsignal locks sends against decrypts: both read a session, change it and put it back, so that what one did is
// undone by the other. A counter that goes back like that encrypts another message with a key that was used, and the
// peer drops it. So every Put of a session or a sender key is compared with what is stored at that moment, under the instance's lock:
//
//  1. Nothing came in between (nearly always): what is put is stored as it is.
//  2. The Put is a send, and a message key it used was used by another: it is refused with [ErrMessageKeyUsed], before the
//     second ciphertext leaves. Nothing can be tried again in here: the message was encrypted before the Put, and only the
//     caller has its plaintext. Nor can two sends be given different keys when they read, since a read answers what was
//     put. That it is rare is the work of turns.go.
//  3. Otherwise the two are merged (merge.go, mergesenderkey.go) into what they would have left one after the other.
//
// What a writer had read, and whether it sends or decrypts (readers.go): PutManySessions is a send; what happens in DoDecryptionTxn is a
// decrypt. A plain PutSession is a retry answer, a message to our own phone, or a decrypt without the event buffer. A send
// changes nothing of a record but the sending chain key, so it is one if all the rest is what a plain GetSession handed out a moment ago,
// or what is stored; else it is a decrypt. So for refusing, doubt means a decrypt.
//
// How far a chain has got is in the stored record as long as one of its states has the chain. It is remembered
// beside the record when the ratchet was stepped over it (past, in ratchet.go), and with who holds the record when that was deleted or moved.
// A send on a chain of which this is not known any more is refused: it was stepped over too long ago for the peer to read it.
//
// Values in the cache are never changed, so that a version is told by its pointer.

// writer says what a Put of a record comes from.
type writer uint8

const (
	writerUnknown writer = iota
	writerSend
	writerDecrypt
	writerMigration
)

// keyed is a record and its key.
type keyed struct {
	key    cache.Key
	record *recordValue
}

// putRecords puts sessions or sender keys as one group; if one is refused, none is stored. Inside a transaction they are
// compared with what is stored at its end. It waits as the records demand, and at least as wait says.
func (in *instance) putRecords(ctx context.Context, wait patience, from source, records ...keyed) error {
	if in.transactionOf(ctx) != nil {
		return in.writeMany(ctx, wait, len(records), func(v *view) error {
			for _, r := range records {
				v.Put(r.key, r.record)
			}
			return nil
		})
	}
	var all outcome
	var era int64
	err := in.writeThen(ctx, len(records), func(v *view) error {
		all, era = outcome{wait: wait}, in.era.Load()
		v.Then(from.done) // who waits for its turn does not wait for the commit
		for _, r := range records {
			one, err := in.putRecord(v, r.key, r.record, from)
			if err != nil {
				return err
			}
			all.add(one)
		}
		return nil
	}, func() patience {
		if all.wait >= patienceNewChain {
			in.c.waited.Add(1)
		}
		return all.wait
	})
	if err == nil && all.wait >= patienceDurable && from.by != writerMigration && in.era.Load() != era {
		err = in.failed(ErrMessageKeyUsed) // while it waited, all chains were given up: somebody else may have used its key
	}
	return in.counted(&all, err)
}

// outcome is what became of records that were put.
type outcome struct {
	merged int
	wait   patience
}

func (o *outcome) add(other outcome) {
	o.merged += other.merged
	o.wait = max(o.wait, other.wait)
}

// counted counts what a write merged, or that it was refused.
func (in *instance) counted(o *outcome, err error) error {
	if errors.Is(err, ErrMessageKeyUsed) {
		in.c.refused.Add(1)
		in.c.cfg.Logger.Debug("pgstore: send refused, its message key was used", "instance", in.id)
	} else if o.merged > 0 {
		in.c.merged.Add(int64(o.merged))
		in.c.cfg.Logger.Debug("pgstore: records merged that were changed at once", "instance", in.id, "records", o.merged)
	}
	return err
}

// putRecord puts a session or a sender key.
func (in *instance) putRecord(v *view, k cache.Key, record *recordValue, from source) (o outcome, err error) {
	base, known := in.base(from, k)
	put := putting{kind: k.Type, record: record, text: record.form.Load().record, by: from.by, base: base, known: known}
	if in.gaveUp(put) {
		return o, ErrMessageKeyUsed
	}
	if g := in.goneFrom(from, k); g != nil && !g.moved() {
		return in.putGone(v, put, g)
	} else if g != nil {
		put.gone, k = g, g.to
	}
	value, _ := v.Get(k)
	if put.stored, _ = value.(*recordValue); put.stored != nil {
		put.before, put.readable = put.stored.read()
	}
	if put.stored == record {
		return o, nil
	}
	if name, _ := record.sendingChain(); name != nil && put.by == writerSend && !known && put.readable && !put.stored.mayUse(name) {
		return o, ErrMessageKeyUsed
	}
	out := record
	if put.readable && !in.c.storeAsPut {
		over := in.overSession
		if k.Type == typeSenderKey {
			over = in.overSenderKey
		}
		if out, err = over(put); err != nil {
			return o, err
		}
	}
	if !put.readable {
		in.created(v, k)
	}
	if out != put.stored {
		out.follow(put.stored, record)
		out.era = in.era.Load()
		v.Put(k, out)
	}
	o.wait = in.patienceFor(put, out, from.inside)
	if put.readable && put.stored.sendable() && out != record && !bytes.Equal(out.form.Load().record, put.text) && (!sameVersion(base, put.stored, known) || put.by != writerDecrypt) {
		o.merged = 1 // a decrypt that promoted an archived state is merged though nothing raced
	}
	return o, nil
}

// gaveUp says whether a Put is a send on a chain that was given up since it read it (replay.go).
func (in *instance) gaveUp(put putting) bool {
	if put.base == nil || put.base.era == in.era.Load() || put.by == writerDecrypt || put.by == writerMigration {
		return false
	}
	then, was := put.base.sending()
	now, is := put.record.sending()
	return then != 0 && then == now && (put.by == writerSend || is > was)
}

// patienceFor says what a Put waits for: a send as [Config].Sends says, and what begins a chain asks for its flush. For waiting, what may be a
// send is one.
func (in *instance) patienceFor(put putting, out *recordValue, inside bool) patience {
	if put.by == writerMigration {
		return patienceNone
	}
	old := put.base
	if !put.known {
		old = put.stored
	}
	if put.by == writerSend || !inside && put.kind == typeSession && sendingAdvanced(old, put.record) {
		chain, counter := put.record.sending()
		wait := patienceDurable
		if chain != 0 {
			wait = out.form.Load().sends.sent(chain, counter, uint64(in.c.cfg.Reserve)) //nolint:gosec // from 1 to 1,000
		}
		switch {
		case in.c.cfg.Sends == WriteBehind, wait == patienceNewChain && in.c.cfg.Sends == Reserved && in.c.cfg.NewChains == WriteBehind:
			return patienceNone
		case in.c.cfg.Sends == Durable:
			return patienceDurable
		case wait == patienceDurable:
			return patienceReserve
		}
		return wait
	}
	if !inside && sameSendingChain(old, put.record) {
		in.warnUnbuffered()
	}
	now, _ := out.sending()
	if then, _ := put.stored.sending(); now != then && in.c.cfg.Sends == Reserved && in.c.cfg.NewChains != WriteBehind {
		return patienceHurry
	}
	return patienceNone
}

// putting is a record on its way to where another one is stored.
type putting struct {
	kind     cache.Type
	record   *recordValue
	text     []byte
	by       writer
	base     *recordValue // what the writer had read, nil for none or if that is not known
	known    bool         // whether it is
	gone     *gone        // where the record was moved away while the writer held it
	stored   *recordValue // nil if there is none
	before   []byte       // its text
	readable bool         // whether it has one
}

// putGone is a Put of a record that was deleted while its writer held it: nothing is stored, and a message that was sent with it
// has used its key.
func (in *instance) putGone(v *view, put putting, g *gone) (o outcome, err error) {
	now, ok := put.record.ratchet()
	if put.by != writerSend || !ok {
		return o, nil
	}
	used := uint64(0) // the first message key that it used; 0 on a chain of its own
	chain := fingerprint(now.chain)
	reached, known := in.reached(g, chain)
	if base, ok := put.base.ratchet(); ok && base.sameChain(now) {
		used = base.counter
		if !known { // it was stepped over too long ago
			return o, ErrMessageKeyUsed
		}
	}
	if reached > used {
		return o, ErrMessageKeyUsed
	}
	v.Then(func() { in.use(g, chain, now.counter) })
	if in.c.cfg.Sends != WriteBehind {
		o.wait = patienceDurable // until the row that may still be there is gone
	}
	return o, nil
}

// overSession says what is stored when a session is put over another.
func (in *instance) overSession(put putting) (*recordValue, error) {
	now, ok := put.record.ratchet()
	then, storedOK := put.stored.ratchet()
	if !ok || !storedOK {
		return put.record, nil
	}
	if put.by == writerUnknown {
		put.by = writerDecrypt
		if now.sentFrom(then) {
			put.by = writerSend
		}
	}
	if put.follows(then, now) {
		return put.record.after(put.stored, then, now), nil
	}
	result, left, err := in.mergeTexts(put)
	switch {
	case errors.Is(err, errUnreadable) && now.sameChain(then) && now.counter <= then.counter && put.by == writerSend:
		return nil, ErrMessageKeyUsed
	case errors.Is(err, errUnreadable) && now.sameChain(then) && now.counter < then.counter:
		return put.stored, nil // it cannot be merged, and no chain goes back
	case errors.Is(err, errUnreadable):
		return put.record, nil
	case err != nil:
		return nil, err
	}
	out := newRecord(result)
	out.past = left
	return out, nil
}

// follows says whether what is put was made of what is stored, so that it can be stored as it is.
func (put putting) follows(then, now ratchet) bool {
	mine := sameVersion(put.base, put.stored, put.known)
	switch {
	case put.by == writerDecrypt && now.sameChain(then):
		return mine && now.counter == then.counter
	case put.by == writerDecrypt:
		// Not if an archived state is promoted: the attempt to use the current one has left a needless step in it.
		return mine && (bytes.Equal(now.session, then.session) || !bytes.Contains(put.before, now.session))
	case now.sameChain(then):
		return now.counter > then.counter && now.sameRest(then) && (!put.known || put.sentFromStored(then))
	default:
		return put.by == writerSend && beganOn(put.before, put.text)
	}
}

// sentFromStored says whether a send had read the chain where it stands now.
func (put putting) sentFromStored(then ratchet) bool {
	base, ok := put.base.ratchet()
	return ok && base.sameChain(then) && base.counter == then.counter
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

// mergeTexts merges a session into the one that is stored, and says which chains that leaves behind.
func (in *instance) mergeTexts(put putting) (result []byte, left *past, err error) {
	m := merging{by: put.by, known: put.known, past: put.stored.past}
	if m.stored, err = parseSession(put.before); err != nil {
		return nil, nil, err
	}
	if m.written, err = parseSession(put.text); err != nil {
		return nil, nil, err
	}
	if base, ok := put.base.readIfAny(); ok {
		if m.base, err = parseSession(base); err != nil {
			return nil, nil, err
		}
	}
	used := chainID(m.written.SessionState.SenderChain)
	m.reached, _ = in.reached(put.gone, used)
	had := chainsOf(m.stored)
	for _, chain := range chainsOf(m.written) {
		// A decrypt's own new chain has not been sent on.
		if hasChain(had, chain) || put.by == writerSend && chain == m.written.SessionState.SenderChain {
			had = append(had, chain)
		}
	}
	merged, err := m.merge()
	if err != nil {
		return nil, nil, err
	}
	left = m.past
	kept := chainsOf(merged)
	for _, chain := range had {
		if !hasChain(kept, chain) {
			left = left.then(chainID(chain), uint64(chain.ChainKey.Index))
		}
	}
	result, err = encodeSession(merged)
	return result, left, err
}

// overSenderKey says what is stored when a sender key is put over another. Only our own is put by sends.
func (in *instance) overSenderKey(put putting) (*recordValue, error) {
	switch put.by {
	case writerSend:
		if nextIteration(put.before, put.text) || !put.stored.sendable() {
			return put.record, nil
		}
	case writerUnknown: // nobody read it
		return put.record, nil
	case writerDecrypt:
		if sameVersion(put.base, put.stored, put.known) {
			return put.record, nil
		}
	case writerMigration:
	}
	stored, err := parseSenderKey(put.before)
	if err != nil {
		return put.record, nil //nolint:nilerr // what cannot be read is replaced
	}
	written, err := parseSenderKey(put.text)
	if err != nil {
		return put.record, nil //nolint:nilerr // it is stored as it is
	}
	merged, err := mergeSenderKeys(stored, written, put.by)
	if err != nil {
		return nil, err
	}
	if merged == written {
		return put.record, nil
	}
	data, err := json.Marshal(merged)
	return newRecord(data), err
}
