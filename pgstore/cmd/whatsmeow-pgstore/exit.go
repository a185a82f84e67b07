package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

const (
	exitFine = iota
	exitFailed
	exitUsage
	exitFound
	exitRefused
	exitAway
)

// exitError is an error that knows its exit code.
type exitError struct {
	code int
	err  error // nil if all has been said
}

// Error implements error.
func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

// Unwrap returns the error itself.
func (e *exitError) Unwrap() error { return e.err }

// errFound ends a command whose report tells what it has found.
var errFound = &exitError{code: exitFound}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func refused(format string, args ...any) error {
	return &exitError{exitRefused, fmt.Errorf(format, args...)}
}

// refusals are errors of the library that say what may not be.
var refusals = []error{pgstore.ErrRealm, pgstore.ErrLeased, pgstore.ErrAlreadyTaken, pgstore.ErrDeviceConflict, migrate.ErrDeviceExists, migrate.ErrArchiveIsCopy}

// ran gives what a command returns its exit code. What has none afterwards comes from cobra, which has found the command line wrong.
func ran(err error) error {
	var known *exitError
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case slices.ContainsFunc(refusals, func(refusal error) bool { return errors.Is(err, refusal) }):
		return &exitError{exitRefused, err}
	case away(err):
		return &exitError{exitAway, err}
	}
	return &exitError{exitFailed, err}
}

func codeOf(err error) int {
	var known *exitError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &known):
		return known.code
	}
	return exitUsage
}

// away says whether an error means that the database was not reached, or takes nothing at the moment.
func away(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return strings.HasPrefix(pgErr.Code, "08") || slices.Contains([]string{"53300", "57P01", "57P02", "57P03"}, pgErr.Code)
	}
	var connect *pgconn.ConnectError
	var network *net.OpError // net.Error is also what is wrong with a file
	return errors.Is(err, pgstore.ErrUnavailable) || errors.As(err, &connect) || errors.As(err, &network) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

// describe is an error for people: one line, without the DSN.
func (a *app) describe(err error) string {
	if err == nil {
		return ""
	}
	text := strings.TrimSpace(err.Error())
	if a.dsn != "" {
		text = strings.ReplaceAll(text, a.dsn, "(the DSN)")
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" {
		text += "; see roles.sql for the rights of each role"
	}
	if errors.Is(err, pgstore.ErrSchemaMissing) {
		text += "; 'whatsmeow-pgstore migrate up' migrates it"
	}
	return strings.Join(strings.Fields(text), " ")
}
