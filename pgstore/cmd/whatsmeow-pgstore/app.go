package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// app is what all commands share: what the flags say, and where output goes.
type app struct {
	dsn, schema, realm string
	wait               time.Duration
	json, verbose      bool

	in        io.Reader
	out, errs io.Writer
}

const (
	defaultWait    = 30 * time.Second
	connectTimeout = 10 * time.Second
	closeTimeout   = 30 * time.Second
)

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// database is a connected pool and the schema in it.
type database struct {
	*pgxpool.Pool
	schema string // quoted
	name   string // as it is
}

// connect opens the database that the flags or the environment name. Statements are not prepared, since there may be a PgBouncer in between. Close it.
func (a *app) connect(ctx context.Context) (*database, error) {
	if a.dsn == "" {
		a.dsn = os.Getenv("PGSTORE_DSN")
	}
	if a.dsn == "" {
		return nil, usage("no database is named: set PGSTORE_DSN, or --dsn")
	}
	cfg, err := pgxpool.ParseConfig(a.dsn)
	if err != nil { // its text quotes the DSN
		return nil, usage("what --dsn or PGSTORE_DSN says is no connection string of PostgreSQL")
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = min(connectTimeout, a.wait)
	}
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "whatsmeow-pgstore"
	}
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.MaxConns = max(cfg.MaxConns, 2)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	if err = pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("database %s on %s: %w", cfg.ConnConfig.Database, cfg.ConnConfig.Host, err)
	}
	return &database{pool, pgx.Identifier{a.schema}.Sanitize(), a.schema}, nil
}

// run makes a command of a function that needs the database.
func (a *app) run(fn func(ctx context.Context, db *database, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		db, err := a.connect(cmd.Context())
		if err != nil {
			return ran(err)
		}
		defer db.Close()
		return ran(fn(cmd.Context(), db, args))
	}
}

// settings are what the processes of a database have agreed on.
type settings struct {
	takes pgstore.Takes
	realm string
}

// settings reads them; an older schema, or one that nobody uses yet, has those of the zero Config.
func (db *database) settings(ctx context.Context) (s settings, err error) {
	var takes string
	err = db.QueryRow(ctx, `SELECT takes, realm FROM `+db.schema+`.settings`).Scan(&takes, &s.realm)
	if errors.Is(err, pgx.ErrNoRows) || missing(err) {
		return s, nil
	}
	if takes == "respect_lease" {
		s.takes = pgstore.RespectLease
	}
	return s, err
}

// missing says whether a table, a column or a schema is not there.
func missing(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000" || pgErr.Code == "42703")
}

// checkRealm refuses a database of another realm than --realm says.
func (a *app) checkRealm(s settings) error {
	if a.realm != "" && a.realm != s.realm {
		return refused("the database is of realm %q, and not of %q", s.realm, a.realm)
	}
	return nil
}

// container opens the database as a process that takes instances: from the living only if it is forced. Close it before the database.
func (a *app) container(ctx context.Context, db *database, command string, forced bool) (*pgstore.Container, error) {
	s, err := db.settings(ctx)
	if err != nil {
		return nil, err
	}
	if err = a.checkRealm(s); err != nil {
		return nil, err
	}
	cfg := pgstore.Config{
		Pool: db.Pool, Schema: a.schema, SkipMigrations: true, Takes: s.takes, Realm: s.realm,
		Owner: owner(command), Logger: a.logger(),
	}
	if !forced {
		cfg.TakeWait = 100 * a.wait // so that the context ends first
	}
	// Where the trail tells of each key, it is to tell of what is done here, too.
	var all bool
	if err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+db.schema+`.audit_keys)`).Scan(&all); err == nil && all {
		cfg.Audit = pgstore.AuditAll
	}
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	return pgstore.NewWithConfig(ctx, cfg)
}

// closed ends a container, also when the command has been interrupted: it lets go of what it has taken.
func closed(ctx context.Context, c *pgstore.Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return c.Shutdown(ctx)
}

// owner is how this process is called in the instances table.
func owner(command string) string {
	host, _ := os.Hostname()
	return fmt.Sprintf("whatsmeow-pgstore %s on %s/%d", command, host, os.Getpid())
}

func (a *app) logger() *slog.Logger {
	if a.verbose {
		return slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(a.errs, &slog.HandlerOptions{Level: slog.LevelError}))
}
