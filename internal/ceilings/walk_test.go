package ceilings

import (
	"fmt"
	"math/rand/v2"
)

// world is one walk.
type world struct {
	rng     *rand.Rand
	weak    map[string]bool // the rules that are left out
	db      database
	history []database // what the database was after each commit
	kept    int        // up to which of them a replication that loses nothing has all

	clock, timelines, tokens, chains int
	processes                        []*process
	statements                       []*statement
	witness                          witness
	unnoticed                        *process // the database went back under it, and nobody but it can know

	trusted, forced, witnessed bool
	loved                      int // the key that most happens to

	used     map[state]*process
	repeated string
}

func (w *world) chance(percent int) bool  { return w.rng.IntN(100) < percent }
func (w *world) without(rule string) bool { return w.weak != nil && w.weak[rule] }

func (w *world) newChain() chain {
	w.chains++
	return chain(w.chains)
}

// use is a message that leaves.
func (w *world) use(m message, p *process) {
	m.dead = false
	if other := w.used[m.state]; other != nil && w.repeated == "" {
		w.repeated = fmt.Sprintf("message key %d of chain %d, used by epoch %v, and again by epoch %v", m.next, m.chain, other.fence, p.fence)
	}
	w.used[m.state] = p
}

// walk draws one, and returns how many messages have left, and which message key was used twice.
func walk(seed uint64, weak map[string]bool) (sends int, repeated string) {
	w := &world{rng: rand.New(rand.NewPCG(seed, 2)), weak: weak, used: make(map[state]*process)}
	w.trusted, w.forced, w.witnessed = w.chance(25), w.chance(60), w.chance(50)
	w.loved = w.rng.IntN(keys)
	w.timelines = 1
	w.db.timeline, w.db.fence.timeline = 1, 1
	w.db.rows[w.loved] = row{record: record{state: state{chain: w.newChain()}}, there: true, ceiling: 4}
	w.commit()
	for range 20 + w.rng.IntN(180) {
		w.clock += w.rng.IntN(3)
		if w.event(); w.repeated != "" {
			break
		}
	}
	return len(w.used), w.repeated
}

// one is one of the processes for which a condition holds.
func (w *world) one(of func(*process) bool) *process {
	var found []*process
	for _, p := range w.processes {
		if p.alive && of(p) {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[w.rng.IntN(len(found))]
}

func (w *world) key() int {
	if w.chance(75) {
		return w.loved
	}
	return w.rng.IntN(keys)
}

func runs(p *process) bool    { return !p.frozen && p.loaded }
func writes(p *process) bool  { return runs(p) && !p.released }
func frozen(p *process) bool  { return p.frozen }
func reading(p *process) bool { return !p.frozen && !p.loaded }

// event is one step of a walk.
func (w *world) event() {
	for _, p := range w.processes {
		p.leaseKept = p.leaseKept && p.leaseUntil >= w.clock
	}
	alive := w.one(func(*process) bool { return true })
	switch x := w.rng.IntN(1000); {
	case x < 70 || alive == nil:
		if w.unnoticed == nil && (alive == nil || w.takes()) {
			w.processes = append(w.processes, w.take())
		}
	case x < 110:
		w.on(reading, (*process).load)
	case x < 140:
		w.onAny(runs, func(p *process) { p.alive = false })
	case x < 165:
		w.onAny(runs, func(p *process) { p.frozen = true })
	case x < 195:
		w.on(frozen, func(p *process) { p.frozen = false })
	case x < 215:
		if w.unnoticed == nil || !w.trusted {
			w.failover()
		}
	case x < 225:
		if w.unnoticed == nil {
			w.restore()
		}
	case x < 260:
		w.onAny(writes, func(p *process) { p.released = true })
	case x < 275:
		w.on(runs, func(p *process) { p.evict(w.key()) })
	case x < 280:
		if alive == nil {
			w.db.rows[w.key()].ceiling = noCeiling
			w.commit()
		}
	case x < 390:
		w.on(runs, func(p *process) {
			if p.released {
				p.leaveCleanly()
			} else {
				p.flush()
			}
		})
	case x < 540:
		w.deliver()
	case x < 590:
		w.on(runs, func(p *process) {
			if p.unknown {
				p.resolve()
			}
		})
	case x < 620:
		w.on(runs, func(p *process) {
			if p.fetched != nil {
				p.arrives()
			}
		})
	case x < 700:
		w.on(writes, func(p *process) {
			if p.held != nil {
				p.putHeld()
			} else {
				p.hold(w.key())
			}
		})
	case x < 770:
		w.on(writes, func(p *process) { p.step(w.key()) })
	case x < 785:
		w.on(writes, (*process).migrate)
	case x < 792:
		w.on(writes, func(p *process) { p.remove(w.key()) })
	default:
		w.on(writes, func(p *process) { p.send(w.key()) })
	}
}

func (w *world) on(which func(*process) bool, do func(*process)) {
	if p := w.one(which); p != nil {
		do(p)
	}
}

// onAny is on for what would keep a process from noticing what only it can.
func (w *world) onAny(which func(*process) bool, do func(*process)) {
	if p := w.one(which); p != nil && p != w.unnoticed {
		do(p)
	}
}

// deliver lets a statement reach the database. Its answer may be lost, and it may arrive a second time.
func (w *world) deliver() {
	if len(w.statements) == 0 {
		return
	}
	i := w.rng.IntN(len(w.statements))
	s := w.statements[i]
	if again := !s.copy && w.chance(25); again {
		s.copy = true
	} else {
		w.statements = append(w.statements[:i:i], w.statements[i+1:]...)
	}
	ok := w.arrive(s)
	p := s.from
	switch {
	case !p.alive || p.frozen || w.chance(35):
		p.unknown = p.unknown || p.flying && p.last == s
	default:
		p.answer(s, ok)
	}
}
