package pgstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWhatCannotBeOpenedIsLeftAloneForLongerEachTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s spoilt
		require.Equal(t, []string{}, s.now())
		for _, pause := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, spoiltMost, spoiltMost} {
			s.failed("a", time.Minute)
			time.Sleep(pause - time.Nanosecond)
			require.Equal(t, []string{"a"}, s.now())
			time.Sleep(time.Nanosecond)
			require.Empty(t, s.now())
		}
		s.opened("a")
		s.failed("a", time.Hour)
		time.Sleep(spoiltMost)
		require.Empty(t, s.now())
		time.Sleep(3 * spoiltMost)
		s.failed("b", time.Second)
		require.Len(t, s.ids, 1, "what was long ago is forgotten")
	})
}
