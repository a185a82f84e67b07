// Package standin is what the demos of the examples begin with: a database of their own, and a stand-in for WhatsApp's servers. What they start as processes
// of their own ends with them.
package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.mau.fi/whatsmeow"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// Setting is a new database, and a server without anybody on it.
type Setting struct {
	DSN    string
	Server *waserver.Server
	close  []func(context.Context) error // the last one first
}

// Open looks for a PostgreSQL as the tests do, says on standard output which one it is, and makes a database on it. Close it.
func Open(ctx context.Context) (s *Setting, err error) {
	s = new(Setting)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	database, err := pgtest.Start(ctx)
	if err != nil {
		return s, err
	}
	s.close = append(s.close, func(context.Context) error { return database.Stop() })
	fmt.Println("Database:", database.Description)
	dsn, drop, err := database.NewDatabase(ctx)
	if err != nil {
		return s, err
	}
	s.close = append(s.close, drop)
	server, err := waserver.New(waserver.Config{})
	if err != nil {
		return s, err
	}
	s.close = append(s.close, func(context.Context) error { return server.Close() })
	s.DSN, s.Server = dsn, server
	return s, nil
}

// Close ends the server, and drops the database, also when ctx has ended.
func (s *Setting) Close(ctx context.Context) (err error) {
	ctx = context.WithoutCancel(ctx)
	for i := len(s.close) - 1; i >= 0; i-- {
		err = errors.Join(err, s.close[i](ctx))
	}
	s.close = nil
	return err
}

// Connect connects a client to the server.
func Connect(server waserver.Endpoint) func(*whatsmeow.Client, context.Context) error {
	return func(client *whatsmeow.Client, ctx context.Context) error {
		if err := server.Attach(client); err != nil {
			return err
		}
		return client.ConnectContext(ctx)
	}
}

// Play runs what a demo has started as a process of its own, with the server that it was given as JSON, until that returns, or the demo is gone: then standard
// input ends.
func Play(ctx context.Context, server string, run func(context.Context, waserver.Endpoint) error) error {
	var endpoint waserver.Endpoint
	if err := json.Unmarshal([]byte(server), &endpoint); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		defer end()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return run(ctx, endpoint)
}
