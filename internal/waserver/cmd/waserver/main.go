// Waserver runs the stand-in server on a loopback port, with an account that has no clients yet and a contact that answers
// everything it is sent, so that a person can watch a client run against it:
//
//	go run ./internal/waserver/cmd/waserver
//
// It prints on its first line the endpoint as JSON, for [waserver.Endpoint] in another process (or, in quotes, for
// go run ./examples/echobot -demo -endpoint). Then it does what it is told
// on standard input, a line each, until that ends:
//
//	2@AbCd…           the account scans this QR code (the text of it)
//	ABCD-1234         the account is told this link code
//	anything else     the contact writes this to the account
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"go.mau.fi/whatsmeow/proto/waE2E"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func main() {
	verbose := flag.Bool("v", false, "log what the server has to say to standard error")
	flag.Parse()
	cfg := waserver.Config{}
	if *verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "waserver:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

// stage is a server and who plays on it.
type stage struct {
	server  *waserver.Server
	account *waserver.Account
	contact *waserver.Contact
	out     io.Writer
}

func run(ctx context.Context, cfg waserver.Config, in io.Reader, out io.Writer) (err error) {
	server, err := waserver.New(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	s := &stage{server, server.NewAccount(""), server.NewContact(waserver.ContactConfig{Name: "Ada"}), out}
	s.contact.Answer(func(r waserver.Received) *waE2E.Message {
		s.say("Ada was sent: %s", r.Text)
		return waserver.Conversation("you said: " + r.Text)
	})
	s.account.OnLinked(func(d *waserver.Device) { s.say("%s is linked", d.PN()) })
	if err = json.NewEncoder(out).Encode(server.Endpoint()); err != nil {
		return err
	}
	s.say("The account is +%s. Paste the text of a QR code or a link code; anything else Ada (+%s) writes to it.",
		s.account.PN().User, s.contact.PN().User)

	lines := make(chan string)
	go func() { // ends with the process, for nothing ends a read of a terminal
		defer close(lines)
		for scanner := bufio.NewScanner(in); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			s.do(ctx, strings.TrimSpace(line))
		case <-ctx.Done():
			return nil
		}
	}
}

// linkCode is what a client shows for a phone to be told.
var linkCode = regexp.MustCompile(`^[1-9A-HJ-NP-TV-Z]{4}-?[1-9A-HJ-NP-TV-Z]{4}$`)

// do does what a line says.
func (s *stage) do(ctx context.Context, line string) {
	var err error
	switch {
	case line == "":
	case strings.Count(line, ",") >= 3 && strings.Contains(line, "2@"):
		_, err = s.account.Scan(ctx, line)
	case linkCode.MatchString(line):
		_, err = s.account.EnterCode(ctx, line)
	default:
		_, err = s.contact.SendText(s.account.LID(), line)
	}
	if err != nil {
		s.say("that failed: %v", err)
	}
}

func (s *stage) say(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, format+"\n", args...) // nobody is watching any more
}
