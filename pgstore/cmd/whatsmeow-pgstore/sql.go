package main

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// sql fills the schema's name into a statement.
func (db *database) sql(statement string) string {
	return strings.ReplaceAll(statement, "{schema}", db.schema)
}

// collect reads all rows of a query into structs, by position.
func collect[T any](ctx context.Context, db *database, statement string, args ...any) ([]T, error) {
	rows, err := db.Query(ctx, db.sql(statement), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// scalar reads one value.
func scalar[T any](ctx context.Context, db *database, statement string, args ...any) (v T, err error) {
	err = db.QueryRow(ctx, db.sql(statement), args...).Scan(&v)
	return v, err
}
