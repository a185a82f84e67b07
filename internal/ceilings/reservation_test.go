package ceilings

import "slices"

// reservation is pgstore's: what the database may hold of the ceilings of a key.
type reservation struct {
	version int
	used    []use
	row     reached
	flying  []use // rows that the database may hold as well
}

// reached is a counter of a chain.
type reached struct {
	chain   chain
	counter int
}

// use is one that is over when that version of the key's value is durable.
type use struct {
	version int
	reached
}

// value is a version of a key's record.
type value struct {
	record
	sends   *reservation
	version int
	ceiling int // 0 until it is on its way
}

func (r *reservation) note(at reached) {
	i := slices.IndexFunc(r.used, func(u use) bool { return u.chain == at.chain })
	if i < 0 {
		r.used = append(r.used, use{reached: reached{chain: at.chain}})
		i = len(r.used) - 1
	}
	r.used[i].version = r.version
	r.used[i].counter = max(r.used[i].counter, at.counter)
}

// lowest is the lowest ceiling that the database may hold for a chain.
func (w *world) lowest(r *reservation, c chain) (lowest int, known bool) {
	if r.row.chain == c {
		lowest, known = r.row.counter, true
		if w.without("flights-count") {
			return lowest, known
		}
	}
	for _, f := range r.flying {
		if f.chain == c && (!known || f.counter < lowest) && (!w.without("first-flight-counts") || r.row.chain == c) {
			lowest, known = f.counter, true
		}
	}
	return lowest, known
}

// reserve gives a value that is about to be flushed its ceiling.
func (w *world) reserve(v *value, ahead int) {
	r := v.sends
	if v.ceiling > 0 {
		return
	}
	top := v.next
	if !w.without("used-since") {
		for _, u := range r.used {
			if u.chain == v.chain {
				top = max(top, u.counter)
			}
		}
	}
	top += ahead
	if !w.without("never-lower") {
		for _, other := range append([]use{{reached: r.row}}, r.flying...) {
			if other.chain == v.chain {
				top = max(top, other.counter)
			}
		}
	}
	v.ceiling = top
	r.flying = append(r.flying, use{v.version, reached{v.chain, top}})
}

// durable notes that a value's row is in the database, and nothing older.
func (v *value) durable() {
	r := v.sends
	r.row = reached{v.chain, v.ceiling}
	over := func(u use) bool { return u.version <= v.version }
	r.flying = slices.DeleteFunc(r.flying, over)
	r.used = slices.DeleteFunc(r.used, over)
}

// follow makes v the next version of a key whose last one is stored, nil for none. What the rows of a merged record's key may
// hold counts from now on here.
func (w *world) follow(v, stored, merged *value) {
	switch {
	case stored != nil:
		v.sends = stored.sends
	case merged != nil:
		v.sends = merged.sends
	default:
		v.sends = new(reservation)
	}
	r := v.sends
	r.version++
	v.version = r.version
	if merged != nil && merged.sends != r && !w.without("merged-rows") {
		for _, row := range merged.sends.everything(merged) {
			r.flying = append(r.flying, use{r.version, row})
		}
	}
	if !w.without("chains-that-wait") { // a row of this version comes, also if nothing is ever sent on it
		r.note(reached{v.chain, v.next})
	}
}

// everything is what the rows of a key may hold, or will.
func (r *reservation) everything(last *value) (rows []reached) {
	rows = append(rows, r.row)
	for _, f := range r.flying {
		rows = append(rows, f.reached)
	}
	for _, u := range append([]use{{reached: reached{last.chain, last.next}}}, r.used...) {
		if !slices.ContainsFunc(rows, func(row reached) bool { return row.chain == u.chain }) {
			rows = append(rows, u.reached)
		}
	}
	return rows
}
