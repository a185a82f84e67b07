// Workers is a process of which you start as many as you like, on as many machines: they share all devices of a database, each device
// has one client in one of them, and when one comes, goes or dies the others make room or take over. A deploy is SIGTERM to the old
// ones, before or after the new ones are started. Their clients answer every text with the same text.
//
//	export DATABASE_URL=postgres://…
//	go run ./examples/workers -pair      # links a device by QR code; once for each
//	go run ./examples/workers            # in as many terminals as you like
//	go run ./examples/workers -table     # shows who runs what
//
// With -demo it needs nothing and shows all of it, with a stand-in for WhatsApp's servers; that is in demo.go, stage.go and
// process.go, which a real worker leaves out. Pairing is in pair.go, and the table in table.go.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	pairing = flag.Bool("pair", false, "link a device, and end")
	looking = flag.Bool("table", false, "show who runs what")
	playing = flag.Bool("demo", false, "show workers on a stand-in for WhatsApp's servers")
	lease   = flag.Duration("lease", pgstore.DefaultLease, "how long after its last sign of life a worker counts as dead")
	name    = flag.String("name", "", "what the table calls this worker")
)

func main() {
	flag.Parse()
	dsn := os.Getenv("DATABASE_URL")
	if dsn == "" && !*playing {
		fmt.Fprintln(os.Stderr, "set DATABASE_URL to a PostgreSQL, or use -demo")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logger := waLog.Stdout("Worker", "INFO", true)
	var err error
	switch {
	case *playing:
		err = demo(ctx, dsn)
	case *pairing:
		err = pair(ctx, dsn, logger)
	case *looking:
		err = watchTable(ctx, dsn)
	default:
		err = work(ctx, dsn, logger, (*whatsmeow.Client).ConnectContext)
	}
	if err != nil {
		log.Fatal(err) //nolint:gocritic // stop has nothing left to do
	}
}

// worker runs the clients of the instances that this process has.
type worker struct {
	store   *pgstore.Container
	logger  waLog.Logger
	connect func(*whatsmeow.Client, context.Context) error
	clients map[string]*whatsmeow.Client // by instance
	cutOff  chan string                  // instances whose client the server does not want any more
}

// work runs until the context ends. Connect is client.ConnectContext, except in the demo.
func work(ctx context.Context, dsn string, logger waLog.Logger, connect func(*whatsmeow.Client, context.Context) error) (err error) {
	w := &worker{logger: logger, connect: connect, clients: make(map[string]*whatsmeow.Client), cutOff: make(chan string)}
	w.store, err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Log: logger, DurableAcks: true, Lease: *lease, Address: *name})
	if ctx.Err() != nil && err != nil {
		return nil // it is to end before it has begun
	} else if err != nil {
		return err
	}
	defer func() { //nolint:contextcheck // ctx has ended: saves the rest, and lets go of all instances, so that others claim them at once
		for _, client := range w.clients {
			client.Disconnect()
		}
		closeErr := w.store.Close()
		if errors.Is(closeErr, pgstore.ErrOwnershipLost) { // what it had not saved was not acknowledged either: its new owner has got it again
			logger.Warnf("Closing: %v", closeErr)
			closeErr = nil
		}
		err = errors.Join(err, closeErr)
	}()
	changes, err := w.store.Watch(ctx)
	if ctx.Err() != nil && err != nil {
		return nil
	} else if err != nil {
		return err
	}
	for {
		select {
		case change, ok := <-changes:
			if !ok {
				return nil
			}
			w.follow(ctx, change)
		case id := <-w.cutOff:
			w.letGo(ctx, id)
		}
	}
}

// follow does what the store advises. What cannot be done now is told again.
func (w *worker) follow(ctx context.Context, change pgstore.Event) {
	switch change.Kind {
	case pgstore.Claimable:
		devices, err := w.store.Claim(ctx, change.Count)
		if err != nil && ctx.Err() == nil {
			w.logger.Errorf("Claiming: %v", err)
		}
		w.run(ctx, devices)
	case pgstore.Surplus:
		for _, id := range slices.Collect(maps.Keys(w.clients))[:min(change.Count, len(w.clients))] {
			w.letGo(ctx, id)
		}
	case pgstore.Stopped: // most likely another worker has it, because this one seemed to be dead
		w.logger.Warnf("Instance %s has stopped: %v", change.Instance, change.Err)
		if client := w.clients[change.Instance]; client != nil && pgstore.Owned(client.Store) {
			return // it was ours again before we were told
		}
		w.disconnect(change.Instance)
	}
}

// run starts a client for each device.
func (w *worker) run(ctx context.Context, devices []*store.Device) {
	var connecting sync.WaitGroup
	for _, device := range devices {
		id := pgstore.InstanceID(device)
		w.disconnect(id) // if it was ours before, and we were not told yet that it was lost
		client := w.newClient(ctx, id, device)
		w.clients[id] = client
		connecting.Go(func() {
			// Not with ctx: a handshake whose context ends is waited for, 20 seconds, and all instances with it. Disconnect ends the client.
			if err := w.connect(client, context.WithoutCancel(ctx)); err != nil && ctx.Err() == nil {
				w.logger.Errorf("Connecting %s: %v", id, err)
				go w.letGoLater(ctx, id) // somebody claims it again
			}
		})
	}
	connecting.Wait()
}

func (w *worker) newClient(ctx context.Context, id string, device *store.Device) *whatsmeow.Client {
	client := whatsmeow.NewClient(device, w.logger)
	client.EnableDecryptedEventBuffer = true // with DurableAcks: no message whose handler returned is lost
	client.SynchronousAck = true             // nothing is acknowledged before its handler has returned
	client.UseRetryMessageStore = true       // who could not read an answer may ask for it again, wherever this instance is then
	client.InitialAutoReconnect = true       // the first connection is tried again, as every other
	client.AddEventHandlerWithSuccessStatus(func(evt any) bool {
		switch evt := evt.(type) {
		case *events.Message:
			if err := echo(ctx, client, evt); err != nil {
				w.logger.Warnf("Answering for %s: %v", id, err)
				return false // then it is not acknowledged, and comes again, to whoever has the instance by then
			}
		case *events.StreamReplaced: // somebody else has logged in: the new owner, or one that does not know yet that it is none any more
			go w.letGoLater(ctx, id)
		case *events.LoggedOut: // the phone has unlinked the device, which is deleted
			go w.letGoLater(ctx, id)
		}
		return true
	})
	return client
}

// letGoLater is letGo for other goroutines than that of work.
func (w *worker) letGoLater(ctx context.Context, id string) {
	select {
	case w.cutOff <- id:
	case <-ctx.Done():
	}
}

// letGo ends a client and lets go of its instance, if it is still ours: another worker claims it, or this one again.
func (w *worker) letGo(ctx context.Context, id string) {
	w.disconnect(id)
	if err := w.store.Release(ctx, id); err != nil && ctx.Err() == nil {
		w.logger.Warnf("Releasing %s: %v", id, err)
	}
}

func (w *worker) disconnect(id string) {
	if client := w.clients[id]; client != nil {
		client.Disconnect()
		delete(w.clients, id)
	}
}

// echo answers a text with the same text.
func echo(ctx context.Context, client *whatsmeow.Client, msg *events.Message) (err error) {
	text := cmp.Or(msg.Message.GetConversation(), msg.Message.GetExtendedTextMessage().GetText()) // extended: a reply, or with a link
	if text == "" || msg.Info.IsFromMe {
		return nil
	}
	for range 10 {
		_, err = client.SendMessage(ctx, msg.Info.Chat, &waE2E.Message{Conversation: &text})
		if !errors.Is(err, pgstore.ErrMessageKeyUsed) {
			break
		}
		// Another send to this chat has used the message key meanwhile. That is rare, and nothing has left: send again.
	}
	return err
}
