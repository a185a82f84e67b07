package audit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

// left lists the tables in which a text is found, with the rows.
func left(t *testing.T, conn *pgx.Conn, text string) (found []string) {
	t.Helper()
	rows, err := conn.Query(ctx, `SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'whatsmeow' AND relkind = 'r'`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(tables), 12)
	for _, table := range tables {
		rows, err = conn.Query(ctx, fmt.Sprintf(`SELECT t::text FROM %s AS t WHERE position($1 IN t::text) > 0`, table), text)
		require.NoError(t, err)
		some, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		for _, row := range some {
			found = append(found, table+": "+row)
		}
	}
	return found
}

// Of an instance that is erased nothing is left in any table, but the word that it was, and the trail is whole.
func TestP9NothingIsLeftOfAnInstanceThatWasErased(t *testing.T) {
	t.Parallel()
	dsn, marks := pgtest.Open(t), filepath.Join(t.TempDir(), "marks")
	witness, err := filewitness.Open(marks)
	require.NoError(t, err)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Audit: pgstore.AuditAll, Witness: witness})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(ctx)) })
	stays, err := c.Instance(ctx, "stays")
	require.NoError(t, err)
	signaltest.FillPairing(stays)
	require.NoError(t, stays.Save(ctx))

	peer := signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	var d *store.Device
	var heads []map[string]audit.Head
	for range 2 { // it comes back, and is erased once more
		d, err = c.Instance(ctx, "shop-42")
		require.NoError(t, err)
		signaltest.FillPairing(d)
		d.LID = types.JID{User: d.ID.User + "99", Device: d.ID.Device, Server: types.HiddenUserServer}
		require.NoError(t, d.Save(ctx))
		signaltest.Meet(t, signaltest.NewPeer(d), peer)
		require.NoError(t, c.Flush(ctx))
		_, err = conn.Exec(ctx, `INSERT INTO whatsmeow.set_aside (instance_id, key_type, key_id, data, reason) VALUES ('shop-42', 'session', $1, '{}', 'test')`, d.ID.User)
		require.NoError(t, err)
		report, err := audit.Verify(ctx, conn, audit.Options{})
		require.NoError(t, err)
		require.Empty(t, report.Breaks)
		heads = append(heads, report.Heads)
		require.NotEmpty(t, left(t, conn, peer.Address().User))
		require.NotEmpty(t, left(t, conn, d.ID.User))
		require.NotEmpty(t, left(t, conn, d.LID.User))

		require.NoError(t, c.Erase(ctx, "shop-42"))
		for _, text := range []string{peer.Address().User, d.ID.User, d.LID.User} {
			require.Empty(t, left(t, conn, text))
		}
		for _, row := range left(t, conn, "shop-42") {
			require.True(t, strings.Contains(row, ",erased,") || strings.HasPrefix(row, "whatsmeow.audit_heads: ") || strings.HasPrefix(row, "whatsmeow.audit_anchors: "), row)
		}
		written, err := os.ReadFile(marks)
		require.NoError(t, err)
		require.NotContains(t, string(written), "shop-42")
		require.ErrorIs(t, d.NCTSalt.PutNCTSalt(ctx, []byte{1}), pgstore.ErrReleased)
	}
	for _, kept := range append(heads, nil) {
		report, err := audit.Verify(ctx, conn, audit.Options{Heads: kept})
		require.NoError(t, err)
		require.Empty(t, report.Breaks)
		require.Equal(t, []string{"shop-42"}, report.Erased)
	}
	require.NoError(t, c.Erase(ctx, "shop-42"), "it is gone")
	require.ErrorIs(t, c.Erase(ctx, "never there"), pgstore.ErrNoInstance)
	devices, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, devices, 1)
}
