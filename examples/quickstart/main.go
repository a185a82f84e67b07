// Quickstart shows without a phone and without a network what pgstore is for. It needs nothing but Go:
//
//	go run ./examples/quickstart
//
// It starts a PostgreSQL of its own (DATABASE_URL names another one, which it leaves as it was) and a stand-in for WhatsApp's
// servers, with an account's phone and a contact, Ada. Then:
//
//  1. A bot is started, a process of its own: the unmodified whatsmeow client on pgstore. It shows a QR code, which the phone
//     scans. bot.go is all of it.
//  2. Ada writes to the bot, which answers. Every message is really encrypted, by Ada too.
//  3. In the middle of it the bot is killed, as a crash or an impatient scheduler would do it. Ada goes on writing.
//  4. The bot is started again. It is the same device, shows no QR code, and answers what it has missed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/mdp/qrterminal/v3"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

const (
	schema    = "pgstore_quickstart"
	half      = 100 // messages before the kill, and as many after it
	killAfter = 50  // answers
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := stage
	if os.Getenv(botEnv) != "" {
		run = bot
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

// stage has everything but the bot.
func stage(ctx context.Context) (err error) {
	database, err := pgtest.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dropSchema(database.DSN), database.Stop()) }() //nolint:contextcheck // also after Ctrl-C
	server, err := waserver.New(waserver.Config{})                                       //nolint:contextcheck // it lives until it is closed
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	account, ada := server.NewAccount(""), server.NewContact(waserver.ContactConfig{Name: "Ada"})
	settings := botSettings{database.DSN, server.Endpoint()}
	fmt.Println("Database:", database.Description)

	first, err := startBot(ctx, settings)
	if err != nil {
		return err
	}
	defer first.kill()
	fmt.Println("The bot is started. It is not paired, so it shows a QR code:")
	code, err := first.qrCode()
	if err != nil {
		return err
	}
	qrterminal.GenerateHalfBlock(code, qrterminal.L, os.Stdout)
	device, err := account.Scan(ctx, code)
	if err != nil {
		return err
	}
	fmt.Printf("The phone has scanned it. The bot is device %s.\n", device.PN())

	if err = write(ctx, ada, account, 1, half); err != nil {
		return err
	}
	if err = first.awaitAnswers(ctx, server, ada, killAfter); err != nil {
		return err
	}
	first.kill()
	fmt.Printf("Ada wrote %d messages. The bot was killed when it had answered %d of them.\n", half, answers(ada))
	if err = write(ctx, ada, account, half+1, 2*half); err != nil {
		return err
	}
	fmt.Printf("Ada wrote %d more, and the bot is started again.\n", half)
	second, err := startBot(ctx, settings)
	if err != nil {
		return err
	}
	defer second.kill()
	if err = second.awaitAnswers(ctx, server, ada, 2*half); err != nil {
		return err
	}
	if err = second.while(ctx, server.WaitIdle); err != nil { // until the bot has acknowledged everything
		return err
	}
	if err = second.stop(); err != nil {
		return err
	}
	return summary(server, ada)
}

// write has Ada write numbered messages to the bot.
func write(ctx context.Context, ada *waserver.Contact, to *waserver.Account, from, through int) error {
	for n := from; n <= through; n++ {
		if _, err := ada.SendText(to.LID(), strconv.Itoa(n)); err != nil { //nolint:contextcheck // it waits for nobody
			return err
		}
	}
	return ctx.Err()
}

// answers is how many messages Ada has had an answer to.
func answers(ada *waserver.Contact) int {
	answered := make(map[string]bool)
	for _, r := range ada.Received() {
		answered[r.Text] = true
	}
	return len(answered)
}

// awaitAnswers waits until Ada has had so many answers, or the bot has ended.
func (b *botProcess) awaitAnswers(ctx context.Context, server *waserver.Server, ada *waserver.Contact, n int) error {
	return b.while(ctx, func(ctx context.Context) error {
		return server.Wait(ctx, func() bool { return answers(ada) >= n })
	})
}

func summary(server *waserver.Server, ada *waserver.Contact) error {
	stats, twice := server.Stats(), len(server.Record().Reused())
	fmt.Println()
	fmt.Println("QR codes:", stats.QRCodes)
	fmt.Printf("Messages to the bot: %d, answered: %d\n", 2*half, answers(ada))
	fmt.Println("Answers that Ada could not read:", len(ada.Lost()))
	fmt.Println("Message keys used twice:", twice)
	if stats.QRCodes != 1 || stats.Logins != 2 || stats.RefusedLogins != 0 || stats.BadIdentities != 0 || len(ada.Lost()) != 0 || twice != 0 {
		return errors.New("that is not what should have happened")
	}
	return nil
}

func dropSchema(dsn string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
	return errors.Join(err, conn.Close(ctx))
}
