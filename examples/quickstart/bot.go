package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// bot is the process that is killed. But for the line with Attach it is like any real bot.
func bot(ctx context.Context) (err error) {
	var settings botSettings
	if err = json.Unmarshal([]byte(os.Getenv(botEnv)), &settings); err != nil {
		return err
	}
	store, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: settings.DSN, Schema: schema, DurableAcks: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }() //nolint:contextcheck // also after Ctrl-C
	device, err := store.GetFirstDevice(ctx)
	if err != nil {
		return err
	}
	client := whatsmeow.NewClient(device, nil)
	client.EnableDecryptedEventBuffer = true // with DurableAcks: no message whose handler returned is lost
	client.SynchronousAck = true             // nothing is acknowledged before its handler has returned
	client.UseRetryMessageStore = true       // who could not read an answer may ask for it again, after a restart too
	if err = settings.Endpoint.Attach(client); err != nil {
		return err
	}
	client.AddEventHandler(func(evt any) {
		switch evt := evt.(type) {
		case *events.QR:
			fmt.Println(evt.Codes[0])
		case *events.Message:
			if err := answer(ctx, client, evt); err != nil {
				fmt.Fprintln(os.Stderr, "quickstart: answering:", err)
			}
		}
	})
	if err = client.ConnectContext(ctx); err != nil {
		return err
	}
	defer client.Disconnect()
	_, err = io.Copy(io.Discard, os.Stdin) // until the other process says so, or is gone
	return err
}

func answer(ctx context.Context, client *whatsmeow.Client, evt *events.Message) (err error) {
	text := evt.Message.GetConversation()
	if evt.Info.IsFromMe || text == "" {
		return nil
	}
	for range 10 {
		_, err = client.SendMessage(ctx, evt.Info.Chat, waserver.Conversation("You said: "+text))
		if !errors.Is(err, pgstore.ErrMessageKeyUsed) {
			break
		}
		// Another send to this chat has used the message key meanwhile. That is rare, and nothing has left: send again.
	}
	return err
}
