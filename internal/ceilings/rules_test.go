package ceilings

import (
	"flag"
	"testing"

	"github.com/stretchr/testify/require"
)

var search = flag.Int("ceilings.search", 0, "look for the first walk that finds each missing rule, so many at the most, instead of beginning near it")

// rules are what keeps keys from coming back. Walks are drawn from their number alone, so a walk that finds a repeat without a rule goes on finding
// it until the model changes; then look for another one with -ceilings.search.
var rules = []struct {
	without string
	and     string // another one, for those that cover each other
	walk    uint64 // the first one that finds it
	means   string
}{
	{without: "step", walk: 2, means: "after an unclean end a chain is moved to its ceiling"},
	{without: "clean-keeps-step", walk: 609, means: "a clean end does not make up for an unclean one before it"},
	{without: "ceiling", walk: 40, means: "a send at the ceiling waits"},
	{without: "flights-count", and: "never-lower", walk: 39_664, means: "a ceiling is never lowered, and those under way count"},
	{without: "first-flight-counts", walk: 47, means: "a chain's first row counts from the moment it is under way"},
	{without: "used-since", walk: 5, means: "a row that waited reserves ahead of what was used since"},
	{without: "archived-abandoned", walk: 952, means: "after an unclean end archived chains are abandoned"},
	{without: "archived-abandoned-for-good", walk: 58_554, means: "that they are is written with the row"},
	{without: "imports-abandoned", walk: 3_354, means: "a row without a ceiling is not stepped but abandoned"},
	{without: "merged-rows", walk: 3_699, means: "what rows of a key may hold counts at the key that its record is moved to"},
	{without: "deleted-wait", walk: 5_381, means: "a send on a session that was deleted waits until its row is gone"},
	{without: "seq", walk: 6_948, means: "a flush finds seq as it was"},
	{without: "timeline", walk: 1_185, means: "nobody writes across a change of timeline"},
	{without: "token", walk: 312, means: "an epoch does not come back with the database"},
	{without: "load-checks", walk: 45, means: "what is loaded is of the database that was taken"},
	{without: "fetch-checks", walk: 800, means: "what is fetched is no older than the last flush"},
	{without: "fetch-outlives-no-take", walk: 23_447, means: "what was fetched before the instance was taken again is fetched again"},
	{without: "forced-gives-up", walk: 24_368, means: "where takes can be forced a replay gives its chains up"},
	{without: "archived-given-up", walk: 2_302_155, means: "the archived ones too"},
	{without: "held-refused", walk: 261_522, means: "a send that was read before its chain was given up is refused"},
	{without: "waiting-refused", walk: 37_166, means: "and so is one that waits"},
	{without: "replay-reserves", walk: 460_892, means: "what is replayed has a ceiling of its own"},
	{without: "rewind-abandons", walk: 14_097, means: "who stops because the database went back says so in it"},
	{without: "leaving-tells", walk: 7_470, means: "who is leaving says so, too"},
	{without: "witness-first", walk: 7_309, means: "the witness is told before anybody relies on a flush"},
	{without: "witness-at-flushes", walk: 4_243, means: "it is asked at flushes, too"},
	{without: "witness-by-owner", walk: 944_578, means: "it is not told of anything older than a take"},
	{without: "known-by-commit", walk: 57_110, means: "a commit that was only read of may be lost by a replication that loses nothing it has acknowledged"},
	{without: "lossless", walk: 6_448, means: "who trusts a replication must have one that loses nothing"},
}

func TestEachRuleIsNeeded(t *testing.T) {
	t.Parallel()
	for _, rule := range rules {
		t.Run(rule.without, func(t *testing.T) {
			t.Parallel()
			weak := map[string]bool{rule.without: true, rule.and: true}
			first, last := rule.walk, rule.walk
			if *search > 0 {
				first, last = 0, uint64(*search)
			}
			for seed := first; seed <= last; seed++ {
				if _, repeated := walk(seed, weak); repeated != "" {
					t.Logf("walk %d: %s", seed, repeated)
					return
				}
			}
			require.Fail(t, "no walk finds it any more", "%s; search again", rule.means)
		})
	}
}

// Too rare for walks: a row that waits in the backlog of a key names a chain on which nothing was sent yet. The record is moved to another key,
// a decrypt promotes the chain there, and it is sent on. The row still comes.
func TestAChainThatWaitsAtItsOldPlaceIsLimited(t *testing.T) {
	t.Parallel()
	require.Empty(t, waitsAtItsOldPlace(nil))
	require.NotEmpty(t, waitsAtItsOldPlace(map[string]bool{"chains-that-wait": true}))
}

func waitsAtItsOldPlace(weak map[string]bool) (repeated string) {
	w := newWorld(1, weak)
	w.trusted, w.forced, w.witnessed = false, true, false
	for k := range w.db.rows {
		w.db.rows[k] = row{record: record{state: state{chain: w.newChain()}}, there: true, ceiling: 4}
	}
	p := w.take()
	p.load()
	p.reserve, p.segmentSize, p.durableSends, p.newChainsWait = 1, 1, false, false
	waits, next := state{chain: w.newChain()}, state{chain: w.newChain()}
	p.put(atNumber, record{state: waits})
	p.put(atNumber, record{state: next, archived: []state{waits}})
	p.migrate()
	p.put(atLID, record{state: waits, archived: p.mem[atLID].under()})
	for range 5 {
		p.send(atLID)
	}
	p.flush()
	w.arrive(p.last)
	p.alive = false
	other := w.take()
	other.load()
	for range 5 {
		other.send(atNumber)
		other.flush()
		other.answer(other.last, w.arrive(other.last))
	}
	return w.repeated
}
