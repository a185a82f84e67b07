package pgstore_test

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// open returns a container on a new database, and its DSN to open others.
func open(t testing.TB, edit ...func(*pgstore.Config)) (*pgstore.Container, string) {
	t.Helper()
	dsn := pgtest.Open(t)
	return reopen(t, dsn, edit...), dsn
}

func reopen(t testing.TB, dsn string, edit ...func(*pgstore.Config)) *pgstore.Container {
	t.Helper()
	cfg := pgstore.Config{DSN: dsn} // or a Pool that edit sets
	for _, f := range edit {
		f(&cfg)
	}
	c, err := pgstore.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// pair gives a fresh device what pairing would and saves it.
func pair(t testing.TB, d *store.Device) *store.Device {
	t.Helper()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(context.Background()))
	return d
}

// scalar runs a query with one value on a connection of its own.
func scalar[T any](t testing.TB, dsn, query string, args ...any) (v T) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	require.NoError(t, conn.QueryRow(context.Background(), query, args...).Scan(&v))
	return v
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
