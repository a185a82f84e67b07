package migrate_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// instanceOf is the only instance of a container.
func instanceOf(t testing.TB, c *pgstore.Container) string {
	t.Helper()
	instances, err := c.Instances(ctx)
	require.NoError(t, err)
	require.Len(t, instances, 1)
	return instances[0].ID
}

// Who leaves goes on talking on sqlstore with what he had here, whether or not the last owner left cleanly, and what is left here is never sent with again.
func TestP4AClientThatLeavesGoesOnOnSqlstore(t *testing.T) {
	t.Parallel()
	for name, clean := range map[string]bool{"after a clean end": true, "from an owner who lives": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onEach(t, func(t *testing.T, to migrate.Sqlstore) {
				k := newTalk(t)
				dsn := pgtest.Open(t)
				// What it sent last is not flushed when the other container takes the instance, but for what ceilings wait for.
				owner := open(t, dsn, func(cfg *pgstore.Config) {
					if !clean {
						cfg.FlushInterval, cfg.MaxRest, cfg.Lease, cfg.TakeWait = time.Hour, time.Hour, time.Hour, time.Millisecond
					}
				})
				k.login(owner)
				k.converse()
				k.converse()
				k.say(k.friend.LID()) // an answer would be flushed at once, and this with it
				k.say(k.group.JID())
				k.logout()
				if clean {
					require.NoError(t, owner.Close())
				}
				begun := k.chains()

				c := open(t, dsn, func(cfg *pgstore.Config) { cfg.TakeWait = time.Millisecond })
				id := instanceOf(t, c)
				var last migrate.Progress
				result, err := migrate.ToSqlstore(ctx, c, id, to, migrate.ExportOptions{Progress: func(p migrate.Progress) { last = p }})
				require.NoError(t, err)
				require.Positive(t, result.Counts["session"])
				require.Empty(t, result.Skipped)
				require.Positive(t, last.Done)

				k.login(container(to))
				k.converse()
				k.converse()
				k.judge()
				require.Equal(t, begun, k.chains(), "nothing was begun anew")
				k.logout()

				// Who opens it here nevertheless begins everything anew.
				k.login(c)
				require.EqualValues(t, 1, c.Stats().Healed)
				k.converse()
				require.Len(t, k.chains(), len(begun)+2)
				k.judge()
			})
		})
	}
}

// An export that fails leaves the instance as it was.
func TestP4AnExportThatFailsBurnsNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, of migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(of))
		k.converse()
		k.logout()
		c := open(t, pgtest.Open(t))
		_, err := migrate.FromSqlstore(ctx, c, of, migrate.Options{Exact: true})
		require.NoError(t, err)
		k.login(c)
		k.converse()
		k.logout()
		begun, id := k.chains(), instanceOf(t, c)

		_, err = migrate.ToSqlstore(ctx, c, id, of, migrate.ExportOptions{})
		require.ErrorIs(t, err, migrate.ErrDeviceExists)
		k.login(c)
		require.Zero(t, c.Stats().Healed)
		k.converse()
		k.logout()
		require.Equal(t, begun, k.chains())
		_, err = migrate.ToSqlstore(ctx, c, "another", of, migrate.ExportOptions{})
		require.ErrorIs(t, err, pgstore.ErrNoInstance)

		_, err = migrate.ToSqlstore(ctx, c, id, of, migrate.ExportOptions{Replace: true})
		require.NoError(t, err)
		k.login(container(of))
		k.converse()
		require.Equal(t, begun, k.chains())
		k.judge()
	})
}

// Everything goes there and back.
func TestEverythingIsExportedToSqlstore(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, to migrate.Sqlstore) {
		from := backends[0].open(t)
		d := container(from).NewDevice()
		dsn := pgtest.Open(t)
		c := open(t, dsn)
		ours := c.NewDevice()
		peer := fillDevice(t, ours, d)
		require.NoError(t, ours.PreKeys.RemovePreKey(ctx, 5)) // the highest
		before := answersOf(t, ours, []string{peer})
		require.Equal(t, []uint32{4, 6}, before.NextPreKeys)
		require.NoError(t, ours.PreKeys.RemovePreKey(ctx, 6))
		result, err := migrate.ToSqlstore(ctx, c, pgstore.InstanceID(ours), to, migrate.ExportOptions{})
		require.NoError(t, err)
		require.Equal(t, 2, result.Counts["lid_pair"])
		theirs, err := container(to).GetFirstDevice(ctx)
		require.NoError(t, err)
		after := answersOf(t, theirs, []string{peer})
		require.Equal(t, []uint32{4, 7}, after.NextPreKeys, "ids do not come back")
		require.NotEqual(t, before.Sessions, after.Sessions, "it was moved to its ceiling")
		before.NextPreKeys, before.Sessions = after.NextPreKeys, after.Sessions
		delete(before.PreKeys, 6)
		delete(after.PreKeys, 7) // made for the counter
		require.Equal(t, before, after)
		require.Equal(t, "exported", scalar[string](t, dsn, `SELECT event FROM whatsmeow.audit WHERE detail = 'to sqlstore'`))
	})
}

// Sqlstore has no word for a chain that is abandoned, so such sessions and sender keys do not go there.
func TestP4AbandonedChainsAreNotHandedOver(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, of migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(of))
		k.converse()
		k.logout()
		c := open(t, pgtest.Open(t))
		_, err := migrate.FromSqlstore(ctx, c, of, migrate.Options{})
		require.NoError(t, err)
		k.login(container(of)) // so the import is older than what left
		k.converse()
		k.logout()
		result, err := migrate.ToSqlstore(ctx, c, instanceOf(t, c), of, migrate.ExportOptions{Replace: true})
		require.NoError(t, err)
		require.NotEmpty(t, result.Skipped)
		require.Zero(t, result.Counts["session"])
		k.login(container(of))
		k.converse()
		k.judge()
	})
}
