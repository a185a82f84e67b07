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
	if err = settings.Endpoint.Attach(client); err != nil {
		return err
	}
	client.AddEventHandler(func(evt any) {
		switch evt := evt.(type) {
		case *events.QR:
			fmt.Println(evt.Codes[0])
		case *events.Message:
			answer(ctx, client, evt)
		}
	})
	if err = client.ConnectContext(ctx); err != nil {
		return err
	}
	defer client.Disconnect()
	_, err = io.Copy(io.Discard, os.Stdin) // until the other process says so, or is gone
	return err
}

func answer(ctx context.Context, client *whatsmeow.Client, evt *events.Message) {
	text := evt.Message.GetConversation()
	if evt.Info.IsFromMe || text == "" {
		return
	}
	if _, err := client.SendMessage(ctx, evt.Info.Chat, waserver.Conversation("You said: "+text)); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart: answering:", err)
	}
}
