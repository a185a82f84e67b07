package pgstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	goosedb "github.com/pressly/goose/v3/database"
)

// schemaVersion is the newest migration that this version of the library knows. A migration's
// row in schema_info says from which library schema version on the migrated schema may be used.
const schemaVersion = 8

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrationPoll is how often a process that waits for another one's migration looks again.
const migrationPoll = 50 * time.Millisecond

// Upgrade brings the schema up to date. Any number of processes may call it at once: one migrates, the
// others wait. A schema that is newer than the library is left alone if it says that it may be used, else the
// error is [ErrSchemaTooNew].
//
//  1. If the schema is current, there is nothing to do and no right to create anything is needed.
//  2. Try the lock. It is an advisory one that a transaction holds, since PgBouncer hands sessions around;
//     and those who do not get it let go of their connection before they try again, since the one who has it
//     needs another.
//  3. Migrate, each migration in a transaction of its own.
func (c *Container) Upgrade(ctx context.Context) error {
	if c.closed() {
		return ErrClosed
	}
	for {
		current, err := c.schemaCurrent(ctx)
		if err != nil || current {
			return err
		}
		if c.cfg.SkipMigrations {
			return fmt.Errorf("%w (schema %s, wanted version %d)", ErrSchemaMissing, c.cfg.Schema, schemaVersion)
		}
		if err = c.tryMigrate(ctx); err != nil {
			return fmt.Errorf("pgstore: migrating schema %s: %w", c.cfg.Schema, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pgstore: migrating schema %s: %w", c.cfg.Schema, context.Cause(ctx))
		case <-time.After(migrationPoll):
		}
	}
}

// tryMigrate migrates if nobody else does.
func (c *Container) tryMigrate(ctx context.Context) error {
	return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		var mine bool
		err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))`, pgx.QueryExecModeExec, "pgstore migrate "+c.cfg.Schema).Scan(&mine)
		if err != nil || !mine {
			return err
		}
		return c.migrate(ctx)
	})
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

// migrate runs what goose finds missing, on connections of its own: it needs one while the lock holds another.
func (c *Container) migrate(ctx context.Context) error {
	pool := c.pool.Config()
	conn := pool.ConnConfig.Copy()
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statements: PgBouncer
	var options []stdlib.OptionOpenDB
	if pool.BeforeConnect != nil {
		options = append(options, stdlib.OptionBeforeConnect(pool.BeforeConnect))
	}
	if pool.AfterConnect != nil {
		options = append(options, stdlib.OptionAfterConnect(pool.AfterConnect))
	}
	db := stdlib.OpenDB(*conn, options...)
	defer func() { _ = db.Close() }()
	var exists bool
	if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, c.cfg.Schema).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if _, err := db.ExecContext(ctx, c.sql(`CREATE SCHEMA IF NOT EXISTS {schema}`)); err != nil {
			return err
		}
	}
	steps, err := c.migrations()
	if err != nil {
		return err
	}
	versions, err := goosedb.NewStore(goosedb.DialectPostgres, c.sql(`{schema}.goose_version`))
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectCustom, db, nil, goose.WithGoMigrations(steps...),
		goose.WithStore(versionTable{versions}), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// versionTable is where goose notes what it has done. Its name is quoted, since a schema may be called select, and goose would look for a table
// whose name has the quotes in it.
type versionTable struct{ goosedb.Store }

// TableExists is what goose asks before it makes the table.
func (v versionTable) TableExists(ctx context.Context, db goosedb.DBTxConn) (exists bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT to_regclass('`+v.Tablename()+`') IS NOT NULL`).Scan(&exists)
	return exists, err
}

// migrations are the embedded files, 00001_name.sql and so on, with the schema's name filled in.
func (c *Container) migrations() ([]*goose.Migration, error) {
	known, err := c.knownMigrations()
	if err != nil {
		return nil, err
	}
	steps := make([]*goose.Migration, len(known))
	for i, m := range known {
		steps[i] = goose.NewGoMigration(int64(m.Version), &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, m.SQL, pgx.QueryExecModeSimpleProtocol)
			return err
		}}, nil)
	}
	return steps, nil
}

// sql fills what the configuration says into a statement.
func (c *Container) sql(statement string) string { return c.fill.Replace(statement) }

// filler is what sql replaces.
func (cfg Config) filler() *strings.Replacer {
	durable := `CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END`
	if cfg.SynchronousCommit != "" {
		durable = "'" + cfg.SynchronousCommit + "'"
	}
	audited, audits := "", ""
	if cfg.Audit == AuditAll {
		audited, audits = strings.ReplaceAll(auditedSegments, "{schema}", `"`+cfg.Schema+`"`), ` || (SELECT count(n) FROM audited)`
	}
	lanes, keyed, opened := plainLanes, "", plainOpened
	if cfg.Encryption != nil {
		lanes, keyed, opened = keyedLanes, strings.ReplaceAll(keyedLane, "{schema}", `"`+cfg.Schema+`"`), ""
	}
	return strings.NewReplacer("{schema}", `"`+cfg.Schema+`"`, "{durable}", durable, "{audited}", audited, "{audits}", audits,
		"{lanes}", lanes, "{keyed}", keyed, "{opened}", strings.ReplaceAll(opened, "{schema}", `"`+cfg.Schema+`"`))
}
