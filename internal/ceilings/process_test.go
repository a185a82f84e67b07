package ceilings

import "slices"

// process is one that has taken the instance.
type process struct {
	w      *world
	fence  fence
	marks  struct{ step, abandon int } // as its take has left them
	mem    [keys]entry
	queue  []*segment
	loaded bool

	alive, frozen, released bool
	flying                  bool // its first segment, or the mark of its clean end, is under way
	last                    *statement
	unknown                 bool // and nobody will say what became of it
	leaseUntil              int
	leaseKept               bool

	reserve, segmentSize int
	durableSends         bool
	newChainsWait        bool

	held    *held
	fetched *fetched
}

// entry is a key in memory.
type entry struct {
	*value          // nil if there is none, or if it was evicted
	evicted bool    // the row has it
	past    []state // chains that the ratchet was stepped over
}

// segment is what one flush makes durable.
type segment struct {
	writes  [keys]*write
	groups  int
	sealed  bool
	waiting []message
}

// write is a key's value, or that it is deleted.
type write struct {
	value *value
	row   row
}

// message is one that was encrypted and waits.
type message struct{ state }

// held is a send that has read its session and not put it yet.
type held struct {
	key   int
	state state
	gone  bool // it was deleted meanwhile
	used  int  // and then it had got so far
	stale bool // its chain was given up
}

// fetched is what a read brings of a value that is not in memory.
type fetched struct {
	key   int
	epoch epoch
	row   row
}

func newProcess(w *world, f fence) *process {
	p := &process{w: w, fence: f, alive: true, leaseUntil: w.clock + w.lease, leaseKept: true}
	p.marks.step, p.marks.abandon = w.db.step, w.db.abandon
	p.reserve = []int{1, 3, 12}[w.rng.IntN(3)]
	p.segmentSize = 1 + w.rng.IntN(3)
	p.durableSends = w.chance(10)
	p.newChainsWait = w.chance(50)
	return p
}

// mine says whether the database is the one that the process has taken the instance in, and not older.
func (p *process) mine() bool {
	d := &p.w.db
	return d.epoch == p.fence.epoch && d.seq >= p.fence.seq && (d.timeline == p.fence.timeline || p.w.trusted)
}

// load reads the rows. The database may have gone back since the take.
func (p *process) load() {
	if !p.mine() && !p.w.without("load-checks") {
		p.alive = false // and takes it again
		return
	}
	for k, r := range p.w.db.rows {
		p.enter(k, r)
	}
	p.loaded = true
}

// enter brings a row into memory.
func (p *process) enter(k int, r row) {
	p.mem[k] = entry{}
	if !r.there {
		return
	}
	v := &value{record: r.record, sends: new(reservation)}
	ceiling := max(r.ceiling, r.next)
	v.sends.row = reached{v.chain, ceiling}
	w := p.w
	switch {
	case r.seq <= p.marks.abandon:
		v.record = r.givenUp(true)
	case r.seq <= p.marks.step:
		if !w.without("archived-abandoned") {
			v.record = r.givenUp(false)
		}
		if r.ceiling == noCeiling && !w.without("imports-abandoned") {
			v.dead = true
		} else if !w.without("step") {
			v.next = max(v.next, ceiling)
		}
	}
	p.mem[k].value = v
}

// givenUp is a record whose archived chains must not be used any more, nor the current one if all is set.
func (r record) givenUp(all bool) record {
	r.archived = slices.Clone(r.archived)
	for i := range r.archived {
		r.archived[i].dead = true
	}
	r.dead = r.dead || all
	return r
}

// at returns what is in memory at a key. What was evicted is fetched instead.
func (p *process) at(k int) (v *value, ok bool) {
	if e := p.mem[k]; !e.evicted {
		return e.value, true
	}
	if p.fetched == nil && (p.mine() || p.w.without("fetch-checks")) {
		p.fetched = &fetched{k, p.fence.epoch, p.w.db.rows[k]}
	}
	return nil, false
}

// arrives is what a read has brought.
func (p *process) arrives() {
	f := p.fetched
	p.fetched = nil
	if f.epoch != p.fence.epoch && !p.w.without("fetch-outlives-no-take") || !p.mem[f.key].evicted {
		return
	}
	past := p.mem[f.key].past
	p.enter(f.key, f.row)
	p.mem[f.key].past = past
}

// evict lets go of what is durable.
func (p *process) evict(k int) {
	for _, s := range p.queue {
		if s.writes[k] != nil {
			return
		}
	}
	if p.mem[k].value != nil {
		p.mem[k] = entry{evicted: true, past: p.mem[k].past}
	}
}

// tail is the segment that takes a group.
func (p *process) tail(size int) *segment {
	if n := len(p.queue); n > 0 && !p.queue[n-1].sealed && p.queue[n-1].groups+size <= p.segmentSize {
		p.queue[n-1].groups += size
		return p.queue[n-1]
	}
	s := &segment{groups: size}
	p.queue = append(p.queue, s)
	return s
}

// put makes a record the newest of a key.
func (p *process) put(k int, r record) (*value, *segment) {
	v := &value{record: r.limited()}
	stored := p.mem[k].value
	p.w.follow(v, stored, nil)
	if stored != nil && !v.has(stored.chain) {
		p.mem[k].past = append(slices.Clone(p.mem[k].past), stored.state)
	}
	p.mem[k].value = v
	s := p.tail(1)
	s.writes[k] = &write{value: v}
	return v, s
}

func (r record) limited() record {
	r.archived = r.archived[max(0, len(r.archived)-mostStates):]
	return r
}

func (r record) has(c chain) bool {
	return r.chain == c || slices.ContainsFunc(r.archived, func(s state) bool { return s.chain == c })
}

// under is a record's states as archived ones.
func (v *value) under() []state {
	if v == nil {
		return nil
	}
	return append(slices.Clone(v.archived), v.state)
}

// send encrypts a message. Where there is no session to send on, it begins one from a bundle.
func (p *process) send(k int) {
	v, ok := p.at(k)
	switch {
	case !ok:
		return
	case v == nil || v.dead:
		p.leave(k, record{state: state{chain: p.w.newChain(), next: 1}, archived: v.under()}, nil)
	default:
		p.leave(k, v.sent(), nil)
	}
}

// sent is a record after one more message.
func (r record) sent() record {
	r.next++
	return r
}

// leave puts what a send has made of a session, and lets its message go when it may. on is its chain, if that is not the current one.
func (p *process) leave(k int, r record, on *state) {
	v, s := p.put(k, r)
	at := v.state
	if on != nil {
		at = *on
	}
	w := p.w
	v.sends.note(reached{at.chain, at.next})
	lowest, known := w.lowest(v.sends, at.chain)
	m := message{state{chain: at.chain, next: at.next - 1}}
	switch {
	case p.durableSends, known && at.next > lowest && (!w.without("ceiling") || v.sends.row.chain != at.chain):
		s.waiting = append(s.waiting, m)
	case v.sends.row.chain != at.chain && p.newChainsWait && w.chance(70): // else it has waited long enough
		s.waiting = append(s.waiting, m)
	default:
		w.use(m, p)
	}
}

// slowSend is a send that reads its session, or its Put.
func (p *process) slowSend() {
	if p.held != nil {
		p.putHeld()
	} else {
		p.hold(p.w.key())
	}
}

// hold is a send that reads its session and does not put it yet.
func (p *process) hold(k int) {
	if v, ok := p.at(k); ok && v != nil && !v.dead {
		p.held = &held{key: k, state: v.state}
	}
}

// putHeld is its Put. It goes where its session is now, if that has it, and if nobody has used its message key.
func (p *process) putHeld() {
	h := p.held
	v, ok := p.at(h.key)
	if !ok && !h.gone {
		return
	}
	p.held = nil
	next := h.state
	next.next++
	switch {
	case h.stale && !p.w.without("held-refused"):
	case h.gone:
		p.putGone(h)
	case v == nil:
	case v.chain == h.state.chain:
		if v.next == h.state.next && (!v.dead || p.w.without("held-refused")) {
			p.leave(h.key, v.sent(), nil)
		}
	default:
		for i, a := range v.archived {
			if a.chain == h.state.chain {
				if a.next == h.state.next && (!a.dead || p.w.without("held-refused")) {
					r := v.record
					r.archived = slices.Clone(r.archived)
					r.archived[i].next++
					p.leave(h.key, r, &next)
				}
				return
			}
		}
		past := p.mem[h.key].past
		for i, a := range past {
			if a.chain == h.state.chain && a.next == h.state.next && !a.dead {
				p.mem[h.key].past = slices.Clone(past)
				p.mem[h.key].past[i].next++
				p.leave(h.key, v.record, &next)
				return
			}
		}
	}
}

// putGone is the Put of a session that was deleted: nothing is stored, and the message waits until no row has its chain.
func (p *process) putGone(h *held) {
	if h.used > h.state.next {
		return
	}
	m := message{h.state}
	if len(p.queue) == 0 || p.w.without("deleted-wait") {
		p.w.use(m, p)
		return
	}
	s := p.queue[len(p.queue)-1]
	s.waiting = append(s.waiting, m)
}

// step is a decrypt that steps the ratchet, promotes an archived state, or brings a new session.
func (p *process) step(k int) {
	v, ok := p.at(k)
	if !ok {
		return
	}
	w := p.w
	r := record{state: state{chain: w.newChain()}}
	if v != nil {
		r.archived = slices.Clone(v.archived)
		if n := len(r.archived); n > 0 && w.chance(30) {
			i := w.rng.IntN(n)
			r.state = r.archived[i]
			r.archived = append(slices.Delete(r.archived, i, i+1), v.state)
		} else if w.chance(40) {
			r.archived = append(r.archived, v.state)
		}
	}
	p.put(k, r)
}

// remove deletes a session.
func (p *process) remove(k int) {
	v, ok := p.at(k)
	if !ok || v == nil {
		return
	}
	if h := p.held; h != nil && h.key == k && !h.gone {
		h.gone, h.used = true, p.reached(k, h.state.chain)
	}
	p.mem[k] = entry{}
	p.tail(1).writes[k] = &write{}
}

// reached is how far a chain of a key has got.
func (p *process) reached(k int, c chain) int {
	for _, s := range slices.Concat(p.mem[k].under(), p.mem[k].past) {
		if s.chain == c {
			return s.next
		}
	}
	return 1 << 30 // nobody knows
}

// migrate moves the session of the number to the LID, over what is there.
func (p *process) migrate() {
	from, ok := p.at(atNumber)
	to, also := p.at(atLID)
	if !ok || !also || from == nil {
		return
	}
	past := slices.Concat(p.mem[atLID].past, p.mem[atNumber].past)
	out := from
	if to != nil {
		moved := &value{record: from.record}
		p.w.follow(moved, from, nil)
		out = &value{record: merged(to.record, from.record, p.w.chance(50)).limited()}
		p.w.follow(out, to, moved)
		for _, s := range slices.Concat(to.under(), from.under()) {
			if !out.has(s.chain) {
				past = append(past, s)
			}
		}
	}
	p.mem[atLID] = entry{value: out, past: past}
	p.mem[atNumber] = entry{}
	s := p.tail(2)
	s.writes[atNumber], s.writes[atLID] = &write{}, &write{value: out}
	if p.held != nil && !p.held.gone {
		p.held.key = atLID
	}
}

// merged is one record of two. A chain that both have is where it has got furthest.
func merged(stored, moved record, movedOnTop bool) record {
	top, under := stored, moved
	if movedOnTop {
		top, under = moved, stored
	}
	out := record{state: top.state}
	for _, s := range append(append(slices.Clone(under.archived), under.state), top.archived...) {
		at := &out.state
		if s.chain != at.chain {
			i := slices.IndexFunc(out.archived, func(a state) bool { return a.chain == s.chain })
			if i < 0 {
				out.archived = append(out.archived, s)
				continue
			}
			at = &out.archived[i]
		}
		at.next, at.dead = max(at.next, s.next), at.dead || s.dead
	}
	return out
}
