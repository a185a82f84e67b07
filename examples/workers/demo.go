package main

// The demo: a stand-in for WhatsApp's servers, a PostgreSQL, devices that are paired, contacts who write to them, and workers to which
// something happens every few seconds. Each worker is this program again, in a process of its own.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/internal/standin"
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
	setting, err := standin.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setting.Close(ctx)) }()
	s := &stage{dsn: setting.DSN, server: setting.Server}
	if err = s.pair(ctx); err != nil {
		return err
	}
	if s.conn, err = pgx.Connect(ctx, setting.DSN); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.conn.Close(context.WithoutCancel(ctx))) }()
	return s.play(ctx)
}

// demoWorker is a worker that ends with the demo, too.
func demoWorker(ctx context.Context, dsn string) error {
	return standin.Play(ctx, *endpoint, func(ctx context.Context, server waserver.Endpoint) error {
		return work(ctx, dsn, waLog.Noop, standin.Connect(server))
	})
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
		if err = link(ctx, store, waLog.Noop, standin.Connect(s.server.Endpoint()), scan); err != nil {
			return err
		}
		s.accounts = append(s.accounts, account)
		s.contacts = append(s.contacts, s.server.NewContact(waserver.ContactConfig{}))
	}
	fmt.Printf("%d phones have scanned a code each.\n", devices)
	return nil
}
