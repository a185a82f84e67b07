package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// migrationStatus is one step of the schema.
type migrationStatus struct {
	Version   int        `json:"version"`
	Name      string     `json:"name"` // empty for one that this version does not know
	Applied   bool       `json:"applied"`
	AppliedAt *time.Time `json:"applied_at"`
	SQL       string     `json:"sql,omitempty"` // with --dry-run
}

// migrations is what migrate prints.
type migrations struct {
	Schema     string            `json:"schema"`
	Migrations []migrationStatus `json:"migrations"`
}

func (a *app) migrateCommand() *cobra.Command {
	status := &cobra.Command{
		Use:   "status",
		Short: "Show which migrations the schema has",
		Long: `Shows which migrations the schema has, and which this version of the library would run. It changes nothing.

JSON: schema, migrations[]: version, name, applied, applied_at.`,
		Example: "  whatsmeow-pgstore migrate status\n  whatsmeow-pgstore migrate status --json",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			steps, err := a.migrations(ctx, db)
			if err != nil {
				return err
			}
			return a.printMigrations(steps)
		}),
	}
	var dryRun bool
	up := &cobra.Command{
		Use:   "up",
		Short: "Bring the schema up to date",
		Long: `Brings the schema up to date and does nothing else. Several may do so at once: one migrates, the others wait. Programs need not be stopped, as long as
'migrate status' of their version says that they may use the schema.

With --dry-run it prints the SQL that would run, and changes nothing; besides, goose notes the version of each in its table goose_version.

JSON: schema, migrations[]: version, name, applied, applied_at; those that were run now, or with --dry-run would be, and then with sql.`,
		Example: "  whatsmeow-pgstore migrate up --dry-run | less\n  whatsmeow-pgstore migrate up",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			s, err := db.settings(ctx)
			if err != nil {
				return err
			}
			if err = a.checkRealm(s); err != nil {
				return err
			}
			before, err := a.migrations(ctx, db)
			if err != nil {
				return err
			}
			if dryRun {
				return a.printSQL(before)
			}
			if err = pgstore.Migrate(ctx, pgstore.Config{Pool: db.Pool, Schema: a.schema}); err != nil {
				return err
			}
			after, err := a.migrations(ctx, db)
			if err != nil {
				return err
			}
			var run []pgstore.Migration
			for i, m := range after {
				if m.Applied && !before[i].Applied {
					run = append(run, m)
				}
			}
			if len(run) == 0 && !a.json {
				a.printf("schema %s is up to date\n", a.schema)
				return nil
			}
			return a.printMigrations(run)
		}),
	}
	up.Flags().BoolVar(&dryRun, "dry-run", false, "print the SQL that would run, and run nothing")
	return group("migrate", "Migrate the schema", "Migrates the schema, or shows how far it is.",
		"  whatsmeow-pgstore migrate status\n  whatsmeow-pgstore migrate up --dry-run\n  whatsmeow-pgstore migrate up", up, status)
}

func (a *app) migrations(ctx context.Context, db *database) ([]pgstore.Migration, error) {
	return pgstore.Migrations(ctx, pgstore.Config{Pool: db.Pool, Schema: a.schema})
}

func (a *app) printMigrations(steps []pgstore.Migration) error {
	if a.json {
		return a.printJSON(migrations{a.schema, statuses(steps, false)})
	}
	var rows [][]any
	for _, m := range steps {
		state, name := yellow("pending"), m.Name
		if m.Applied {
			state = green("applied")
			if !m.AppliedAt.IsZero() {
				state += " " + m.AppliedAt.UTC().Format(time.RFC3339)
			}
		}
		if name == "" {
			name = "(of a newer version)"
		}
		rows = append(rows, []any{m.Version, name, state})
	}
	columns(a.out, []any{"version", "name", "state"}, rows)
	return nil
}

// printSQL prints what would run.
func (a *app) printSQL(steps []pgstore.Migration) error {
	var pending []pgstore.Migration
	for _, m := range steps {
		if !m.Applied {
			pending = append(pending, m)
		}
	}
	if a.json {
		return a.printJSON(migrations{a.schema, statuses(pending, true)})
	}
	if len(pending) == 0 {
		a.printf("-- schema %s is up to date\n", a.schema)
		return nil
	}
	if len(pending) == len(steps) {
		a.printf("CREATE SCHEMA IF NOT EXISTS %q;\n\n", a.schema)
	}
	for _, m := range pending {
		a.printf("-- %s, in one transaction\n%s\n", m.Name, m.SQL)
	}
	return nil
}

func statuses(steps []pgstore.Migration, withSQL bool) []migrationStatus {
	out := make([]migrationStatus, len(steps))
	for i, m := range steps {
		out[i] = migrationStatus{Version: m.Version, Name: m.Name, Applied: m.Applied}
		if !m.AppliedAt.IsZero() {
			out[i].AppliedAt = &m.AppliedAt
		}
		if withSQL {
			out[i].SQL = m.SQL
		}
	}
	return out
}
