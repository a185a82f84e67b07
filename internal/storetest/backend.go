// Package storetest holds what a store for whatsmeow has to answer, as one suite that runs over pgstore and over whatsmeow's own
// sqlstore, and random sequences of calls that both have to answer alike.
package storetest

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Container is what the containers of pgstore and sqlstore have in common.
type Container interface {
	store.DeviceContainer
	NewDevice() *store.Device
	GetDevice(ctx context.Context, jid types.JID) (*store.Device, error)
	GetFirstDevice(ctx context.Context) (*store.Device, error)
	GetAllDevices(ctx context.Context) ([]*store.Device, error)
	Upgrade(ctx context.Context) error
	Close() error
}

// Backend is a store under test.
type Backend struct {
	Name string
	Ours bool // pgstore, which may differ from sqlstore as [Differences] says
	// Database makes an empty database and returns its address.
	Database func(t testing.TB) string
	// Open opens a container on it.
	Open func(t testing.TB, address string) Container
}

// Pgstore is pgstore with a configuration of one's own.
func Pgstore(name string, edits ...func(*pgstore.Config)) Backend {
	return Backend{
		Name: name, Ours: true,
		Database: pgtest.Open,
		Open: func(t testing.TB, address string) Container {
			cfg := pgstore.Config{DSN: address}
			for _, edit := range edits {
				edit(&cfg)
			}
			c, err := pgstore.NewWithConfig(context.Background(), cfg)
			require.NoError(t, err)
			return c
		},
	}
}

// SqlstorePostgres is sqlstore on PostgreSQL.
func SqlstorePostgres() Backend {
	return Backend{Name: "sqlstore on PostgreSQL", Database: pgtest.Open, Open: sqlstoreOn("pgx", "postgres")}
}

// SqlstoreSQLite is sqlstore on SQLite.
func SqlstoreSQLite() Backend {
	return Backend{
		Name: "sqlstore on SQLite",
		Database: func(t testing.TB) string {
			return "file:" + filepath.Join(t.TempDir(), "store.db") + "?_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(off)&_pragma=busy_timeout(10000)"
		},
		Open: sqlstoreOn("sqlite", "sqlite3"),
	}
}

func sqlstoreOn(driver, dialect string) func(testing.TB, string) Container {
	return func(t testing.TB, address string) Container {
		db, err := sql.Open(driver, address)
		require.NoError(t, err)
		c := sqlstore.NewWithDB(db, dialect, nil)
		require.NoError(t, c.Upgrade(context.Background()))
		return c
	}
}

// Subject is a saved device of a backend on a database of its own.
type Subject struct {
	*store.Device
	Backend   Backend
	Container Container
	Address   string // of the database
}

// New makes a database with one saved device.
func New(t testing.TB, b Backend) *Subject {
	t.Helper()
	s := &Subject{Backend: b, Address: b.Database(t)}
	s.Container = b.Open(t, s.Address)
	t.Cleanup(func() { require.NoError(t, s.Container.Close()) })
	s.Device = s.Container.NewDevice()
	signaltest.FillPairing(s.Device)
	require.NoError(t, s.Save(context.Background()))
	return s
}

// Reopen closes the container and opens it and the device again.
func (s *Subject) Reopen(t testing.TB) {
	t.Helper()
	require.NoError(t, s.Container.Close())
	s.Container = s.Backend.Open(t, s.Address)
	d, err := s.Container.GetDevice(context.Background(), *s.ID)
	require.NoError(t, err)
	require.NotNil(t, d)
	s.Device = d
}

// Settle makes what was written durable, so that a store may let go of it.
func (s *Subject) Settle(t testing.TB) {
	t.Helper()
	if c, ok := s.Container.(*pgstore.Container); ok {
		require.NoError(t, c.Flush(context.Background()))
	}
}
