package pgstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// What one process learns corrects what the others remember, found or not found, and the map stays one to one.
func TestLIDAnswersOfOtherProcessesAreCorrected(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, b := process(t, dsn), process(t, dsn)
	pn := func(n int) types.JID { return types.NewJID(fmt.Sprint("4", n), types.DefaultUserServer) }
	lid := func(n int) types.JID { return types.NewJID(fmt.Sprint("9", n), types.HiddenUserServer) }
	require.NoError(t, a.LIDMap.PutLIDMapping(ctx, lid(1), pn(1)))
	got, err := b.LIDMap.GetLIDForPN(ctx, pn(1))
	require.NoError(t, err)
	require.Equal(t, lid(1), got)
	got, err = b.LIDMap.GetLIDForPN(ctx, pn(2))
	require.NoError(t, err)
	require.Empty(t, got)

	require.NoError(t, a.LIDMap.PutLIDMapping(ctx, lid(1), pn(2))) // the LID goes to another number
	require.Eventually(t, func() bool {
		of2, err := b.LIDMap.GetLIDForPN(ctx, pn(2))
		require.NoError(t, err)
		of1, err := b.LIDMap.GetLIDForPN(ctx, pn(1))
		require.NoError(t, err)
		back, err := b.LIDMap.GetPNForLID(ctx, lid(1))
		require.NoError(t, err)
		return of2 == lid(1) && of1.IsEmpty() && back == pn(2)
	}, 10*time.Second, 10*time.Millisecond)

	// Both learn pairs that contradict each other at once; whoever is last, both end with what the table says.
	for i := range 20 {
		done := make(chan error, 2)
		go func() { done <- a.LIDMap.PutLIDMapping(ctx, lid(10), pn(10+i)) }()
		go func() { done <- b.LIDMap.PutLIDMapping(ctx, lid(10+i), pn(10)) }()
		require.NoError(t, <-done)
		require.NoError(t, <-done)
	}
	require.Eventually(t, func() bool {
		for _, c := range []int{10, 11, 20, 29} {
			fromA, err := a.LIDMap.GetLIDForPN(ctx, pn(c))
			require.NoError(t, err)
			fromB, err := b.LIDMap.GetLIDForPN(ctx, pn(c))
			require.NoError(t, err)
			if fromA != fromB || fromA.User != scalar[string](t, dsn, `SELECT coalesce((SELECT lid FROM whatsmeow.lid_map WHERE pn = $1), '')`, pn(c).User) {
				return false
			}
		}
		for _, l := range []int{1, 10, 11, 20, 29} {
			fromA, err := a.LIDMap.GetPNForLID(ctx, lid(l))
			require.NoError(t, err)
			fromB, err := b.LIDMap.GetPNForLID(ctx, lid(l))
			require.NoError(t, err)
			if fromA != fromB || fromA.User != scalar[string](t, dsn, `SELECT coalesce((SELECT pn FROM whatsmeow.lid_map WHERE lid = $1), '')`, lid(l).User) {
				return false
			}
		}
		return true
	}, 10*time.Second, 10*time.Millisecond)
	require.True(t, scalar[bool](t, dsn, `SELECT count(*) = count(DISTINCT lid) AND count(*) = count(DISTINCT pn) FROM whatsmeow.lid_map`))
}
