package pgstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// schemaVersion is the newest migration that this version of the library knows. A migration's
// row in schema_info says from which library schema version on the migrated schema may be used.
const schemaVersion = 1

//go:embed migrations/*.sql
var migrations embed.FS

// Upgrade brings the schema up to date. Any number of processes may call it at once: one
// migrates, the others wait. A schema that is newer than the library is left alone if it
// says that it may be used, else the error is [ErrSchemaTooNew].
//
// The lock is an advisory one held by a transaction, since PgBouncer hands sessions around.
func (c *Container) Upgrade(ctx context.Context) error {
	current, err := c.schemaCurrent(ctx)
	if err != nil || current {
		return err
	}
	if c.cfg.SkipMigrations {
		return fmt.Errorf("%w (schema %s, wanted version %d)", ErrSchemaMissing, c.cfg.Schema, schemaVersion)
	}
	err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, pgx.QueryExecModeExec, "pgstore migrate "+c.cfg.Schema); err != nil {
			return err
		}
		current, err := c.schemaCurrent(ctx)
		if err != nil || current {
			return err
		}
		return c.migrate(ctx)
	})
	if err != nil {
		return fmt.Errorf("pgstore: migrating schema %s: %w", c.cfg.Schema, err)
	}
	return nil
}

// schemaCurrent says whether the schema may be used as it is.
func (c *Container) schemaCurrent(ctx context.Context) (bool, error) {
	var version, usableFrom int
	err := c.pool.QueryRow(ctx, c.sql(`SELECT version, usable_from FROM {schema}.schema_info ORDER BY version DESC LIMIT 1`), pgx.QueryExecModeExec).
		Scan(&version, &usableFrom)
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000"): // no such table, no such schema
		return false, nil
	case err != nil:
		return false, fmt.Errorf("pgstore: reading schema version: %w", err)
	case version > schemaVersion && usableFrom > schemaVersion:
		return false, fmt.Errorf("%w: it is at version %d and needs a library that knows version %d, this one knows %d", ErrSchemaTooNew, version, usableFrom, schemaVersion)
	}
	return version >= schemaVersion, nil
}

func (c *Container) migrate(ctx context.Context) error {
	var exists bool
	if err := c.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, pgx.QueryExecModeExec, c.cfg.Schema).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if _, err := c.pool.Exec(ctx, c.sql(`CREATE SCHEMA IF NOT EXISTS {schema}`), pgx.QueryExecModeExec); err != nil {
			return err
		}
	}
	files, err := c.migrationFiles()
	if err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(c.pool)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(c.cfg.Schema+".goose_version"), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// migrationFiles are the embedded ones with the schema's name filled in.
func (c *Container) migrationFiles() (fs.FS, error) {
	files := make(fstest.MapFS)
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		data, err := fs.ReadFile(migrations, name)
		if err != nil {
			return nil, err
		}
		files[strings.TrimPrefix(name, "migrations/")] = &fstest.MapFile{Data: []byte(c.sql(string(data)))}
	}
	return files, nil
}

// sql fills the schema's name into a statement.
func (c *Container) sql(statement string) string {
	return strings.ReplaceAll(statement, "{schema}", c.schema)
}
