package ceilings

import (
	"flag"
	"strings"
	"testing"
)

var only = flag.String("ceilings.only", "", "")

var most = flag.Int("ceilings.most", 300_000, "")

var rare = flag.Bool("ceilings.rare", false, "look for the repeats that take millions of walks as well")

// rules are what keeps keys from coming back, and within how many walks it is seen that they do without one.
var rules = []struct {
	without string
	and     string // another one, for those that cover each other
	within  int
	means   string
}{
	{without: "step", within: 5_000, means: "after an unclean end a chain is moved to its ceiling"},
	{without: "clean-keeps-step", within: 50_000, means: "a clean end does not make up for an unclean one before it"},
	{without: "ceiling", within: 5_000, means: "a send at the ceiling waits"},
	{without: "flights-count", and: "never-lower", within: 200_000, means: "a ceiling is never lowered, and those under way count"},
	{without: "first-flight-counts", within: 50_000, means: "a chain's first row counts from the moment it is under way"},
	{without: "used-since", within: 50_000, means: "a row that waited reserves ahead of what was used since"},
	{without: "archived-abandoned", within: 50_000, means: "after an unclean end archived chains are abandoned"},
	{without: "archived-abandoned-for-good", within: 50_000, means: "that they are is written with the row"},
	{without: "imports-abandoned", within: 200_000, means: "a row without a ceiling is not stepped but abandoned"},
	{without: "merged-rows", within: 200_000, means: "what rows of a key may hold counts at the key that its record is moved to"},
	{without: "chains-that-wait", within: 1_000_000, means: "so does the chain of a row that is still to come, if nothing was sent on it"},
	{without: "deleted-wait", within: 200_000, means: "a send on a session that was deleted waits until its row is gone"},
	{without: "seq", within: 50_000, means: "a flush finds seq as it was"},
	{without: "timeline", within: 5_000, means: "nobody writes across a change of timeline"},
	{without: "token", within: 1_000_000, means: "an epoch does not come back with the database"},
	{without: "token", and: "clean-timeline", within: 200_000, means: "nor does a clean end count on another timeline"},
	{without: "load-checks", within: 50_000, means: "what is loaded is of the database that was taken"},
	{without: "fetch-checks", within: 50_000, means: "what is fetched is no older than the last flush"},
	{without: "fetch-outlives-no-take", within: 1_000_000, means: "what was fetched before the instance was taken again is fetched again"},
	{without: "forced-gives-up", within: 50_000, means: "where takes can be forced a replay gives its chains up"},
	{without: "archived-given-up", within: 1_000_000, means: "the archived ones too"},
	{without: "held-refused", within: 1_000_000, means: "a send that was read before its chain was given up is refused"},
	{without: "waiting-refused", within: 1_000_000, means: "and so is one that waits"},
	{without: "replay-reserves", within: 50_000, means: "what is replayed has a ceiling of its own"},
	{without: "rewind-abandons", within: 50_000, means: "who stops because the database went back says so in it"},
	{without: "leaving-tells", within: 200_000, means: "who is leaving says so, too"},
	{without: "witness-first", within: 50_000, means: "the witness is told before anybody relies on a flush"},
	{without: "witness-at-flushes", within: 200_000, means: "it is asked at flushes, too"},
	{without: "witness-by-owner", within: 200_000, means: "it is not told of anything older than a take"},
	{without: "known-by-commit", within: 1_000_000, means: "a commit that was only read of may be lost by a synchronous replication"},
	{without: "lossless", within: 50_000, means: "who trusts a replication must have one that loses nothing"},
}

func TestEachRuleIsNeeded(t *testing.T) {
	t.Parallel()
	for _, rule := range rules {
		if *only != "" && !strings.Contains(*only, rule.without) {
			continue
		}
		t.Run(rule.without+rule.and, func(t *testing.T) {
			weak := map[string]bool{rule.without: true, rule.and: true}
			for seed := range uint64(*most) {
				if _, repeated := walk(seed, weak); repeated != "" {
					t.Logf("FOUND %d %s+%s: %s", seed, rule.without, rule.and, repeated)
					return
				}
			}
			t.Errorf("NEVER %s", rule.without+rule.and)
		})
	}
}
