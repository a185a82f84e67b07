package pgstore_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// requireRefused says that an error keeps the client from acknowledging, and that nothing of a row comes with it.
func requireRefused(t *testing.T, err error, call string) {
	t.Helper()
	require.ErrorIs(t, err, pgstore.ErrRefused, call)
	require.ErrorIs(t, err, context.Canceled, call)
	var pgErr *pgconn.PgError
	require.NotErrorAs(t, err, &pgErr, "%s: Detail may quote a row", call)
	require.NotContains(t, err.Error(), "flush", call)
}

// A read that the database refuses for good is as little the message's fault as one that it does not answer.
func TestP8AReadThatIsRefusedForGoodDoesNotLetTheClientAcknowledge(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]string{
		"no table":  `ALTER TABLE whatsmeow.auth_keys RENAME TO gone; ALTER TABLE whatsmeow.lid_map RENAME TO gone_too`,
		"no right":  `REVOKE SELECT ON whatsmeow.auth_keys, whatsmeow.lid_map FROM %s`,
		"no column": `ALTER TABLE whatsmeow.auth_keys RENAME data TO gone; ALTER TABLE whatsmeow.lid_map RENAME pn TO gone`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			before := reopen(t, dsn) // migrates
			others, named := pair(t, before.NewDevice()), pair(t, before.NewDevice())
			require.NoError(t, before.Close())
			user, asRole := role(t, dsn)
			require.NoError(t, execSQL(t, dsn,
				"GRANT USAGE ON SCHEMA whatsmeow TO "+user,
				"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA whatsmeow TO "+user,
				"GRANT USAGE ON ALL SEQUENCES IN SCHEMA whatsmeow TO "+user))
			c := reopen(t, asRole, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }) // what was put has to be read
			d := pair(t, c.NewDevice())
			group := types.NewJID("1", types.GroupServer)
			require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
			require.NoError(t, d.SenderKeys.PutSenderKey(ctx, "g", "1:0", spoiledSenderKey))
			require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("p"), time.Now()))
			require.NoError(t, c.Flush(ctx))
			var looked *store.Device
			all, err := c.GetAllDevices(ctx)
			require.NoError(t, err)
			for _, one := range all {
				if *one.ID == *named.ID {
					looked = one
				}
			}
			if name == "no right" {
				fault = fmt.Sprintf(fault, user)
			}
			require.NoError(t, execSQL(t, dsn, fault))

			session := func(ctx context.Context) error { _, err := d.Sessions.GetSession(ctx, "1:0"); return err }
			for call, do := range map[string]func() error{
				"GetSession":             func() error { return session(ctx) },
				"GetSession in a txn":    func() error { return d.EventBuffer.DoDecryptionTxn(ctx, session) },
				"GetManySessions":        func() error { _, err := d.Sessions.GetManySessions(ctx, []string{"1:0"}); return err },
				"GetSenderKey":           func() error { _, err := d.SenderKeys.GetSenderKey(ctx, "g", "1:0"); return err },
				"GetBufferedEvent":       func() error { _, err := d.EventBuffer.GetBufferedEvent(ctx, [32]byte{1}); return err },
				"GetMessageSecret":       func() error { _, _, err := d.MsgSecrets.GetMessageSecret(ctx, group, group, "A"); return err },
				"GetAppStateMutationMAC": func() error { _, err := d.AppState.GetAppStateMutationMAC(ctx, "n", nil); return err },
				"GetLIDForPN": func() error {
					_, err := c.LIDMap.GetLIDForPN(ctx, types.NewJID("1", types.DefaultUserServer))
					return err
				},
				"GetContact, looking": func() error { _, err := looked.Contacts.GetContact(ctx, group); return err },
				"GetSession, taking":  func() error { _, err := looked.Sessions.GetSession(ctx, "1:0"); return err },
				"GetDevice":           func() error { _, err := c.GetDevice(ctx, *others.ID); return err },
				"GetAllDevices":       func() error { _, err := c.GetAllDevices(ctx); return err },
			} {
				requireRefused(t, do(), call)
			}
		})
	}
}

// Where a constraint refuses a row, the server's error quotes it.
func TestP12WhatIsRefusedOutsideOfAFlushQuotesNoRow(t *testing.T) {
	t.Parallel()
	t.Run("a pairing", func(t *testing.T) {
		t.Parallel()
		c, dsn := open(t)
		require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.auth_keys ADD CHECK (key_type <> 'creds')`))
		d := c.NewDevice()
		signaltest.FillPairing(d)
		requireRefused(t, d.Save(ctx), "Save")
	})
	t.Run("a new LID", func(t *testing.T) {
		t.Parallel()
		c, dsn := open(t)
		d := pair(t, c.NewDevice())
		require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.instances ADD CHECK (lid <> '1@lid')`))
		d.LID = types.NewJID("1", types.HiddenUserServer)
		requireRefused(t, d.Save(ctx), "Save")
	})
	t.Run("a deletion", func(t *testing.T) {
		t.Parallel()
		c, dsn := open(t)
		d := pair(t, c.NewDevice())
		require.NoError(t, execSQL(t, dsn, `CREATE TABLE whatsmeow.mine (id text REFERENCES whatsmeow.instances)`, `INSERT INTO whatsmeow.mine SELECT id FROM whatsmeow.instances`))
		requireRefused(t, d.Delete(ctx), "Delete")
	})
	t.Run("a row set aside", func(t *testing.T) {
		t.Parallel()
		c, dsn := open(t)
		d := pair(t, c.NewDevice())
		require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, spoiledChat, "A", "wa", []byte("plaintext")))
		require.NoError(t, c.Flush(ctx))
		require.NoError(t, execSQL(t, dsn,
			`UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_type = 'outgoing_event'`,
			`ALTER TABLE whatsmeow.set_aside ADD CHECK (key_type <> 'outgoing_event')`))
		_, _, err := d.EventBuffer.GetOutgoingEvent(ctx, spoiledChat, types.EmptyJID, "A")
		requireRefused(t, err, "GetOutgoingEvent")
	})
	t.Run("a conflict", func(t *testing.T) {
		t.Parallel()
		c, _ := open(t)
		d := pair(t, c.NewDevice())
		other, err := c.Instance(ctx, "other")
		require.NoError(t, err)
		signaltest.FillPairing(other)
		other.ID = d.ID
		err = other.Save(ctx)
		require.ErrorIs(t, err, pgstore.ErrDeviceConflict)
		var pgErr *pgconn.PgError
		require.NotErrorAs(t, err, &pgErr)
	})
}
