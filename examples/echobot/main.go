// Echobot is the smallest real bot: scan the QR code once, and it answers every text with the same text. Start it
// again as often as you like: it does not ask for a scan again.
//
//	DATABASE_URL=postgres://… go run ./examples/echobot
//
// With -demo it needs nothing and talks to a stand-in for WhatsApp's servers; that is in demo.go, which a real bot leaves out.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/mdp/qrterminal/v3"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

func main() {
	withoutPhone := flag.Bool("demo", false, "talk to a stand-in for WhatsApp's servers")
	flag.Parse()
	dsn := os.Getenv("DATABASE_URL")
	if dsn == "" && !*withoutPhone {
		fmt.Fprintln(os.Stderr, "set DATABASE_URL to a PostgreSQL, or use -demo")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *withoutPhone {
		err = demo(ctx)
	} else {
		err = bot(ctx, dsn, waLog.Stdout("Bot", "INFO", true), (*whatsmeow.Client).ConnectContext)
	}
	if err != nil {
		log.Fatal(err) //nolint:gocritic // stop has nothing left to do
	}
}

// bot runs until the context ends or its pairing fails. Connect is client.ConnectContext, except in the demo.
func bot(ctx context.Context, dsn string, logger waLog.Logger, connect func(*whatsmeow.Client, context.Context) error) (err error) {
	store, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Log: logger, DurableAcks: true})
	if err != nil {
		return err
	}
	defer func() { //nolint:contextcheck // after Disconnect, ctx has ended: saves the rest, and says what it could not save
		if closeErr := store.Close(); err == nil {
			err = closeErr
		}
	}()
	device, err := store.GetFirstDevice(ctx)
	if err != nil {
		return err
	}
	client := whatsmeow.NewClient(device, logger)
	client.EnableDecryptedEventBuffer = true // with DurableAcks: no message whose handler returned is lost
	client.SynchronousAck = true             // nothing is acknowledged before its handler has returned
	client.UseRetryMessageStore = true       // who could not read an answer may ask for it again, after a restart too
	client.AddEventHandler(func(evt any) {
		if msg, ok := evt.(*events.Message); ok && !msg.Info.IsFromMe {
			if err := echo(ctx, client, msg); err != nil {
				logger.Errorf("Answering: %v", err)
			}
		}
	})
	unpaired := make(chan error, 1)
	if client.Store.ID == nil { // never paired
		codes, err := client.GetQRChannel(ctx)
		if err != nil {
			return err
		}
		go func() {
			if err := show(codes); err != nil {
				unpaired <- err
			}
		}()
	}
	if err = connect(client, ctx); err != nil {
		return err
	}
	defer client.Disconnect()
	select {
	case <-ctx.Done():
		return nil
	case err = <-unpaired:
		return err
	}
}

// show prints each QR code until one is scanned. Its error says why none was, for example that the time is over.
func show(codes <-chan whatsmeow.QRChannelItem) error {
	for item := range codes {
		switch item.Event {
		case whatsmeow.QRChannelEventCode:
			qrterminal.GenerateHalfBlock(item.Code, qrterminal.L, os.Stdout)
		case whatsmeow.QRChannelSuccess.Event:
		default:
			return fmt.Errorf("pairing has failed: %w", cmp.Or(item.Error, errors.New(item.Event)))
		}
	}
	return nil
}

// echo answers a text with the same text.
func echo(ctx context.Context, client *whatsmeow.Client, msg *events.Message) (err error) {
	text := cmp.Or(msg.Message.GetConversation(), msg.Message.GetExtendedTextMessage().GetText()) // extended: a reply, or with a link
	if text == "" {
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
