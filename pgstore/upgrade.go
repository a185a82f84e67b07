package pgstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"
)

// Migration is one step of the schema.
type Migration struct {
	Version   int
	Name      string    // as 00001_auth_keys
	SQL       string    // what it runs, with the schema's name filled in; empty for one that only a newer library knows
	Applied   bool      // whether the database has it
	AppliedAt time.Time // zero if it has not, or does not say when
}

// Migrations lists the steps of the schema, those included that the database has and this library does not know. It changes nothing, and needs no
// schema to be there. Of the configuration only DSN or Pool, and Schema, count.
func Migrations(ctx context.Context, cfg Config) ([]Migration, error) {
	c, done, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer done()
	known, err := c.knownMigrations()
	if err != nil {
		return nil, fmt.Errorf("pgstore: reading migrations: %w", err)
	}
	rows, err := c.pool.Query(ctx, c.sql(`SELECT s.version, g.tstamp FROM {schema}.schema_info s
		LEFT JOIN (SELECT version_id, max(tstamp) AS tstamp FROM {schema}.goose_version WHERE is_applied GROUP BY version_id) AS g ON g.version_id = s.version
		ORDER BY s.version`), pgx.QueryExecModeExec)
	if err == nil {
		var version int
		var at *time.Time
		_, err = pgx.ForEachRow(rows, []any{&version, &at}, func() error {
			i := slices.IndexFunc(known, func(m Migration) bool { return m.Version == version })
			if i < 0 {
				i, known = len(known), append(known, Migration{Version: version})
			}
			known[i].Applied = true
			if at != nil {
				known[i].AppliedAt = *at
			}
			return nil
		})
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000") { // no such table, no such schema
		return known, nil
	} else if err != nil {
		return nil, fmt.Errorf("pgstore: reading schema version: %w", withoutRows(err))
	}
	return known, nil
}

// Migrate brings the schema up to date and does nothing else: no process registers, and nothing is written down that processes have to agree on. It is for
// who migrates in a step of its own, before processes start with SkipMigrations. As [Container.Upgrade] it may run in several places at once.
// Of the configuration only DSN or Pool, and Schema, count.
func Migrate(ctx context.Context, cfg Config) error {
	c, done, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	return c.Upgrade(ctx)
}

// connect makes a container that is good for nothing but statements, and returns how it ends.
func connect(ctx context.Context, cfg Config) (c *Container, done func(), err error) {
	cfg = Config{DSN: cfg.DSN, Pool: cfg.Pool, Schema: cfg.Schema}.withDefaults()
	if err = cfg.validate(); err != nil {
		return nil, nil, err
	}
	c = &Container{cfg: cfg, fill: cfg.filler(), pool: cfg.Pool}
	if c.pool != nil {
		return c, func() {}, nil
	}
	var pool *pgxpool.Pool
	if pool, err = openPool(ctx, cfg.DSN); err != nil {
		return nil, nil, err
	}
	c.pool = pool
	return c, pool.Close, nil
}

// knownMigrations are those of this version of the library, in order.
func (c *Container) knownMigrations() (known []Migration, err error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, err
		}
		statements, err := fs.ReadFile(migrationFiles, name)
		if err != nil {
			return nil, err
		}
		known = append(known, Migration{Version: int(version), Name: strings.TrimSuffix(path.Base(name), ".sql"), SQL: c.sql(string(statements))})
	}
	return known, nil
}
