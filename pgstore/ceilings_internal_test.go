package pgstore

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Rows that wait in a backlog while their key goes on, seen from inside: a crash between two of them is too rare to be waited for.

func chainName(b byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(b)), 32)))
}

func stateOf(chain string, counter int) string {
	return fmt.Sprintf(`{"LocalIdentityPublic":null,"SenderBaseKey":"%s","SenderChain":{"SenderRatchetKeyPublic":"%s","SenderRatchetKeyPrivate":"%s","ChainKey":{"Key":"%s","Index":%d},"MessageKeys":[]},"ReceiverChains":[],"SessionVersion":3}`,
		chain, chain, chain, chain, counter)
}

func sessionOf(chain string, counter int, archived ...string) []byte {
	return []byte(`{"SessionState":` + stateOf(chain, counter) + `,"PreviousStates":[` + strings.Join(archived, ",") + `]}`)
}

// putOver makes a value that is put in the place of another.
func putOver(stored *recordValue, record []byte) *recordValue {
	v := newRecord(record)
	v.follow(stored, v)
	return v
}

func sendsOf(v *recordValue) *reservation { return v.form.Load().sends }

func TestP4ArchivedChainsAreAbandonedAlsoUnderAnAbandonedOne(t *testing.T) {
	t.Parallel()
	x, y := chainName('x'), chainName('y')
	ceiling := uint64(70)
	form := markStep.apply(sessionOf(x, 3, stateOf(y, 5)), recordJSON{Ceiling: &ceiling, Abandoned: []string{x}})
	require.Contains(t, form.sends.abandoned, y)
}

// Chains that are kept over a database that went back are as new: its row is not there any more.
func TestP4AKeptChainHasNoCeilingOnADatabaseThatWentBack(t *testing.T) {
	t.Parallel()
	v := putOver(nil, sessionOf(chainName('x'), 1))
	chain, _ := v.sending()
	v.reserve(64)
	v.durable()
	require.Equal(t, patienceNone, sendsOf(v).sent(chain, 2, 64))
	v.replayed(true)
	require.Equal(t, patienceNewChain, sendsOf(v).sent(chain, 3, 64))
}

func TestP4ARowThatIsTriedAgainSaysWhatItSaid(t *testing.T) {
	t.Parallel()
	x, z := chainName('x'), chainName('z')
	read := new(recordValue)
	read.form.Store(markAbandon.apply(sessionOf(x, 3), recordJSON{}))
	v := putOver(read, sessionOf(x, 3))
	v.reserve(64)
	first, err := json.Marshal(v)
	require.NoError(t, err)
	putOver(v, sessionOf(z, 0)) // a decrypt steps the ratchet
	again, err := json.Marshal(v)
	require.NoError(t, err)
	require.Equal(t, string(first), string(again))
	require.Contains(t, string(first), "abandoned")
}

func TestP4ARowThatWaitedInABacklogReservesWhatWasUsedSince(t *testing.T) {
	t.Parallel()
	x := chainName('x')
	v := putOver(nil, sessionOf(x, 1))
	sends := sendsOf(v)
	chain, _ := v.sending()
	sends.sent(chain, 1, 64)
	last := v
	for n := 2; n <= 1000; n++ {
		last = putOver(last, sessionOf(x, n))
		sends.sent(chain, uint64(n), 64)
	}
	for _, b := range "abcdefgh" {
		last = putOver(last, sessionOf(chainName(byte(b)), 1))
		other, _ := last.sending()
		sends.sent(other, 1, 64)
	}
	v.reserve(64)
	require.Greater(t, v.ceiling, uint64(1000))
	last.durable()
	require.Empty(t, sends.used, "no row of an earlier value comes any more")
}

// In steady traffic a chain that is durable has its next row on its way before the reservation is used up.
func TestHalfOfAReservationAsksForAFlush(t *testing.T) {
	t.Parallel()
	x := chainName('x')
	v := putOver(nil, sessionOf(x, 1))
	sends := sendsOf(v)
	chain, _ := v.sending()
	v.reserve(64)
	v.durable() // up to 65
	require.Equal(t, patienceNone, sends.sent(chain, 33, 64))
	require.Equal(t, patienceHurry, sends.sent(chain, 34, 64))
	next := putOver(v, sessionOf(x, 34))
	next.reserve(64) // up to 98, under way
	require.Equal(t, patienceNone, sends.sent(chain, 65, 64))
	require.Equal(t, patienceDurable, sends.sent(chain, 66, 64), "it is not there yet")
}

func TestP4AMergedChainObeysTheRowThatIsStillToComeAtItsOldPlace(t *testing.T) {
	t.Parallel()
	x, l := chainName('x'), chainName('l')
	pn := putOver(nil, sessionOf(x, 1)) // in a segment that no flush has begun
	lid := putOver(nil, sessionOf(l, 0))
	moved := newRecord(sessionOf(x, 1))
	moved.follow(pn, moved)
	merged := newRecord(sessionOf(x, 1, stateOf(l, 0)))
	merged.follow(lid, moved)
	pn.reserve(64)
	chain, _ := merged.sending()
	require.Equal(t, patienceDurable, sendsOf(merged).sent(chain, 1000, 64))
}

func TestP4ARecordThatIsOnlyMovedKeepsACeiling(t *testing.T) {
	t.Parallel()
	quoted, err := json.Marshal(string(sessionOf(chainName('x'), 3)))
	require.NoError(t, err)
	v := new(recordValue)
	v.load(fmt.Appendf(nil, `{"record":%s,"ceiling":70}`, quoted))
	v.reserve(64)
	row, err := json.Marshal(v)
	require.NoError(t, err)
	require.Contains(t, string(row), `"ceiling":70`)
}

// A row that waits in the backlog of a key names a chain on which nothing was sent yet; the record is moved; the chain is promoted and sent on.
func TestP4AChainThatWaitsAtItsOldPlaceIsLimited(t *testing.T) {
	t.Parallel()
	w, z, l := chainName('w'), chainName('z'), chainName('l')
	waits := putOver(nil, sessionOf(w, 0))               // in a segment that no flush has begun
	pn := putOver(waits, sessionOf(z, 0, stateOf(w, 0))) // in a later one
	lid := putOver(nil, sessionOf(l, 0))
	moved := newRecord(sessionOf(z, 0, stateOf(w, 0)))
	moved.follow(pn, moved)
	merged := newRecord(sessionOf(z, 0, stateOf(w, 0), stateOf(l, 0)))
	merged.follow(lid, moved)
	promoted := putOver(merged, sessionOf(w, 100, stateOf(z, 0), stateOf(l, 0)))
	chain, _ := promoted.sending()
	wait := sendsOf(promoted).sent(chain, 100, 64) // 100 messages
	waits.reserve(64)
	require.Less(t, waits.ceiling, uint64(100), "the row that is to come reserves no more")
	require.Equal(t, patienceDurable, wait, "so the send has to wait")
}
