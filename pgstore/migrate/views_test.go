package migrate_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// sqlstoreTables are those that CreateViews shows.
var sqlstoreTables = []string{
	"whatsmeow_app_state_mutation_macs", "whatsmeow_app_state_sync_keys", "whatsmeow_app_state_version", "whatsmeow_chat_settings", "whatsmeow_contacts",
	"whatsmeow_device", "whatsmeow_event_buffer", "whatsmeow_identity_keys", "whatsmeow_lid_map", "whatsmeow_message_secrets", "whatsmeow_nct_salt",
	"whatsmeow_pre_keys", "whatsmeow_privacy_tokens", "whatsmeow_retry_buffer", "whatsmeow_sender_keys", "whatsmeow_sessions",
}

// The views show what sqlstore itself has in its tables, under the same names and types, and take nothing.
func TestViewsShowWhatSqlstoreWouldHave(t *testing.T) {
	t.Parallel()
	theirDSN := pgtest.Open(t)
	from := backend{"", "pgx", "postgres", func(testing.TB) string { return theirDSN }}.open(t)
	theirs := container(from)
	for range 2 {
		fillDevice(t, theirs.NewDevice(), theirs.NewDevice())
	}
	dsn := pgtest.Open(t)
	c := open(t, dsn)
	_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true, Instance: func(jid types.JID) string { return "of " + jid.User }})
	require.NoError(t, err)
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	require.Error(t, migrate.CreateViews(ctx, conn, "", ""))
	require.Error(t, migrate.CreateViews(ctx, conn, "", "whatsmeow"))
	require.Error(t, migrate.CreateViews(ctx, conn, "elsewhere", "views"))
	for range 2 {
		require.NoError(t, migrate.CreateViews(ctx, conn, "", `sql "store"`))
	}
	_, err = from.DB.ExecContext(ctx, `DELETE FROM whatsmeow_app_state_mutation_macs m USING whatsmeow_app_state_mutation_macs n
		WHERE (m.jid, m.name, m.index_mac)=(n.jid, n.name, n.index_mac) AND m.version<n.version`)
	require.NoError(t, err)
	for _, table := range sqlstoreTables {
		const columns = `SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_name) FROM information_schema.columns WHERE table_schema=$1 AND table_name=$2`
		require.Equal(t, scalar[string](t, theirDSN, columns, "public", table), scalar[string](t, dsn, columns, `sql "store"`, table), table)
		const rows = `SELECT coalesce(jsonb_agg(to_jsonb(r) ORDER BY to_jsonb(r)::text), '[]')::text FROM `
		want := scalar[string](t, theirDSN, rows+table+" AS r")
		require.NotEqual(t, "[]", want, table)
		require.JSONEq(t, want, scalar[string](t, dsn, rows+`"sql ""store""".`+table+" AS r"), table)
		_, err = conn.Exec(ctx, `DELETE FROM "sql ""store""".`+table)
		require.ErrorContains(t, err, "cannot delete from view", table)
	}

	// Sqlstore itself reads through them.
	cfg := conn.Config()
	cfg.RuntimeParams["search_path"] = `"sql ""store"""`
	reader := sqlstore.NewWithDB(stdlib.OpenDB(*cfg), "postgres", nil)
	defer func() { require.NoError(t, reader.Close()) }()
	devices, err := reader.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, devices, 2)

	// Names that need an escape, or cannot be shown.
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	for _, name := range []string{`back\slash|pipe\\p`, "nul\x00", "broken\xff"} {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, chat, chat, name, fill(1, 32)))
		_, _, err = d.Contacts.PutPushName(ctx, types.NewJID(name, types.DefaultUserServer), name)
		require.NoError(t, err)
	}
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, "back\\slash|pipe\\\\p, broken\ufffd, nul", scalar[string](t, dsn,
		`SELECT string_agg(message_id, ', ' ORDER BY message_id COLLATE "C") FROM "sql ""store""".whatsmeow_message_secrets WHERE our_jid=$1`, d.ID.String()))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*)::int FROM "sql ""store""".whatsmeow_contacts WHERE our_jid=$1 AND push_name IS NULL`, d.ID.String()))
}
