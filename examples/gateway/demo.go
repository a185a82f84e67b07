package main

// The demo: a stand-in for WhatsApp's servers, a PostgreSQL, three gateway processes with a load balancer in front, numbers that are linked through the API,
// contacts who write to them, and a receiver of webhooks. Every few seconds a process comes to its end, and another one is started.

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/wataki/whatsmeow-pgstore/internal/standin"
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
	setting, err := standin.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, setting.Close(ctx)) }()
	program, err := os.Executable()
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return err
	}
	s, err := newStage(setting.Server, &cluster{program: program, dsn: setting.DSN, endpoint: setting.Server.Endpoint(), flags: []string{"-lease", demoLease}}, "http://"+listener.Addr().String())
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
	return standin.Play(ctx, cfg.standIn, func(ctx context.Context, server waserver.Endpoint) error {
		return serve(ctx, cfg, seams{connect: standin.Connect(server), announce: os.Stdout})
	})
}
