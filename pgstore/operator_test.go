package pgstore_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Who heals by hand has no message key come back, as after a database that went back, and the device talks on.
func TestP4HealedByHandNoChainIsSentOnAgain(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	theirs := signaltest.NewPeer(signaltest.NewMemoryPhone(c.NewDevice()))
	signaltest.Meet(t, theirs, signaltest.NewPeer(d))
	id := pgstore.InstanceID(d)
	require.NoError(t, c.Heal(ctx, id))
	_, err := d.Sessions.GetSession(ctx, theirs.Address().SignalAddress().String())
	require.ErrorIs(t, err, pgstore.ErrReleased, "whoever had it has it no more")
	require.True(t, scalar[bool](t, dsn, `SELECT process IS NULL AND clean_at_epoch = epoch FROM whatsmeow.instances`), "it is free and cleanly left")

	next := reopen(t, dsn)
	again, err := next.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.Zero(t, next.Stats().Healed, "it is healed")
	ours := signaltest.NewPeer(again)
	_, err = ours.Send(ctx, []types.JID{theirs.Address()}, []byte("on the old chain"))
	require.Error(t, err, "it is abandoned, so that the client fetches a bundle")
	signaltest.Say(t, theirs, ours, "in")
	signaltest.Say(t, ours, theirs, "out")
	require.ErrorIs(t, c.Heal(ctx, "nobody"), pgstore.ErrNoInstance)
}

// P6: what is healed by hand is taken first, so its owner is told.
func TestP6HealingTakesTheInstanceFromItsOwner(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn})
	require.NoError(t, err)
	defer func() { require.Error(t, c.Close(), "what could not be saved is told") }()
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, reopen(t, dsn).Heal(ctx, pgstore.InstanceID(d)))
	_ = d.Identities.PutIdentity(ctx, "2:0", [32]byte{2}) // the flush tells, if it is not known yet
	require.ErrorIs(t, c.Flush(ctx), pgstore.ErrOwnershipLost)
	require.ErrorIs(t, d.Identities.PutIdentity(ctx, "3:0", [32]byte{3}), pgstore.ErrOwnershipLost)
}

func TestPruneDeletesWhatIsOlderAndNothingElse(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	id := pgstore.InstanceID(d)
	for _, message := range []string{"old", "new"} {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, message, []byte("secret")))
		require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, *d.ID, message, "", []byte("plaintext")))
	}
	require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("plaintext"), time.Now()))
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET updated_at = now() - interval '2 days' WHERE key_type = 'message_secret' AND key_id LIKE '%old'`))

	pruned, err := c.Prune(ctx, id, pgstore.Retention{})
	require.NoError(t, err)
	require.Zero(t, pruned, "nothing is deleted that was not asked for")
	pruned, err = c.Prune(ctx, id, pgstore.Retention{MessageSecrets: 24 * time.Hour, OutgoingEvents: time.Hour, BufferedEvents: time.Hour})
	require.NoError(t, err)
	require.Equal(t, pgstore.Pruned{MessageSecrets: 1}, pruned)
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'message_secret'`), "it is durable")
	for message, there := range map[string]bool{"old": false, "new": true} {
		secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, message)
		require.NoError(t, err)
		require.Equal(t, there, secret != nil, message)
	}
	require.Eventually(t, func() bool {
		pruned, err = c.Prune(ctx, id, pgstore.Retention{OutgoingEvents: time.Nanosecond, BufferedEvents: time.Nanosecond})
		return err == nil && scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type IN ('outgoing_event', 'buffered_event')`) == 0
	}, time.Minute, time.Millisecond)
	_, err = c.Prune(ctx, id, pgstore.Retention{MessageSecrets: -1})
	require.ErrorIs(t, err, pgstore.ErrInvalidInput)
	_, err = c.Prune(ctx, "nobody", pgstore.Retention{MessageSecrets: time.Hour})
	require.ErrorIs(t, err, pgstore.ErrNoInstance)
}

func TestMigrateAloneDecidesNothing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	cfg := pgstore.Config{DSN: dsn, Schema: "select"}
	before, err := pgstore.Migrations(ctx, cfg)
	require.NoError(t, err)
	require.NotEmpty(t, before)
	for i, m := range before {
		require.Equal(t, i+1, m.Version)
		require.False(t, m.Applied)
		require.Contains(t, m.SQL, `"select"`)
	}
	require.NoError(t, pgstore.Migrate(ctx, cfg))
	after, err := pgstore.Migrations(ctx, cfg)
	require.NoError(t, err)
	for _, m := range after {
		require.True(t, m.Applied)
		require.WithinDuration(t, time.Now(), m.AppliedAt, time.Hour)
	}
	require.Zero(t, scalar[int](t, dsn, `SELECT (SELECT count(*) FROM "select".settings) + (SELECT count(*) FROM "select".processes)`))
	reopen(t, dsn, func(cfg *pgstore.Config) {
		cfg.Schema, cfg.Realm, cfg.Takes, cfg.SkipMigrations = "select", "production", pgstore.RespectLease, true
	})
	_, err = pgstore.Migrations(ctx, pgstore.Config{})
	require.ErrorIs(t, err, pgstore.ErrInvalidInput)
}
