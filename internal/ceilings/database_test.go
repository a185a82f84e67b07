package ceilings

// keys is how many sessions an instance has: one at a phone number and one at the LID of the same person, which the first may be moved to.
const (
	atNumber = iota
	atLID
	keys
)

// chain names a sending chain; 0 is none.
type chain int

// state is a sending chain in a record: the counter of its next message, and whether it must not be used any more.
type state struct {
	chain chain
	next  int
	dead  bool
}

// record is a session. It never changes.
type record struct {
	state
	archived []state
}

const (
	noCeiling  = -1 // of a row that was imported
	mostStates = 3
)

type row struct {
	record
	there   bool
	ceiling int
	seq     int
}

// epoch is one ownership. Its number comes from a sequence of the database, which goes back with it; its token never comes back.
type epoch struct{ number, token int }

// fence is what a flush must find.
type fence struct {
	epoch    epoch
	seq      int
	timeline int
}

// database is what an instance has in it. Copying it is a snapshot.
type database struct {
	fence               // as the last owner has left it
	timeline      int   // where the database is now
	lastEpoch     int   // the sequence
	cleanAt       epoch // which ownership ended cleanly
	step, abandon int
	leaseUntil    int
	rows          [keys]row
}

// statement is a flush, or the mark of a clean end, on its way.
type statement struct {
	from  *process
	fence fence
	clean bool
	rows  [keys]*row // nil for one that is not written, not there for one that is deleted
	sent  int        // the time
	copy  bool       // another one like it is under way
	at    int        // the commit it became
}

// held says whether the database is as who sent a statement had left it.
func (w *world) held(s *statement) bool {
	d := &w.db
	return d.epoch == s.fence.epoch &&
		(d.seq == s.fence.seq || w.without("seq")) &&
		(d.timeline == s.fence.timeline || w.without("timeline") && !s.clean || w.without("clean-timeline") && s.clean)
}

// arrive is a statement that reaches the database.
func (w *world) arrive(s *statement) (ok bool) {
	if !w.held(s) {
		return false
	}
	d := &w.db
	if s.clean {
		d.cleanAt = s.fence.epoch
	} else {
		d.seq = s.fence.seq + 1
		d.fence.timeline = d.timeline
		d.leaseUntil = w.clock + w.lease
		for k, r := range s.rows {
			if r != nil {
				d.rows[k] = *r
				d.rows[k].seq = d.seq
			}
		}
	}
	s.at = w.commit()
	return true
}

// commit keeps the database as it is now, to go back to.
func (w *world) commit() (at int) {
	w.history = append(w.history, w.db)
	return len(w.history) - 1
}

// acknowledged notes that somebody knows of a commit. A replication that loses nothing loses none before it.
func (w *world) acknowledged(at int) { w.kept = max(w.kept, at) }

// owned makes a new ownership in the statement that takes an instance.
func (w *world) owned(abandons bool) fence {
	d := &w.db
	if abandons {
		d.abandon = max(d.abandon, d.seq)
	}
	d.lastEpoch++
	w.tokens++
	d.epoch = epoch{d.lastEpoch, w.tokens}
	if w.without("token") {
		d.epoch.token = 0
	}
	d.fence.timeline = d.timeline
	d.leaseUntil = w.clock + w.lease
	w.acknowledged(w.commit())
	w.tell(d.fence)
	return d.fence
}

// takes says whether an instance may be taken now by somebody who does not own it.
func (w *world) takes() bool {
	d := &w.db
	return w.forced || d.cleanAt == d.epoch || d.leaseUntil < w.clock
}

// take is the statement of a process that begins. It has read nothing yet.
func (w *world) take() *process {
	d := &w.db
	elsewhere := d.fence.timeline != d.timeline && !w.trusted
	switch {
	case d.cleanAt != d.epoch || elsewhere || w.wentBack():
		d.step = max(d.step, d.seq)
	case w.without("clean-keeps-step"):
		d.step = 0
	}
	return newProcess(w, w.owned(elsewhere && !w.without("timeline") || w.wentBack()))
}

// witness is what is known outside the database.
type witness struct {
	epoch epoch
	seq   int
}

// tell lets the witness know of an acknowledged take or flush, before anybody relies on it.
func (w *world) tell(f fence) {
	w.witness = witness{f.epoch, f.seq}
}

// wentBack says whether the witness has seen more than the database has.
func (w *world) wentBack() bool {
	if !w.witnessed {
		return false
	}
	d, known := &w.db, w.witness
	if d.epoch.number == known.epoch.number {
		return d.epoch != known.epoch || d.seq < known.seq
	}
	return d.epoch.number < known.epoch.number
}

// failover makes the database an earlier state of itself, on another timeline. Connections end.
func (w *world) failover() {
	first := max(0, len(w.history)-12)
	if w.trusted && !w.without("lossless") {
		first = w.kept
	}
	w.goBack(first + w.rng.IntN(len(w.history)-first))
	w.timelines++
	w.db.timeline = w.timelines
	w.unnoticed = nil
}

// restore is failover on the same timeline. Without a witness it is drawn only if the owner will notice.
func (w *world) restore() {
	to := max(0, len(w.history)-12) + w.rng.IntN(min(12, len(w.history)))
	if w.history[to].timeline != w.db.timeline {
		return
	}
	if !w.witnessed {
		owner := w.willNotice(to)
		if owner == nil {
			return
		}
		if f := w.history[to].fence; f.epoch != owner.fence.epoch || f.seq != owner.fence.seq {
			w.unnoticed = owner
		} // else nothing is lost that was acknowledged
	}
	w.goBack(to)
}

// willNotice is the owner that finds out with its next flush, nil if there is none, or if an earlier owner could go on as if nothing had been.
func (w *world) willNotice(to int) (owner *process) {
	for _, p := range w.processes {
		switch {
		case !p.alive:
		case p.fence.epoch == w.db.epoch:
			if p.frozen || !p.loaded || p.fence.timeline != w.db.timeline {
				return nil
			}
			owner = p
		case p.fence.epoch == w.history[to].epoch:
			return nil
		}
	}
	return owner
}

func (w *world) goBack(to int) {
	w.db, w.history = w.history[to], w.history[:to+1]
	w.kept = min(w.kept, to)
	w.statements = nil
	for _, p := range w.processes {
		p.unknown = p.unknown || p.flying
	}
}
