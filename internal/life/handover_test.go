package life

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// Three processes hand one instance around while its contacts write: they let go of it, are killed, or are frozen or cut off from
// the database, and come back when another one has it.

// ending is how an owner ends.
type ending string

const (
	released   ending = "released" // and the process goes on
	terminated ending = "terminated"
	killedHard ending = "killed"
	paused     ending = "frozen"
	cutOff     ending = "cut off"  // all its connections to the database are broken
	silenced   ending = "silenced" // they are not, and nothing goes through
)

// endings are what happens, in turns: two in eight are clean.
var endings = []ending{terminated, killedHard, paused, cutOff, released, paused, killedHard, silenced}

// clean reports whether the owner lets go.
func (e ending) clean() bool { return e == released || e == terminated }

// A process counts as dead so long after its last sign of life. The machine may be busy.
const handOverLease = 2 * time.Second

// relay is the processes, and what has happened to them.
type relay struct {
	*killing
	runners []*runner // the owner is the first

	took       map[bool][]time.Duration // from the beginning of the release, or the end of the owner, until the next one has it; by clean
	ends       map[ending]int
	attempted  int // writes of those that had lost the instance
	early      int // of these, such that were refused at once
	jumps      int // of wall clocks
	unsaved    int // other writes that they had not saved
	stops      int // who was told that he lost it
	newcomers  int
	fromMemory []stretch // while owners were cut off from the database
	burnedOnce bool      // an unclean end has raised step_through, so that the comparison sees something
}

// stretch is a time of a process.
type stretch struct {
	process    int
	began, end time.Time
}

// runner is a process that may have the instance, and its own way to the database.
type runner struct {
	*process
	proxy   *pgtest.Proxy
	unsaved int // writes that it had not saved when it lost the instance
}

func TestP4P5P6HandedOverUnderTraffic(t *testing.T) {
	t.Parallel()
	l := newLife(t, onPgstore, func(s *settings) {
		s.Answer, s.Idle, s.Instance, s.Lease, s.TakeWait = true, true, "handed over", handOverLease, time.Hour
	})
	l.troubles = []string{noConnection, notOurs, keyUsed}
	l.warnings = []string{"not connected again", takenOver, "instance was released", "database unavailable", "context canceled"}
	if *jumpsFlag {
		l.set.binary = buildJumping(t)
	}
	r := &relay{killing: newKilling(l, random(t)), took: make(map[bool][]time.Duration), ends: make(map[ending]int)}
	for range 3 {
		proxy := pgtest.NewProxy(t, l.dsn)
		r.runners = append(r.runners, r.run(proxy))
	}
	r.process = r.runners[0].process
	taken := r.begin(command{Do: doTake})
	r.pair()
	require.Empty(t, (<-taken).Error)
	r.friends = r.all
	for i := range *handOvers {
		r.handOver(endings[i%len(endings)])
	}
	r.settle()
	r.report()
	r.check()
}

// run starts a process. It returns when that is ready to take.
func (r *relay) run(proxy *pgtest.Proxy) *runner {
	r.t.Helper()
	set := r.set
	set.DSN = proxy.DSN
	r.started++
	p := startProcess(r.t, r.started, set, r.hear)
	p.do(command{Do: doStats})
	return &runner{process: p, proxy: proxy}
}

// handOver ends the owner, so or so, and lets the next one go on.
func (r *relay) handOver(how ending) {
	r.t.Helper()
	owner, next := r.runners[0], r.runners[1]
	r.runners = append(r.runners[1:], owner)
	if r.rng.IntN(3) == 0 {
		r.all = append(r.all, r.server.NewContact(waserver.ContactConfig{Devices: 1 + r.rng.IntN(2)})) // whose messages are first ones
		r.friends = r.all[max(0, len(r.all)-8):]
		r.newcomers++
	}
	r.traffic(100*time.Millisecond + r.upTo(400*time.Millisecond))
	burned := r.burned()
	r.look()
	r.jump(owner, next)
	taken := next.begin(command{Do: doTake})
	r.traffic(50 * time.Millisecond) // it waits already
	r.ends[how]++
	mark := fmt.Sprint("mark", r.started, "-", len(r.took[true])+len(r.took[false]))
	cut := time.Now()
	began := r.end(owner, how)
	var marked <-chan event
	if how == paused {
		if r.set.binary != "" { // it wakes up at another time
			owner.begin(command{Do: doJump, Text: r.wrong()})
			r.jumps++
		}
		marked = owner.begin(command{Do: doMark, Text: mark}) // the first that it does when it wakes up
	}
	m := momentsOf(r.t, r.whileTalking(taken))
	if began.IsZero() {
		began = m.Began
	}
	r.took[how.clean()] = append(r.took[how.clean()], m.Ended.Sub(began))
	if how.clean() {
		require.Equal(r.t, burned, r.burned(), "what a clean hand-over burned")
	} else {
		require.GreaterOrEqual(r.t, r.burned(), burned)
		r.burnedOnce = r.burnedOnce || r.burned() > burned
	}
	r.process = next.process
	r.await(by(next, saidConnected))
	r.traffic(r.upTo(400 * time.Millisecond))

	switch how {
	case released:
		return
	case terminated, killedHard:
		r.runners[len(r.runners)-1] = r.run(owner.proxy)
		return
	case paused:
		require.NoError(r.t, owner.cmd.Process.Signal(syscall.SIGCONT))
		r.zombie(owner, r.whileTalking(marked), mark)
	case cutOff, silenced:
		// It does not know yet that it has lost the instance.
		r.jump(owner)
		// Its connections that hung are of no use any more.
		answer := r.whileTalking(owner.begin(command{Do: doMark, Text: mark}))
		owner.proxy.Down()
		owner.proxy.Heal()
		owner.proxy.Up()
		r.zombie(owner, answer, mark)
		r.fromMemory = append(r.fromMemory, stretch{owner.number, cut, time.Now()})
	}
}

// end ends an owner, and returns when it began to let go, if it did.
func (r *relay) end(owner *runner, how ending) (began time.Time) {
	r.t.Helper()
	switch how {
	case released:
		return momentsOf(r.t, owner.do(command{Do: doRelease})).Began
	case terminated:
		e, err := owner.try(command{Do: doQuit})
		if owner.unsaved > 0 { // when it lost the instance in an earlier reign of it, which its end tells once more
			require.ErrorContains(r.t, err, takenOver)
		} else {
			require.NoError(r.t, err)
		}
		require.NoError(r.t, owner.ended())
		return momentsOf(r.t, e).Began
	case killedHard:
		owner.kill()
	case paused:
		require.NoError(r.t, owner.cmd.Process.Signal(syscall.SIGSTOP))
	case cutOff:
		owner.proxy.Down()
	case silenced:
		owner.proxy.Hang()
	}
	return time.Now()
}

// zombie sees to what a process does that comes back when another one has its instance: it is told, and nothing of it gets into the database.
func (r *relay) zombie(owner *runner, marked event, mark string) {
	r.t.Helper()
	var early int
	require.NoError(r.t, json.Unmarshal(marked.Value, &early))
	var stop event
	for stop.Kind == "" {
		r.traffic(50 * time.Millisecond)
		if found := r.since(by(owner, saidStopped)); len(found) > 0 {
			stop = found[0]
		}
		require.NoError(r.t, r.ctx.Err(), "the zombie does not learn that it has lost its instance")
	}
	require.Contains(r.t, stop.Error, takenOver)
	var unsaved int
	require.NoError(r.t, json.Unmarshal(stop.Value, &unsaved))
	owner.unsaved += unsaved
	r.stops++
	r.attempted += marks
	r.early += early
	r.unsaved += max(0, unsaved-(marks-early))
	require.Zero(r.t, r.db.number(`SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity' AND key_id LIKE $1`, mark+"-%"), "writes of a zombie")
}

// burned is how far rows must be stepped ahead or abandoned.
func (r *relay) burned() int {
	return r.db.number(`SELECT step_through + abandon_through FROM whatsmeow.instances`)
}

// traffic lets contacts write, and the client, for a while, but not much more than the client can answer: it has to begin anew with what it has
// not acknowledged in every process.
func (r *relay) traffic(length time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(r.upTo(100 * time.Millisecond)) {
		if stanzas, _ := r.device.Pending(); stanzas < 100 {
			r.killing.traffic(time.Millisecond)
		}
	}
}

// whileTalking waits for an answer, under traffic.
func (r *relay) whileTalking(answer <-chan event) event {
	r.t.Helper()
	for {
		select {
		case e := <-answer:
			require.Empty(r.t, e.Error)
			return e
		case <-r.ctx.Done():
			require.Fail(r.t, "no answer")
		default:
			r.traffic(20 * time.Millisecond)
		}
	}
}

// since are the events that fit, since the last look.
func (r *relay) since(fits func(event) bool) []event {
	r.seen.Lock()
	defer r.seen.Unlock()
	return matching(r.seen.events[r.seen.from:], fits)
}

// by fits events of a kind that a process said.
func by(p *runner, kind string) func(event) bool {
	return func(e event) bool { return e.Kind == kind && e.Process == p.number }
}

func momentsOf(t testing.TB, e event) (m moments) {
	t.Helper()
	require.NoError(t, json.Unmarshal(e.Value, &m))
	return m
}

// report says what was measured.
func (r *relay) report() {
	r.t.Helper()
	for _, clean := range []bool{true, false} {
		took := r.took[clean]
		slices.Sort(took)
		if len(took) > 0 {
			at := func(percent int) time.Duration {
				return took[(len(took)*percent+99)/100-1].Round(100 * time.Microsecond)
			}
			r.t.Logf("%d hand-overs, clean %v: from release to taken p50 %v, p99 %v, at the most %v", len(took), clean, at(50), at(99), at(100))
		}
	}
	r.t.Logf("ends: %v; %d jumps of wall clocks; %d zombies were told; of %d writes that they tried, %d were refused at once and 0 are in the database; %d more were pending and not saved",
		r.ends, r.jumps, r.stops, r.attempted, r.early, r.unsaved)
}

// check holds the store against what it promises.
func (r *relay) check() {
	r.t.Helper()
	handled := r.handled()
	var lost, unanswered []string
	again := 0
	for text, people := range r.sent {
		if handled[text] == 0 {
			lost = append(lost, text)
		} else if !got(people, "re: "+text) {
			unanswered = append(unanswered, text)
		}
		again += max(0, handled[text]-1)
	}
	sent := make(map[string]time.Time) // first
	for _, e := range r.server.Record().Sent() {
		if at, ok := sent[e.MessageID]; !ok || e.Time.Before(at) {
			sent[e.MessageID] = e.Time
		}
	}
	unread, forEver := 0, 0
	for _, friend := range r.all {
		for _, e := range friend.Undecryptable() {
			unread++
			if e.Recovered {
				continue
			}
			// What was sent while nothing could be saved is not there to be sent again when another process has the instance. But that
			// one has answered, too.
			forEver++
			_, process, _ := strings.Cut(e.ID, sentBy)
			require.True(r.t, slices.ContainsFunc(r.fromMemory, func(s stretch) bool {
				return strconv.Itoa(s.process) == process && sent[e.ID].After(s.began) && sent[e.ID].Before(s.end)
			}), "%s of %s could not be read for ever: %v", e.ID, e.Sender, e.Err)
		}
	}
	stats := r.server.Stats()
	r.t.Logf("%d messages in, %d out, %d ciphertexts recorded; %d never handled, %d never answered, %d handled again; %d logins; %d retry receipts of the client; contacts could not read %d at first, %d for ever; %d newcomers",
		len(r.sent), stats.Messages, len(r.server.Record().Sent()), len(lost), len(unanswered), again, stats.Logins, stats.RetryReceipts, unread, forEver, r.newcomers)
	r.requireOnePairing()
	r.requireNoKeyTwice()
	r.requireNobodyLeftOut()
	require.Empty(r.t, lost, "messages that the handler never saw")
	require.Empty(r.t, unanswered, "messages that were handled and never answered")
	require.Zero(r.t, stats.Unread, "connections of which something may be missing in the record")
	for _, e := range r.events(ofKind(saidUndecryptable)) {
		require.True(r.t, r.came(e.ID), "message %s of %s was undecryptable for ever", e.ID, e.Sender)
	}
	if *handOvers >= len(endings) {
		require.True(r.t, r.burnedOnce, "no end was unclean: the comparison sees nothing")
		require.Equal(r.t, r.stops, r.ends[paused]+r.ends[cutOff]+r.ends[silenced])
	}
}
