package pgstore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is taken while the lease has lapsed is nobody's to keep, although that lapse was counted before.
func TestALeaseThatHasLapsedCountsUntilItIsRenewed(t *testing.T) {
	t.Parallel()
	l := new(lease)
	l.renewed(time.Now(), time.Hour, false)
	require.Zero(t, l.lapsed(), "the first one")
	l.renewed(time.Now(), time.Hour, true)
	require.Zero(t, l.lapsed())
	l.renewed(time.Now(), time.Hour, false)
	require.Equal(t, 1, l.lapsed(), "by the database's clock")
	l.renewed(time.Now().Add(-time.Hour), 0, true)
	taken := l.lapsed()
	require.Equal(t, 2, taken, "by its own")
	l.renewed(time.Now(), time.Hour, false)
	require.Greater(t, l.lapsed(), taken)
}
