// Echobot is the smallest real bot: scan the QR code once, and it answers every text with the same text. Start it
// again as often as you like: it does not ask for a scan again.
//
//	DATABASE_URL=postgres://… go run ./examples/echobot
//
// With -demo it needs nothing and talks to a stand-in for WhatsApp's servers; that is in demo.go, which a real bot leaves out.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/mdp/qrterminal/v3"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

func main() {
	withoutPhone := flag.Bool("demo", false, "talk to a stand-in for WhatsApp's servers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *withoutPhone {
		err = demo(ctx)
	} else {
		err = bot(ctx, os.Getenv("DATABASE_URL"), waLog.Stdout("Bot", "INFO", true), (*whatsmeow.Client).ConnectContext)
	}
	if err != nil {
		log.Fatal(err) //nolint:gocritic // stop has nothing left to do
	}
}

// bot runs until the context ends. Connect is client.ConnectContext, except in the demo.
func bot(ctx context.Context, dsn string, logger waLog.Logger, connect func(*whatsmeow.Client, context.Context) error) (err error) {
	store, err := pgstore.New(ctx, dsn, logger)
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
	client.EnableDecryptedEventBuffer = true // a crash between decryption and handler loses no message
	client.AddEventHandler(func(evt any) {
		if msg, ok := evt.(*events.Message); ok && !msg.Info.IsFromMe && msg.Message.GetConversation() != "" {
			if _, err := client.SendMessage(ctx, msg.Info.Chat, msg.Message); err != nil {
				logger.Errorf("Answering: %v", err)
			}
		}
	})
	if client.Store.ID == nil { // never paired
		codes, err := client.GetQRChannel(ctx)
		if err != nil {
			return err
		}
		go func() {
			for item := range codes {
				if item.Event == whatsmeow.QRChannelEventCode {
					qrterminal.GenerateHalfBlock(item.Code, qrterminal.L, os.Stdout)
				}
			}
		}()
	}
	if err = connect(client, ctx); err != nil {
		return err
	}
	defer client.Disconnect()
	<-ctx.Done()
	return nil
}
