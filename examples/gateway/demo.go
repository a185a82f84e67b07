package main

// The demo: a stand-in for WhatsApp's servers, a PostgreSQL, three gateway processes with a load balancer in front, numbers that are linked through the API,
// contacts who write to them, and a receiver of webhooks. Every few seconds a process comes to its end, and another one is started.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"go.mau.fi/whatsmeow"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

const (
	demoProcesses = 3
	demoInstances = 20
	demoLease     = "2s"
	demoHookKey   = "whsec_dGhlIGRlbW8gaGFzIG5vIHNlY3JldHM="
)

// demo sets the stage, or is a process on it.
func demo(ctx context.Context, cfg config) (err error) {
	if cfg.standIn != "" {
		return demoProcess(ctx, cfg)
	}
	if cfg.databaseURL != "" {
		if err = os.Setenv("DATABASE_URL", cfg.databaseURL); err != nil {
			return err
		}
	}
	database, err := pgtest.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop()) }()
	fmt.Println("Database:", database.Description)
	dsn, drop, err := database.NewDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	server, err := waserver.New(waserver.Config{}) //nolint:contextcheck // it lives until it is closed
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return err
	}
	s, err := newStage(server, &cluster{program: program, dsn: dsn, endpoint: server.Endpoint(), flags: []string{"-lease", demoLease}}, "http://"+listener.Addr().String())
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer s.close()
	front := &http.Server{Handler: s.cluster, ReadHeaderTimeout: time.Minute}
	defer front.Close()                       //nolint:errcheck // it ends with the demo
	go func() { _ = front.Serve(listener) }() // until Close
	return s.play(ctx, cfg.pace)
}

// demoProcess is a gateway whose clients connect to the stand-in, and which ends with the demo, too.
func demoProcess(ctx context.Context, cfg config) error {
	var server waserver.Endpoint
	if err := json.Unmarshal([]byte(cfg.standIn), &server); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		defer end()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return serve(ctx, cfg, seams{connect: attached(server), announce: os.Stdout})
}

// attached connects a client to the stand-in.
func attached(server waserver.Endpoint) connector {
	return func(client *whatsmeow.Client, ctx context.Context) error {
		if err := server.Attach(client); err != nil {
			return err
		}
		return client.ConnectContext(ctx)
	}
}
