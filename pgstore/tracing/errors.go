package tracing

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// withoutRows leaves out what a server's error may quote of a row: Detail and Where always, and the message where it is about data (class 22).
func withoutRows(err error) error {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return err
	}
	clean := &pgconn.PgError{Severity: said.Severity, Code: said.Code, Message: said.Message}
	if strings.HasPrefix(said.Code, "22") {
		clean.Message = "data exception"
	}
	return clean
}
