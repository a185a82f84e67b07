package pgstore

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
)

// A message key is a function of its chain and its counter, so a counter that comes back after a crash encrypts a second message with a
// key that has left. Sends are written behind, so the counter in the database is behind what has left. What keeps P4:
//
//  1. Every row of a session, and of a sender key of our own, carries a ceiling beside the record: the counter up to which the record's sending
//     chain is reserved, [Config].Reserve ahead of where it stands. It never goes down for one chain.
//  2. A send whose counter is below every ceiling that the database may hold for its chain leaves at once: below the one of the last
//     durable row, and below those of flushes that are under way or whose result is unknown. One that is not waits for its
//     own flush, which raises the ceiling. The send that uses up half of a reservation asks for a flush, so that on a chain that is durable nobody waits
//     who sends fewer than half of Reserve while that flush takes.
//  3. A chain that no row and no flush under way names can be lost, but not come back: its keys never repeat. But what the peer answers
//     to it could not be read after a crash. So the first send on it waits, for a limited time (NewChains), and what begins a
//     chain, nearly always a decrypt, asks for its flush at once, so that an answer a few milliseconds later finds it durable.
//  4. After an unclean end the instance's step_through says which rows may be behind (see the take). The sending chain of such a row
//     is moved to its ceiling before it is used (unclean.go): the peer sees a gap. Archived states have no ceiling; their chains are
//     abandoned. So are all chains of rows from before the database went back in time (abandon_through), and those of rows without a ceiling
//     (imports, older versions); an import whose counters are exact marks its instance as cleanly left.
//
// The ceiling is about a chain, wherever its row is. A record that is moved takes what its old row may hold along.
//
//	         Put by a send at counter c                      flush of version v
//	              │ under the keys' lock                          │
//	              ▼                                               ▼
//	   used = max(used, c+1) ── c < limit? ──▶ leaves     ceiling = max(v's counter, used) + Reserve, not below any other
//	              │ no                                            │ flying += (v, chain, ceiling)
//	              ▼                                               ▼
//	     waits for its flush ◀───────── durable: row = (chain, ceiling), flying −= versions up to v

// reservation is what the database may hold of the ceilings of a key, and what stands beside its record. All versions of the key's value
// share it.
type reservation struct {
	mu        sync.Mutex
	version   uint64   // of the newest value
	used      []use    // how far chains have got of which a row may still be written
	row       reached  // the last row that is durable; the zero value for none
	flying    []flight // rows that the database may hold as well
	stepped   reached  // how many keys of a chain were skipped after unclean ends
	abandoned []string // names of sending chains that must not be used any more
	givenUp   bool     // all chains of values up to lost are
	lost      uint64
}

// reached is a counter of a chain.
type reached struct {
	chain   uint64 // fingerprint of its name, 0 for none
	counter uint64
}

// raise raises a counter to another of the same chain.
func (r *reached) raise(o reached) {
	if o.chain == r.chain {
		r.counter = max(r.counter, o.counter)
	}
}

// flight is a row that may have been written.
type flight struct {
	version uint64 // of the value; when this one or a later one is durable, the flight is over
	reached
}

// use is how far sends have got on a chain.
type use struct {
	version uint64 // of the value that the last of them put; when this one or a later one is durable, no row of an earlier one comes any more
	reached
}

// sent notes that the message keys of a chain below counter were used, and says what the last of them waits for. When half of what a row reserves, ahead,
// is used up and no row that reserves more is on its way, its flush is asked for.
func (r *reservation) sent(chain, counter, ahead uint64) patience {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.useLocked(reached{chain, counter})
	lowest, highest, known := r.ceilingsLocked(chain)
	switch {
	case known && counter > lowest:
		return patienceDurable
	case r.row.chain != chain: // nowhere, or its first flush is under way
		return patienceNewChain
	case highest < counter+ahead/2:
		return patienceHurry
	}
	return patienceNone
}

// useLocked notes how far sends have got.
func (r *reservation) useLocked(now reached) {
	at := slices.IndexFunc(r.used, func(u use) bool { return u.chain == now.chain })
	if at < 0 {
		r.used = append(r.used, use{reached: reached{chain: now.chain}})
		at = len(r.used) - 1
	}
	r.used[at].version = r.version
	r.used[at].raise(now)
}

// ceilingsLocked are the lowest and the highest ceiling that the database may hold for a chain.
func (r *reservation) ceilingsLocked(chain uint64) (lowest, highest uint64, known bool) {
	if r.row.chain == chain {
		lowest, highest, known = r.row.counter, r.row.counter, true
	}
	for _, f := range r.flying {
		if f.chain != chain {
			continue
		}
		if !known || f.counter < lowest {
			lowest = f.counter
		}
		highest, known = max(highest, f.counter), true
	}
	return lowest, highest, known
}

// reserve gives a value the ceiling of its row, and says whether that is more than the database knows of its chain. One value has one ceiling, however
// often its flush is tried.
func (r *reservation) reserve(v *recordValue, ahead uint64) (raised bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	chain, counter := v.sending()
	if chain == 0 || v.ceiling > 0 {
		return false
	}
	highest := reached{chain, counter}
	for _, u := range r.used {
		highest.raise(u.reached)
	}
	highest.counter += ahead
	highest.raise(r.row)
	for _, f := range r.flying {
		highest.raise(f.reached)
	}
	v.ceiling = highest.counter
	r.flying = append(r.flying, flight{v.version, highest})
	return r.row.chain == chain && highest.counter > r.row.counter
}

// durable notes that a value's row is in the database, and nothing older.
func (r *reservation) durable(v *recordValue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	chain, _ := v.sending()
	r.row = reached{chain, v.ceiling}
	r.flying = slices.DeleteFunc(r.flying, func(f flight) bool { return f.version <= v.version })
	r.used = slices.DeleteFunc(r.used, func(u use) bool { return u.version <= v.version })
	if v.version == r.version {
		r.abandoned = stillIn(v.form.Load().record, r.abandoned)
	}
}

// stillIn lists the abandoned chains that a record has.
func stillIn(record []byte, abandoned []string) (names []string) {
	for _, name := range abandoned {
		if bytes.Contains(record, []byte(name)) {
			names = append(names, name)
		}
	}
	return names
}

// next makes v the newest version of the key's value. It takes over what the rows of another key may hold whose record is merged into it,
// written: a row of that one which is still to be flushed has a ceiling no lower than where its chain is now, and sends wait
// beyond that until the merged record is durable.
func (r *reservation) next(v, written *recordValue, merged *reservation) {
	chain, counter := v.sending()
	var rows []reached
	var stepped reached
	var abandoned []string
	if merged != nil && merged != r {
		rows, stepped, abandoned = merged.everything(written)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version++
	v.version, v.ceiling = r.version, 0
	if chain != 0 { // a row of it may come, whether or not anything is sent before
		r.useLocked(reached{chain, counter})
	}
	for _, row := range rows {
		r.flying = append(r.flying, flight{r.version, row})
	}
	if stepped.chain == chain && (r.stepped.chain != chain || r.stepped.counter < stepped.counter) {
		r.stepped = stepped
	}
	r.abandoned = append(r.abandoned, abandoned...)
}

// everything is what the rows of a key may hold, those of its last value included.
func (r *reservation) everything(last *recordValue) (rows []reached, stepped reached, abandoned []string) {
	chain, counter := last.sending()
	r.mu.Lock()
	defer r.mu.Unlock()
	rows = append(rows, r.row)
	for _, f := range r.flying {
		rows = append(rows, f.reached)
	}
	for _, now := range append([]use{{reached: reached{chain, counter}}}, r.used...) {
		if !slices.ContainsFunc(rows, func(row reached) bool { return row.chain == now.chain }) {
			rows = append(rows, now.reached)
		}
	}
	return rows, r.stepped, slices.Clone(r.abandoned)
}

// mayUse says whether a sending chain is not abandoned.
func (r *reservation) mayUse(name []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !slices.Contains(r.abandoned, string(name))
}

// beside is what stands beside a value's record in its row.
func (r *reservation) beside(v *recordValue) (row recordJSON) {
	if r == nil {
		return row
	}
	chain, _ := v.sending()
	r.mu.Lock()
	defer r.mu.Unlock()
	if ceiling := v.ceiling; ceiling > 0 {
		row.Ceiling = &ceiling
	}
	if chain != 0 && r.stepped.chain == chain {
		row.Stepped = r.stepped.counter
	}
	row.Abandoned = stillIn(v.form.Load().record, r.abandoned)
	if r.givenUp && v.version <= r.lost {
		row.Abandoned = sendingChains(v.form.Load().record)
	}
	return row
}

// replayed makes ready for a database that has gone back: what its row says of the key counts no more. Unless keep is set all sending chains are
// given up, of values that are still to be flushed, too. Flights stay: what waits in the backlog is sent as it is, and its ceilings hold.
func (v *recordValue) replayed(keep bool) {
	if !v.decoded() {
		return
	}
	form := v.form.Load()
	if form.sends == nil {
		return
	}
	form.sends.replayed(v, keep)
}

func (r *reservation) replayed(v *recordValue, keep bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.row = reached{}
	if !slices.ContainsFunc(r.flying, func(f flight) bool { return f.version == v.version }) {
		v.ceiling = 0 // it gets a new one, which then is a flight
	}
	if !keep {
		r.givenUp, r.lost = true, r.version
		r.abandoned = append(r.abandoned, sendingChains(v.form.Load().record)...)
	}
}

// giveUp gives up all sending chains of the value and of earlier ones, in the rows that are still to be flushed.
func (v *recordValue) giveUp() {
	sends := v.form.Load().sends
	if sends == nil {
		return
	}
	sends.mu.Lock()
	defer sends.mu.Unlock()
	sends.givenUp, sends.lost = true, max(sends.lost, v.version)
}

// reserve gives a record that is about to be flushed its ceiling, also one that is only moved and was not used since it was read.
func (v *recordValue) reserve(ahead int) (raised bool) {
	v.decoded()
	sends := v.form.Load().sends
	return sends != nil && sends.reserve(v, uint64(ahead)) //nolint:gosec // from 1 to 1,000
}

// durable notes that the record is in the database.
func (v *recordValue) durable() {
	if sends := v.form.Load().sends; sends != nil {
		sends.durable(v)
	}
}

// sending is the chain that a record sends on, and how many of its message keys are used; 0 for one that has none: somebody else's sender
// key, and bytes that libsignal has not written.
func (v *recordValue) sending() (chain, counter uint64) {
	if name, counter := v.sendingChain(); name != nil {
		return fingerprint(name), counter
	}
	return 0, 0
}

// sendingChain is sending with the chain's name as it is in the record: the ratchet key, or a sender key's id.
func (v *recordValue) sendingChain() (name []byte, counter uint64) {
	if at, ok := v.ratchet(); ok {
		return at.chain, at.counter
	}
	if text, ok := v.readIfAny(); ok && ownSenderKey(text) {
		if iteration, ok := senderKeyIteration(text); ok {
			return senderKeyID(text), iteration
		}
	}
	return nil, 0
}

// follow makes a value the next version of a key's, in the place of stored. written is what was put, from which it was made.
func (v *recordValue) follow(stored, written *recordValue) {
	var before, put *reservation
	if stored.decoded() {
		before = stored.form.Load().sends
	}
	if written.decoded() {
		put = written.form.Load().sends
	}
	form := *v.form.Load()
	form.sends = cmp.Or(before, put, form.sends)
	if form.sends == nil {
		form.sends = new(reservation)
	}
	form.at = v.form.Load().at
	v.form.Store(&form)
	form.sends.next(v, written, put)
}
