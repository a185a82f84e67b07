package migrate_test

import (
	"bytes"
	"testing"

	"filippo.io/age"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// encrypted is a container that reads no row that is not encrypted, with a wrapping key of its own.
func encrypted(t testing.TB) func(*pgstore.Config) {
	t.Helper()
	key, err := encryption.NewKey("a")
	require.NoError(t, err)
	keys, err := encryption.Parse(key)
	require.NoError(t, err)
	with := encryption.New(keys)
	return func(cfg *pgstore.Config) {
		cfg.Encryption, cfg.EncryptionMode, cfg.Audit = with, pgstore.Encrypted, pgstore.AuditAll
	}
}

// What moves in is encrypted from its first row on, and what moves out is not, but for the archive's own encryption.
func TestP12WhatMovesInIsEncryptedBeforeItIsStored(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, of migrate.Sqlstore) {
		theirs := container(of)
		d := theirs.NewDevice()
		peer := fillDevice(t, d, theirs.NewDevice())
		want := answersOf(t, d, []string{peer})
		plain, dsn := pgtest.Open(t), pgtest.Open(t)
		_, err := migrate.FromSqlstore(ctx, open(t, plain), of, migrate.Options{Exact: true})
		require.NoError(t, err)
		var secrets secrettest.Secrets
		secrets.Note(t, plain) // all that must not be seen

		c := open(t, dsn, encrypted(t))
		for _, replace := range []bool{false, false, true} {
			_, err = migrate.FromSqlstore(ctx, c, of, migrate.Options{Exact: true, Replace: replace})
			require.NoError(t, err)
		}
		_, err = c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.NoError(t, c.Erase(ctx, d.ID.String()))
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*)::int FROM whatsmeow.data_keys`))
		_, err = migrate.FromSqlstore(ctx, c, of, migrate.Options{Exact: true})
		require.NoError(t, err)
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*)::int FROM whatsmeow.auth_keys WHERE NOT data ? 'enc'`))
		require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*)::int FROM whatsmeow.data_keys WHERE complete`))
		secrets.RequireNoneIn(t, "the table", scalar[string](t, dsn, `SELECT string_agg(data::text, ' ') FROM whatsmeow.auth_keys`))
		ours, err := c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.Equal(t, want, answersOf(t, ours, []string{peer}))

		// The views show nothing of it.
		conn, err := pgx.Connect(ctx, dsn)
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close(ctx)) }()
		require.NoError(t, migrate.CreateViews(ctx, conn, "", "views"))
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*)::int FROM views.whatsmeow_device`))

		// Into a database with another wrapping key, as a copy and moved, and out to sqlstore.
		identity, other := newIdentity(t), open(t, pgtest.Open(t), encrypted(t))
		for _, move := range []bool{false, true} {
			var file bytes.Buffer
			result, err := migrate.WriteArchive(ctx, c, d.ID.String(), &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{identity.Recipient()}, Move: move})
			require.NoError(t, err)
			require.Empty(t, result.Skipped)
			_, err = migrate.ReadArchive(ctx, other, &file, migrate.ReadArchiveOptions{Identities: []age.Identity{identity}, Exact: move})
			require.NoError(t, err)
		}
		_, err = migrate.ToSqlstore(ctx, other, d.ID.String(), of, migrate.ExportOptions{Replace: true})
		require.NoError(t, err)
		back, err := container(of).GetFirstDevice(ctx)
		require.NoError(t, err)
		got := answersOf(t, back, []string{peer})
		require.NotNil(t, got.Sessions[peer])
		got.Sessions, want.Sessions = nil, nil // it was moved to its ceiling
		delete(got.PreKeys, 0)
		require.Equal(t, want, got)
	})
}

// Who has not the keys can hand nothing over, and burns nothing.
func TestP12AnExportWithoutTheKeysIsRefused(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	keys := encrypted(t)
	c := open(t, dsn, keys)
	d := c.NewDevice()
	fillDevice(t, d, c.NewDevice())
	require.NoError(t, c.Close())
	without := open(t, dsn)
	_, err := migrate.ToSqlstore(ctx, without, d.ID.String(), backends[0].open(t), migrate.ExportOptions{})
	require.ErrorIs(t, err, pgstore.ErrDataKey)
	_, err = migrate.WriteArchive(ctx, without, d.ID.String(), new(bytes.Buffer), migrate.WriteArchiveOptions{Recipients: []age.Recipient{newIdentity(t).Recipient()}})
	require.ErrorIs(t, err, pgstore.ErrDataKey)
	c = open(t, dsn, keys)
	_, err = c.GetFirstDevice(ctx)
	require.NoError(t, err)
	require.Zero(t, c.Stats().Healed)
}
