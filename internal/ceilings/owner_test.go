package ceilings

// save flushes, or marks the end.
func (p *process) save() {
	if p.released {
		p.leaveCleanly()
	} else {
		p.flush()
	}
}

// tellLate tells the witness of what was flushed, after a pause in which somebody else may have taken the instance.
func (p *process) tellLate() {
	if p.w.witness.epoch == p.fence.epoch || p.w.without("witness-by-owner") {
		p.w.tell(p.fence)
	}
}

// flush sends the first segment, again if nothing came of it.
func (p *process) flush() {
	if p.flying || p.unknown || len(p.queue) == 0 {
		return
	}
	s := p.queue[0]
	st := &statement{from: p, fence: p.fence, sent: p.w.clock}
	for k, wr := range s.writes {
		if wr == nil {
			continue
		}
		if !s.sealed {
			wr.row = row{}
			if v := wr.value; v != nil {
				p.w.reserve(v, p.reserve)
				r := v.record
				if p.w.without("archived-abandoned-for-good") {
					r.archived = nil
					for _, a := range v.archived {
						r.archived = append(r.archived, state{a.chain, a.next, false})
					}
				}
				wr.row = row{record: r, there: true, ceiling: v.ceiling}
			}
		}
		st.rows[k] = &wr.row
	}
	s.sealed = true
	p.dispatch(st)
}

func (p *process) dispatch(st *statement) {
	p.last, p.flying = st, true
	p.w.statements = append(p.w.statements, st)
}

// leaveCleanly marks the end, once all is flushed.
func (p *process) leaveCleanly() {
	if p.flying || p.unknown {
		return
	}
	if len(p.queue) > 0 {
		p.flush()
		return
	}
	p.dispatch(&statement{from: p, fence: p.fence, clean: true, sent: p.w.clock})
}

// answer is what the database says to a statement.
func (p *process) answer(st *statement, ok bool) {
	if p.last != st || !p.flying {
		return
	}
	if !ok {
		p.unknown = true
		p.resolve()
		return
	}
	p.w.acknowledged(st.at)
	p.done(st)
}

// done is a statement that is known to be committed.
func (p *process) done(st *statement) {
	p.flying, p.unknown = false, false
	w := p.w
	if w.witnessed && w.witness.epoch != p.fence.epoch && !w.without("witness-at-flushes") {
		p.alive = false // somebody else has taken the instance, whatever the database knows of it
		return
	}
	if st.clean {
		p.alive = false
		return
	}
	p.fence.seq++
	if !w.without("witness-first") && (!w.witnessed || w.witness.epoch == p.fence.epoch) {
		w.tell(p.fence)
	}
	p.leaseUntil = st.sent + w.lease
	s := p.queue[0]
	p.queue = p.queue[1:]
	for _, wr := range s.writes {
		if wr != nil && wr.value != nil {
			wr.value.durable()
		}
	}
	for _, m := range s.waiting {
		if !w.chance(10) { // its caller does not wait any more
			w.use(m, p)
		}
	}
}

// resolve finds out what became of a statement. The owner of an instance in a database that has gone back takes it again.
func (p *process) resolve() {
	w, d := p.w, &p.w.db
	elsewhere := d.timeline != p.fence.timeline
	switch {
	case elsewhere && !w.trusted:
		p.again(d.epoch == p.fence.epoch || w.takes())
	case d.epoch != p.fence.epoch && d.epoch.number < p.fence.epoch.number:
		p.again(true)
	case d.epoch != p.fence.epoch:
		p.alive = false
	case p.last != nil && p.last.clean && d.seq == p.fence.seq: // it may be sent again
		p.follow()
	case p.last != nil && !p.last.clean && d.seq == p.last.fence.seq+1 && p.last.fence.seq == p.fence.seq:
		if !w.without("known-by-commit") {
			w.acknowledged(w.commit())
		}
		p.follow()
		p.done(p.last)
	case d.seq == p.fence.seq:
		p.follow()
	default:
		p.again(true)
	}
}

func (p *process) follow() {
	p.flying, p.unknown = false, false
	p.fence.timeline = p.w.db.timeline
}

// again is a process that finds that its database has gone back: it takes the instance and writes what it has over the older rows.
func (p *process) again(may bool) {
	w, d := p.w, &p.w.db
	if w.unnoticed == p {
		w.unnoticed = nil
	}
	switch {
	case p.released: // it does not come back, but says so where nobody else would see it
		p.alive = false
		if !w.without("leaving-tells") && d.timeline == p.fence.timeline && d.epoch.number <= p.fence.epoch.number {
			d.abandon = max(d.abandon, d.seq)
			w.acknowledged(w.commit())
		}
		return
	case !may || w.chance(20):
		p.alive = false
		if d.timeline == p.fence.timeline && d.epoch.number <= p.fence.epoch.number && !w.without("rewind-abandons") {
			d.abandon = max(d.abandon, d.seq)
			w.acknowledged(w.commit())
		}
		return
	}
	safe := p.leaseKept && (!w.forced || w.without("forced-gives-up"))
	d.step = max(d.step, d.seq)
	p.fence = w.owned(true)
	p.marks.step, p.marks.abandon = d.step, d.abandon
	p.leaseUntil, p.leaseKept = w.clock+w.lease, true
	p.replay(safe)
}

// replay writes all that is in memory over rows that are abandoned. Chains that somebody else may have used meanwhile are given up.
func (p *process) replay(safe bool) {
	w := p.w
	var waiting []message
	for _, s := range p.queue {
		if safe || w.without("waiting-refused") {
			waiting = append(waiting, s.waiting...)
		}
	}
	p.queue, p.flying, p.unknown = nil, false, false
	if p.held != nil && !safe {
		p.held.stale = true
	}
	for k := range p.mem {
		e := &p.mem[k]
		if e.value == nil {
			continue
		}
		r := e.record
		if !safe {
			e.past = nil
			if w.without("archived-given-up") {
				r.dead = true
			} else {
				r = r.givenUp(true)
			}
		}
		sent := e.sends
		sent.row, sent.flying = reached{}, nil // none of these rows is used by anybody
		v := &value{record: r}
		w.follow(v, e.value, nil)
		if w.without("replay-reserves") {
			v.ceiling = e.ceiling
		}
		e.value = v
		p.tail(1).writes[k] = &write{value: v}
	}
	if n := len(p.queue); n > 0 {
		p.queue[n-1].waiting = waiting
	}
}
