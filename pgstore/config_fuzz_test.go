package pgstore_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// textField is a field of the configuration that takes text, and what has to be so when New has accepted it and a device is stored.
type textField struct {
	name  string
	seeds []string
	set   func(cfg *pgstore.Config, s string)
	check func(t *testing.T, cfg pgstore.Config, d *store.Device, s string)
}

// shown checks what a view or table says.
func shown(query string) func(*testing.T, pgstore.Config, *store.Device, string) {
	return func(t *testing.T, cfg pgstore.Config, d *store.Device, s string) {
		t.Helper()
		got := scalar[string](t, cfg.DSN, query, d.ID.String())
		if s != "" { // the default
			require.Equal(t, s, got)
		}
	}
}

func anything(*testing.T, pgstore.Config, *store.Device, string) {}

var textFields = []textField{
	{"Owner", []string{`quote'"`}, func(cfg *pgstore.Config, s string) { cfg.Owner = s }, shown(`SELECT owner FROM whatsmeow.instances WHERE id = $1`)},
	{
		"Address",
		[]string{`quote'"`},
		func(cfg *pgstore.Config, s string) { cfg.Address = s },
		shown(`SELECT p.address FROM whatsmeow.processes p JOIN whatsmeow.instances i ON i.process = p.id WHERE i.id = $1`),
	},
	{"Realm", []string{`quote'"`}, func(cfg *pgstore.Config, s string) { cfg.Realm = s }, func(t *testing.T, cfg pgstore.Config, _ *store.Device, s string) {
		require.NoError(t, reopen(t, "", func(again *pgstore.Config) { *again = cfg }).Close())
		cfg.Realm += "x"
		_, err := pgstore.NewWithConfig(ctx, cfg)
		require.ErrorIs(t, err, pgstore.ErrRealm, "%q", s)
	}},
	{"Schema", []string{"select", "pg_catalog", "pg_a", "information_schema", strings.Repeat("n", 63), "{schema}"}, func(cfg *pgstore.Config, s string) { cfg.Schema = s }, func(t *testing.T, cfg pgstore.Config, d *store.Device, s string) {
		if s == "" || s == pgstore.DefaultSchema {
			return
		}
		schema := pgx.Identifier{s}.Sanitize()
		require.Equal(t, 1, scalar[int](t, cfg.DSN, `SELECT count(*) FROM `+schema+`.instances WHERE id = $1`, d.ID.String()))
		require.NoError(t, reopen(t, "", func(again *pgstore.Config) { *again = cfg }).Close())
		require.NoError(t, d.Delete(ctx))
		require.NoError(t, execSQL(t, cfg.DSN, `DROP SCHEMA `+schema+` CASCADE`))
	}},
	{"SynchronousTypes", []string{"session", "creds"}, func(cfg *pgstore.Config, s string) { cfg.SynchronousTypes = []string{"session", s} }, anything},
	{"SynchronousCommit", []string{"on", "off"}, func(cfg *pgstore.Config, s string) { cfg.SynchronousCommit = s }, anything},
}

// Whatever the configuration says is refused by New, naming the field, or can be used.
func FuzzP10AConfigurationIsRefusedOrWorks(f *testing.F) {
	dsn := pgtest.Open(f)
	require.NoError(f, reopen(f, dsn).Close())
	for n, field := range textFields {
		for _, s := range append(field.seeds, "", "nul\x00", "broken\xff", strings.Repeat("n", 2000)) {
			f.Add(uint8(n), s)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, s string) {
		field := textFields[int(n)%len(textFields)]
		require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.settings`)) // the realm of the one before
		cfg := pgstore.Config{DSN: dsn}
		field.set(&cfg, s)
		c, err := pgstore.NewWithConfig(ctx, cfg)
		if err != nil {
			require.ErrorIs(t, err, pgstore.ErrInvalidInput, "%s %q", field.name, s)
			require.ErrorContains(t, err, field.name)
			return
		}
		d := pair(t, c.NewDevice())
		require.NoError(t, d.Sessions.PutSession(ctx, "1:0", []byte("session")))
		require.NoError(t, c.Flush(ctx))
		field.check(t, cfg, d, s)
		require.NoError(t, c.Close())
	})
}

// No error of New gives the password away, whatever else the DSN says.
func FuzzP12ADSNThatDoesNotWorkGivesNoPasswordAway(f *testing.F) {
	for _, s := range []string{"", "nul\x00", "broken\xff", "quote'\"", "?a=b", ":1/db", "%zz", strings.Repeat("n", 2000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ended, cancel := context.WithCancel(ctx)
		cancel() // before anything is dialled
		for _, dsn := range []string{"postgres://ada:hunter2@127.0.0.1" + s, "host=127.0.0.1 user=ada password=hunter2 dbname=" + s, "password=hunter2 " + s} {
			_, err := pgstore.New(ended, dsn, nil)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "hunter2", "%q", dsn)
		}
	})
}
