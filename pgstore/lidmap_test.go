package pgstore_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// lidPair is the n-th pair.
func lidPair(n int) store.LIDMapping {
	return store.LIDMapping{
		PN:  types.NewJID(fmt.Sprint("1", n), types.DefaultUserServer),
		LID: types.NewJID(fmt.Sprint("9", n), types.HiddenUserServer),
	}
}

func putPair(ctx context.Context, c *pgstore.Container, n int) error {
	p := lidPair(n)
	return c.LIDMap.PutLIDMapping(ctx, p.LID, p.PN)
}

// pairs counts what the table holds.
func pairs(t testing.TB, dsn string) int {
	t.Helper()
	return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.lid_map`)
}

func TestP7FlushWaitsForLIDPairsToo(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind)
	network.Down()
	require.NoError(t, putPair(ctx, c, 1), "it goes on from memory")
	require.ErrorIs(t, c.Flush(within(t, 100*time.Millisecond)), context.DeadlineExceeded)
	network.Up()
	require.NoError(t, c.Flush(within(t, 20*time.Second)))
	require.Equal(t, 1, pairs(t, dsn))
}

func TestP7LIDPairsThatAreRefusedWhenNobodyWaitsAreTold(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	var logged lockedBuffer
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, OutageWait: 10 * time.Millisecond, Logger: textLogger(&logged)})
	require.NoError(t, err)
	require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.lid_map ADD CHECK (pn <> '12')`))
	network.Down()
	for n := range 4 { // of which one is guilty
		require.NoError(t, putPair(ctx, c, n))
	}
	network.Up()
	require.ErrorIs(t, c.Flush(within(t, 20*time.Second)), pgstore.ErrRefused)
	require.Contains(t, logged.String(), "level=ERROR msg=\"pgstore: database refuses LID pairs\" count=1")
	require.Equal(t, 3, pairs(t, dsn))
	require.NoError(t, c.Flush(ctx), "once told, it is not in the way")
	err = c.Close()
	require.ErrorIs(t, err, pgstore.ErrRefused)
	require.ErrorContains(t, err, "1 LID pairs were refused")
}

func TestP10OfManyLIDPairsOnlyTheGuiltyAreRefused(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.lid_map ADD CHECK (pn <> '12')`))
	require.ErrorIs(t, c.LIDMap.PutManyLIDMappings(ctx, []store.LIDMapping{lidPair(1), lidPair(2), lidPair(3)}), pgstore.ErrRefused)
	require.Equal(t, 2, pairs(t, dsn))
	for n, want := range map[int]types.JID{1: lidPair(1).LID, 2: {}, 3: lidPair(3).LID} {
		got, err := c.LIDMap.GetLIDForPN(ctx, lidPair(n).PN)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// The table holds a long key's beginning and a hash of it, which is enough to find it but not to give it back.
func TestP10ALIDPairThatWouldComeBackCutIsRefused(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	long, p := strings.Repeat("1", 1001), lidPair(1)
	longPN, longLID := types.NewJID(long, types.DefaultUserServer), types.NewJID(long, types.HiddenUserServer)
	require.ErrorIs(t, c.LIDMap.PutLIDMapping(ctx, p.LID, longPN), pgstore.ErrInvalidInput)
	require.ErrorIs(t, c.LIDMap.PutLIDMapping(ctx, longLID, p.PN), pgstore.ErrInvalidInput)
	require.NoError(t, c.LIDMap.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: longLID, PN: longPN}, p}), "invalid entries are skipped")
	require.Equal(t, 1, pairs(t, dsn))
	got, err := c.LIDMap.GetLIDForPN(ctx, longPN)
	require.NoError(t, err)
	require.Empty(t, got)
	longest := strings.Repeat("1", 1000)
	require.NoError(t, c.LIDMap.PutLIDMapping(ctx, p.LID, types.NewJID(longest, types.DefaultUserServer)))
	require.NoError(t, c.Close())
	got, err = reopen(t, dsn).LIDMap.GetPNForLID(ctx, p.LID)
	require.NoError(t, err)
	require.Equal(t, longest, got.User)
}

func TestP7LIDPairsBlockAtTheLimit(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN, behind, func(cfg *pgstore.Config) { cfg.PendingLimit = 3 })
	network.Down()
	for n := range 3 {
		require.NoError(t, putPair(ctx, c, n))
	}
	err := putPair(within(t, 100*time.Millisecond), c, 3)
	require.ErrorIs(t, err, batcher.ErrBacklogFull)
	require.ErrorIs(t, err, context.Canceled, "the client must not acknowledge")
	blocked := make(chan error, 1)
	go func() {
		blocked <- c.LIDMap.PutManyLIDMappings(ctx, []store.LIDMapping{lidPair(4), lidPair(5), lidPair(6), lidPair(7)})
	}()
	network.Up()
	require.NoError(t, <-blocked)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 7, pairs(t, dsn))
}

func TestP7CloseTellsLIDPairsThatItCouldNotSaveAndThoseWhoWaitForThem(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, OutageWait: time.Hour})
	require.NoError(t, err)
	network.Hang()
	waiting := make(chan error, 2)
	go func() { waiting <- putPair(ctx, c, 0) }()
	require.Eventually(t, func() bool { return c.Flush(within(t, 10*time.Millisecond)) != nil }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, putPair(within(t, 10*time.Millisecond), c, 1), pgstore.ErrUnavailable) // in a batch of its own, since the first is on its way
	go func() { waiting <- putPair(ctx, c, 1) }()
	require.ErrorContains(t, c.Shutdown(within(t, 100*time.Millisecond)), "2 LID pairs are not saved")
	for range 2 {
		require.ErrorIs(t, <-waiting, context.Canceled)
	}
	network.Heal()
}

func TestP1P11LIDPairsThatWereForgottenAreFoundAgain(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }) // a thousand answers are kept nevertheless
	const n = 2500
	var all []store.LIDMapping
	var pns []types.JID
	for i := range n {
		all, pns = append(all, lidPair(i)), append(pns, lidPair(i).PN)
	}
	require.NoError(t, c.LIDMap.PutManyLIDMappings(ctx, all))
	require.Equal(t, n, pairs(t, dsn))
	for range 2 {
		found, err := c.LIDMap.GetManyLIDsForPNs(ctx, pns)
		require.NoError(t, err)
		require.Len(t, found, n)
		for _, p := range all {
			require.Equal(t, p.LID, found[p.PN])
		}
	}
	for i := range 20 {
		got, err := c.LIDMap.GetPNForLID(ctx, all[i].LID)
		require.NoError(t, err)
		require.Equal(t, all[i].PN, got)
	}
}
