package migrate

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed views.sql
var viewStatements string

// Beginner is a *pgxpool.Pool or a *pgx.Conn.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// CreateViews makes views with the names and columns of sqlstore's tables, in a PostgreSQL schema of their own, views, which it makes if it is missing. They show the keys of all instances in
// the schema that this library uses, which is whatsmeow if schema is empty, as they were flushed last, and cannot be written. It may be called again, after an update of this library. A
// program that has no schema in its queries finds them with a search_path. Whoever calls it owns the views; they show secrets, so mind whom you grant them to.
//
// They differ from sqlstore's tables in this: rows that are encrypted ([pgstore.Config].Encryption) are not there; app-state MACs of old versions are not there; what PostgreSQL's text cannot hold is NULL; a name that was set to nothing is NULL; and
// the counter of a session is that of the last flush.
func CreateViews(ctx context.Context, db Beginner, schema, views string) error {
	schema = cmp.Or(schema, "whatsmeow")
	if views == "" || views == schema {
		return errors.New("migrate: the views need a schema of their own")
	}
	fill := strings.NewReplacer("{schema}", pgx.Identifier{schema}.Sanitize(), "{views}", pgx.Identifier{views}.Sanitize())
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fill.Replace(viewStatements), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate: creating views: %w", err)
	}
	return nil
}
