package pgstore

import (
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// A send to 512 devices whose identities must be read from the database takes longer than one whose are in memory, and an answer waits for it as
// long; one to a device alone waits for nobody's.
func TestP4AnAnswerWaitsAsLongAsALargeSendMayTake(t *testing.T) {
	t.Parallel()
	for devices, longest := range map[int]time.Duration{1: 0, 2: manyTurn + answerTurn + 2*eachTurn, 512: time.Second + manyTurn} {
		synctest.Test(t, func(t *testing.T) {
			in := &instance{c: new(Container)}
			in.transacted.Store(true)
			keys := make([]cache.Key, devices)
			for i := range keys {
				keys[i] = newKey(typeSession, strconv.Itoa(i)+":0")
			}
			in.takeTurn(context.Background(), in.newReader(keys, true), keys)
			answer := in.newReader(keys[:1], false)
			in.takeTurn(context.Background(), answer, keys[:1])
			require.InDelta(t, longest, time.Since(answer.began), float64(50*time.Millisecond))
		})
	}
}
