package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

var endpoint = flag.String("endpoint", "", "with -demo: the first line of a running internal/waserver/cmd/waserver, to talk to that one")

const demoTimeout = 2 * time.Minute // it takes a second

// demo runs the bot against a stand-in server and a PostgreSQL of its own: a simulated phone scans the QR code, and a simulated
// contact writes to the bot.
func demo(ctx context.Context) (err error) {
	if *endpoint != "" {
		return watched(ctx)
	}
	setting, err := standin.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setting.Close(ctx)) }()
	server := setting.Server
	account, ada := server.NewAccount(""), server.NewContact(waserver.ContactConfig{Name: "Ada"})

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, demoTimeout, errors.New("the bot does not answer"))
	defer cancel()
	account.OnLinked(func(d *waserver.Device) {
		fmt.Println("The phone has scanned the code: the bot is device", d.PN())
		end(talk(ctx, server, ada, account))
	})
	err = bot(ctx, setting.DSN, waLog.Noop, func(client *whatsmeow.Client, ctx context.Context) error {
		client.AddEventHandler(func(evt any) {
			if qr, ok := evt.(*events.QR); ok {
				go scan(ctx, account, qr.Codes[0]) // the client has to go on for this to end
			}
		})
		return standin.Connect(server.Endpoint())(client, ctx)
	})
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

func scan(ctx context.Context, account *waserver.Account, code string) {
	if _, err := account.Scan(ctx, code); err != nil {
		fmt.Println("The phone could not scan the code:", err)
	}
}

// watched runs the bot on DATABASE_URL against a server that somebody plays with, who is given the text of the QR code.
func watched(ctx context.Context) error {
	var server waserver.Endpoint
	if err := json.Unmarshal([]byte(*endpoint), &server); err != nil {
		return err
	}
	return bot(ctx, os.Getenv("DATABASE_URL"), waLog.Noop, func(client *whatsmeow.Client, ctx context.Context) error {
		client.AddEventHandler(func(evt any) {
			if qr, ok := evt.(*events.QR); ok {
				fmt.Println(qr.Codes[0])
			}
		})
		if err := server.Attach(client); err != nil {
			return err
		}
		return client.ConnectContext(ctx)
	})
}

// talk has Ada write to the bot and shows what she gets.
func talk(ctx context.Context, server *waserver.Server, ada *waserver.Contact, bot *waserver.Account) error {
	for _, text := range []string{"Hello?", "Is anybody there?", "You are just repeating what I say."} {
		fmt.Println("Ada:", text)
		if _, err := ada.SendText(bot.LID(), text); err != nil { //nolint:contextcheck // it waits for nobody
			return err
		}
		answer, err := ada.WaitReceived(ctx, waserver.Text(text))
		if err != nil {
			return err
		}
		fmt.Println("Bot:", answer.Text)
	}
	return server.WaitIdle(ctx)
}
