package migrate_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// A client that talked on sqlstore goes on talking here, without a QR code, with the sessions and the sender key that it had.
func TestP4AClientGoesOnHereWithWhatItHadOnSqlstore(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(from))
		k.converse()
		k.converse()
		k.logout()
		begun := k.chains()

		dsn := pgtest.Open(t)
		c := open(t, dsn)
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
		require.NoError(t, err)
		require.Len(t, results, 1)
		require.True(t, results[0].Exact)
		require.Empty(t, results[0].Skipped)
		require.Positive(t, results[0].Counts["session"])
		require.Positive(t, results[0].Counts["sender_key"])
		require.Positive(t, results[0].Sampled)

		k.login(c)
		k.converse()
		require.Zero(t, c.Stats().Healed)
		require.Equal(t, begun, k.chains(), "nothing was begun anew")
		k.logout()
		require.NoError(t, c.Close())

		// Also after an end of its own.
		c = open(t, dsn)
		k.login(c)
		k.converse()
		k.judge()
	})
}

// Without the word that the client is stopped, no chain of sqlstore is sent on, and everybody reads everything.
func TestP4WithoutTheWordThatCountersAreExactAllChainsAreAbandoned(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(from))
		k.converse()
		k.logout()

		c := open(t, pgtest.Open(t))
		_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{})
		require.NoError(t, err)

		// The source is older than what has left: that is what the word is about.
		k.login(container(from))
		k.converse()
		k.logout()
		begun := k.chains()

		k.login(c)
		k.converse()
		require.EqualValues(t, 1, c.Stats().Healed)
		require.Len(t, k.chains(), len(begun)+2, "both were begun anew")
		k.judge()
	})
}

// Everything that sqlstore keeps answers here as it did there, and is told of.
func TestEverythingThatSqlstoreKeepsIsImported(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		theirs := container(from)
		d := theirs.NewDevice()
		peer := fillDevice(t, d, theirs.NewDevice())
		other := theirs.NewDevice()
		fillDevice(t, other, theirs.NewDevice())
		c := open(t, pgtest.Open(t), func(cfg *pgstore.Config) { cfg.Audit = pgstore.AuditAll })
		var seen []migrate.Progress
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{
			Exact: true, Devices: []types.JID{*d.ID}, Instance: func(jid types.JID) string { return "shop " + jid.User },
			Progress: func(p migrate.Progress) { seen = append(seen, p) },
		})
		require.NoError(t, err)
		require.Len(t, results, 1)
		require.Equal(t, map[string]int{
			"creds": 2, "identity": 2, "session": 1, "pre_key": 4, "sender_key": 1, "app_state_key": 2, "app_state_version": 1, "app_state_mac": 2,
			"contact": 2, "chat_settings": 2, "message_secret": 1, "privacy_token": 2, "nct_salt": 1, "buffered_event": 3, "outgoing_event": 1,
		}, results[0].Counts)
		require.Empty(t, results[0].Skipped)
		require.Equal(t, 3, results[0].LIDPairs, "of both devices, and of the chat")
		require.EqualValues(t, 1006, results[0].NextPreKeyID)
		require.NotEmpty(t, seen)
		require.Equal(t, seen[len(seen)-1].Total, seen[len(seen)-1].Done-1, "all, and the counter")

		devices, err := c.GetAllDevices(ctx)
		require.NoError(t, err)
		require.Len(t, devices, 1)
		require.Equal(t, "shop "+d.ID.User, pgstore.InstanceID(devices[0]))
		require.Equal(t, answersOf(t, d, []string{peer, "2:0"}), answersOf(t, devices[0], []string{peer, "2:0"}))
		require.Equal(t, d.Account.String(), devices[0].Account.String())
		require.Zero(t, c.Stats().Healed)
	})
}

// An import is repeated as often as one likes until somebody has used the instance; then it would take it back.
func TestP4ADeviceThatWasUsedHereIsNotImportedAgain(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		theirs := container(from)
		d := theirs.NewDevice()
		peer := fillDevice(t, d, theirs.NewDevice())
		dsn := pgtest.Open(t)
		c := open(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Hour }) // so that it finds out at its flush and not by itself
		for _, exact := range []bool{false, true, true} {
			results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: exact})
			require.NoError(t, err)
			require.Equal(t, exact, results[0].Exact)
		}
		_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true, Instance: func(types.JID) string { return "other" }})
		require.ErrorIs(t, err, pgstore.ErrDeviceConflict)

		ours, err := c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.Zero(t, c.Stats().Healed, "the last import was exact")
		session, err := ours.Sessions.GetSession(ctx, peer)
		require.NoError(t, err)
		require.NotNil(t, session)
		require.NoError(t, c.Release(ctx, pgstore.InstanceID(ours)))
		_, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
		require.ErrorIs(t, err, pgstore.ErrAlreadyTaken)

		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true, Replace: true})
		require.NoError(t, err)
		require.False(t, results[0].Exact)
		ours, err = c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.EqualValues(t, 1, c.Stats().Healed)
		session, err = ours.Sessions.GetSession(ctx, peer)
		require.NoError(t, err)
		require.Nil(t, session, "its chain is abandoned")

		// It has it now, and is told.
		_, err = migrate.FromSqlstore(ctx, open(t, dsn), from, migrate.Options{Replace: true})
		require.NoError(t, err)
		require.ErrorIs(t, ours.NCTSalt.PutNCTSalt(ctx, fill(1, 16)), pgstore.ErrOwnershipLost)
	})
}
