package main

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // what sqlstore's SQLite files are read with

	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// openSqlstore opens what an argument names, or else a variable of the environment: a connection string of PostgreSQL, or a file of SQLite, which must exist if
// it is a source. Close its DB.
func (a *app) openSqlstore(args []string, variable string, source bool) (*migrate.Sqlstore, error) {
	name := os.Getenv(variable)
	if len(args) > 0 {
		name = args[0]
	}
	switch {
	case name == "":
		return nil, usage("no sqlstore is named: say which, or set %s", variable)
	case strings.HasPrefix(name, "postgres://"), strings.HasPrefix(name, "postgresql://"), strings.Contains(name, "dbname="):
		cfg, err := pgx.ParseConfig(name)
		if err != nil { // its text quotes what it says
			return nil, usage("the sqlstore's connection string is none of PostgreSQL")
		}
		return &migrate.Sqlstore{DB: stdlib.OpenDB(*cfg), Dialect: "pgx"}, nil
	}
	path := strings.TrimPrefix(name, "file:")
	path, _, _ = strings.Cut(path, "?")
	if source {
		if _, err := os.Stat(path); err != nil { //nolint:gosec // it is the user who names the file
			return nil, err
		}
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return &migrate.Sqlstore{DB: db, Dialect: "sqlite3"}, nil
}
