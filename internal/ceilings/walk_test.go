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
	lease                      int // how long one holds
	weights                    []int
	weight                     int // all of them
	tenure                     int // how rarely an instance is taken from its owner

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

func newWorld(seed uint64, weak map[string]bool) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 2)), weak: weak, used: make(map[state]*process)}
	w.trusted, w.forced, w.witnessed = w.chance(25), w.chance(60), w.chance(50)
	w.loved = w.rng.IntN(keys)
	w.lease = []int{20, 100}[w.rng.IntN(2)]
	w.tenure = []int{0, 80, 98}[w.rng.IntN(3)]
	w.draw()
	w.timelines = 1
	w.db.timeline, w.db.fence.timeline = 1, 1
	w.db.rows[w.loved] = row{record: record{state: state{chain: w.newChain()}}, there: true, ceiling: 4}
	w.commit()
	return w
}

// walk draws one, and returns how many messages have left, and which message key was used twice.
func walk(seed uint64, weak map[string]bool) (sends int, repeated string) {
	w := newWorld(seed, weak)
	for range 20 + w.rng.IntN(300) {
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

func runs(p *process) bool     { return !p.frozen && p.loaded }
func writes(p *process) bool   { return runs(p) && !p.released }
func frozen(p *process) bool   { return p.frozen }
func unsure(p *process) bool   { return runs(p) && p.unknown }
func fetching(p *process) bool { return runs(p) && p.fetched != nil }
func reading(p *process) bool  { return !p.frozen && !p.loaded }

// events are what may happen next, and how often. Some is left out of a walk, and some happens much more often: so walks differ in more than luck.
var events = []struct {
	weight int
	always bool
	happen func(*world)
}{
	{70, true, (*world).begin},
	{20, true, func(w *world) { w.on(reading, (*process).load) }},
	{20, false, func(w *world) { w.onAny(runs, func(p *process) { p.alive = false }) }},
	{20, false, func(w *world) { w.onAny(runs, func(p *process) { p.frozen = true }) }},
	{35, true, func(w *world) { w.on(frozen, func(p *process) { p.frozen = false }) }},
	{20, false, func(w *world) {
		if w.unnoticed == nil || !w.trusted {
			w.failover()
		}
	}},
	{10, false, func(w *world) {
		if w.unnoticed == nil {
			w.restore()
		}
	}},
	{20, false, func(w *world) { w.onAny(writes, func(p *process) { p.released = true }) }},
	{30, false, func(w *world) { w.on(runs, func(p *process) { p.evict(w.key()) }) }},
	{5, false, (*world).imported},
	{110, true, func(w *world) { w.on(runs, (*process).save) }},
	{150, true, (*world).deliver},
	{50, true, func(w *world) { w.on(unsure, (*process).resolve) }},
	{30, true, func(w *world) { w.on(fetching, (*process).arrives) }},
	{10, false, func(w *world) { w.on(runs, (*process).tellLate) }},
	{80, false, func(w *world) { w.on(writes, (*process).slowSend) }},
	{70, false, func(w *world) { w.on(writes, func(p *process) { p.step(w.key()) }) }},
	{15, false, func(w *world) { w.on(writes, (*process).migrate) }},
	{7, false, func(w *world) { w.on(writes, func(p *process) { p.remove(w.key()) }) }},
	{210, true, func(w *world) { w.on(writes, func(p *process) { p.send(w.key()) }) }},
}

// draw says how often each event happens in this walk.
func (w *world) draw() {
	for _, e := range events {
		weight := e.weight
		switch {
		case !e.always && w.chance(25):
			weight = 0
		case w.chance(25):
			weight *= 5
		}
		w.weights = append(w.weights, weight)
		w.weight += weight
	}
}

// event is one step of a walk.
func (w *world) event() {
	for _, p := range w.processes {
		p.leaseKept = p.leaseKept && p.leaseUntil >= w.clock
	}
	x := w.rng.IntN(w.weight)
	for i, e := range events {
		if x -= w.weights[i]; x < 0 {
			e.happen(w)
			return
		}
	}
}

// begin is a process that takes the instance.
func (w *world) begin() {
	alive := w.one(func(*process) bool { return true })
	if w.unnoticed != nil || alive != nil && (!w.takes() || w.chance(w.tenure)) {
		return
	}
	p := w.take()
	if w.processes = append(w.processes, p); w.chance(70) {
		p.load()
	}
}

// imported is a row that somebody else has written, while the instance is nobody's.
func (w *world) imported() {
	if w.one(func(*process) bool { return true }) == nil {
		w.db.rows[w.key()].ceiling = noCeiling
		w.commit()
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
