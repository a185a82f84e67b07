package main

// The demo: a stand-in for WhatsApp's servers, a PostgreSQL, devices that are paired, contacts who write to them, and workers to which
// something happens every few seconds. Each worker is this program again, in a process of its own.

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const (
	devices   = 12
	workers   = 3
	demoLease = 2 * time.Second
	pace      = 4 * time.Second        // from one happening to the next; a worker that is frozen for so long counts as dead
	rhythm    = 100 * time.Millisecond // of what contacts write
	patience  = 2 * time.Minute        // until all is answered
)

var endpoint = flag.String("endpoint", "", "with -demo: be one of its workers, on this server")

// demo sets the stage, or is a worker on it.
func demo(ctx context.Context, dsn string) (err error) {
	if *endpoint != "" {
		return demoWorker(ctx, dsn)
	}
	database, err := pgtest.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop()) }()
	fmt.Println("Database:", database.Description)
	dsn, drop, err := database.NewDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	server, err := waserver.New(waserver.Config{}) //nolint:contextcheck // it lives until it is closed
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	s := &stage{dsn: dsn, server: server}
	if err = s.pair(ctx); err != nil {
		return err
	}
	if s.conn, err = pgx.Connect(ctx, dsn); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.conn.Close(context.WithoutCancel(ctx))) }()
	return s.play(ctx)
}

// attached connects a client to the stand-in.
func attached(server waserver.Endpoint) func(*whatsmeow.Client, context.Context) error {
	return func(client *whatsmeow.Client, ctx context.Context) error {
		if err := server.Attach(client); err != nil {
			return err
		}
		return client.ConnectContext(ctx)
	}
}

// demoWorker is a worker that ends with the demo, too.
func demoWorker(ctx context.Context, dsn string) error {
	var server waserver.Endpoint
	if err := json.Unmarshal([]byte(*endpoint), &server); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		defer end()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return work(ctx, dsn, waLog.Noop, attached(server))
}

// pair links the devices, each with an account of its own, and lets go of them.
func (s *stage) pair(ctx context.Context) (err error) {
	store, err := pgstore.New(ctx, s.dsn, waLog.Noop)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }() //nolint:contextcheck // also after Ctrl-C
	for range devices {
		account := s.server.NewAccount("")
		scan := func(code string) {
			go func() { // the client has to go on for this to end
				if _, err := account.Scan(ctx, code); err != nil {
					fmt.Println("A phone could not scan the code:", err)
				}
			}()
		}
		if err = link(ctx, store, waLog.Noop, attached(s.server.Endpoint()), scan); err != nil {
			return err
		}
		s.accounts = append(s.accounts, account)
		s.contacts = append(s.contacts, s.server.NewContact(waserver.ContactConfig{}))
	}
	fmt.Printf("%d phones have scanned a code each.\n", devices)
	return nil
}
