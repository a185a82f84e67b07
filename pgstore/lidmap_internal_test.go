package pgstore

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

func TestP11LIDAnswersAreBoundedAlsoNegativeOnes(t *testing.T) {
	t.Parallel()
	m := newLIDMap(&Container{cfg: Config{MemoryBudget: 2000 << 10}})
	ask := func(from, n int) {
		for i := range n {
			user := strconv.Itoa(from + i)
			var pairs []store.LIDMapping
			if i%2 == 0 {
				pairs = append(pairs, store.LIDMapping{PN: types.JID{User: user}, LID: types.JID{User: "9" + user}})
			}
			require.True(t, m.keep(true, []string{user}, pairs, m.mu.version))
		}
	}
	ask(0, 10_000)
	require.Len(t, m.mu.lids, 2000)
	require.LessOrEqual(t, len(m.mu.pns), 2000)
	// While a pair is seen that the table does not have, the table may not be asked for what was forgotten.
	m.mu.queue = []*lidBatch{{seen: true}}
	ask(10_000, 100)
	require.Len(t, m.mu.lids, 2100)
	m.mu.queue = nil
	ask(20_000, 1)
	require.Len(t, m.mu.lids, 2000)
}
