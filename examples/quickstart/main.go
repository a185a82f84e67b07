// Quickstart shows without a phone what pgstore is for. It needs nothing but Go:
//
//	go run ./examples/quickstart
//
// It starts a PostgreSQL of its own (DATABASE_URL names another one, which it leaves as it was) and then:
//
//  1. A worker process pairs two devices, alice and bob, and lets them talk with real Signal encryption.
//  2. In the middle of it the worker is killed, as a crash or an impatient scheduler would do it.
//  3. A second worker opens the same devices and goes on where the first one was: nothing is paired again, no session is
//     negotiated again, and every message can be read.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

const (
	workerEnv = "PGSTORE_QUICKSTART_DSN" // set for the worker processes
	schema    = "pgstore_quickstart"
	killAfter = 50  // messages of the first worker
	enough    = 100 // messages of the second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := parent
	if os.Getenv(workerEnv) != "" {
		run = worker
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

func parent(ctx context.Context) (err error) {
	server, err := pgtest.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dropSchema(server.DSN), server.Stop()) }() //nolint:contextcheck // also after Ctrl-C
	fmt.Println("Database:", server.Description)

	first, err := watch(ctx, server.DSN, killAfter)
	if err != nil {
		return err
	}
	fmt.Printf("Worker 1 paired %d devices. They sent each other %d messages, then the worker was killed.\n", first.paired, first.messages)
	second, err := watch(ctx, server.DSN, 0)
	if err != nil {
		return err
	}
	fmt.Printf("Worker 2 opened both devices: %d paired again, %d sessions negotiated again.\n", second.paired, second.negotiated)
	fmt.Printf("They went on for %d messages. All of them could be read.\n", second.messages)
	if first.paired != 2 || second.paired != 0 || second.negotiated != 0 || second.messages != enough {
		return errors.New("that is not what should have happened")
	}
	return nil
}

// seen counts what a worker reports.
type seen struct{ paired, negotiated, messages int }

// watch runs a worker until it ends, or until it has sent as many messages as kill says: then it is killed.
func watch(ctx context.Context, dsn string, kill int) (s seen, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), workerEnv+"="+dsn)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err = cmd.Start(); err != nil {
		return s, err
	}
	killed := false
	for lines := bufio.NewScanner(out); !killed && lines.Scan(); {
		switch lines.Text() {
		case reportPaired:
			s.paired++
		case reportNegotiated:
			s.negotiated++
		case reportMessage:
			s.messages++
		}
		if kill > 0 && s.messages == kill {
			killed = true
			err = cmd.Process.Kill()
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if waited := cmd.Wait(); !killed {
		err = waited
	}
	return s, errors.Join(err, ctx.Err())
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
