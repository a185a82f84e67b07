// Gateway puts many numbers behind one HTTP API, with a page, and spreads them over as many processes as you start: each number has its client in one of
// them, any of them answers any request, and when one comes, goes or dies the others make room or take over. Nobody scans a code again.
//
//	go run ./examples/gateway -demo                        # no phone, no configuration
//	export GATEWAY_DATABASE_URL=postgres://…
//	go run ./examples/gateway                              # then open http://127.0.0.1:8080
//
// How it is made, in the order in which it is best read:
//
//	config.go     all settings: each flag is also an environment variable
//	main.go       how a process begins and ends
//	gateway.go    which instances this process has: claims, takes, lets go, moves, hands over
//	instance.go   one number: its client, what happens to it, what it sends
//	pairing.go    how a number is linked, by QR code or pairing code
//	directory.go  the tables of its own, and who has which instance
//	api.go        the routes; message.go what is sent and received; idempotency.go a send that is asked for twice
//	forward.go    any process answers any request
//	stream.go     server-sent events
//	webhook.go    what came in goes out, signed, until it is taken
//	guard.go      who may come in, and how much; problem.go how it says no
//	metrics.go    numbers for Prometheus; probes.go whether it lives, and should be asked
//	page/         the page; openapi.yaml, compose.yaml, kubernetes.yaml and Dockerfile speak for themselves
//
// demo.go, stage.go, process.go and caller.go are the demo, which a real gateway leaves out.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

func main() {
	cfg, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return // it has been printed
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if cfg.demo {
		err = demo(ctx, cfg)
	} else {
		err = serve(ctx, cfg, seams{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1) //nolint:gocritic // stop has nothing left to do
	}
}

// seams are where the demo and the tests do something else. The zero value is what a real gateway does.
type seams struct {
	connect  connector
	announce io.Writer      // is told the address
	probing  func(net.Addr) // is told the one for probes
	store    func(config, *pgxpool.Pool) (deviceStore, error)
	tracer   pgx.QueryTracer
}

// serve is a process of the gateway, from its beginning to its end.
//
// At its end, the order matters: it goes on answering while it hands over, and passes on to the new owners what comes in for what it has not any more;
// only then it stops listening, and lets what is under way come to its end.
func serve(ctx context.Context, cfg config, other seams) (err error) {
	log := cfg.logger(os.Stderr)
	pool, err := openPool(ctx, cfg.databaseURL, other.tracer)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err = migrate(ctx, pool); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return err
	}
	if cfg.advertise == "" {
		cfg.advertise = "http://" + listener.Addr().String()
	}
	var store deviceStore
	if other.store != nil {
		store, err = other.store(cfg, pool)
	} else {
		store, err = openStore(ctx, cfg, pool, log)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g, err := newGateway(cfg, store, &directory{pool: pool, self: cfg.advertise}, other.connect, log)
	if err != nil {
		return errors.Join(err, store.Close(), listener.Close())
	}

	server := newServer(cfg, g.handler(), log)
	probes, err := serveProbes(ctx, cfg, g, other.probing, log)
	if err != nil {
		return errors.Join(err, store.Close(), listener.Close())
	}
	defer probes.Close() //nolint:errcheck // it goes on until all else has ended
	var serving sync.WaitGroup
	var serveErr error
	serving.Go(func() {
		serveErr = server.Serve(limitConnections(listener, cfg.maxConns, cfg.maxConnsPerAddress, g.metrics.connections))
	})
	log.Info("gateway listens", "address", listener.Addr().String(), "advertised", cfg.advertise, "name", cfg.name)
	if other.announce != nil {
		_, _ = fmt.Fprintln(other.announce, cfg.advertise)
	}

	err = g.run(ctx) // until the context ends; then all instances are handed over

	g.endStreams() // other requests come to their end
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.patience)
	defer cancel()
	var shutdownErr, stopErr error // at the same time: neither shortens the other's
	serving.Go(func() { shutdownErr = server.Shutdown(ending) })
	serving.Go(func() { stopErr = g.hooks.stop(ending) })
	serving.Wait()
	err = errors.Join(err, shutdownErr, stopErr)
	if !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	log.Info("gateway has ended")
	return err
}

// serveProbes answers /healthz and /readyz at an address of their own: callers who use up all connections must not make the gateway look dead.
func serveProbes(ctx context.Context, cfg config, g *gateway, told func(net.Addr), log *slog.Logger) (*http.Server, error) {
	mux := http.NewServeMux()
	for _, route := range g.routes() {
		if route.pattern == "GET /healthz" || route.pattern == "GET /readyz" {
			mux.Handle(route.pattern, g.guarded(route))
		}
	}
	server := newServer(cfg, mux, log)
	if cfg.probes == "" {
		return server, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.probes)
	if err != nil {
		return nil, err
	}
	log.Info("probes are answered", "address", listener.Addr().String())
	if told != nil {
		told(listener.Addr())
	}
	go func() { _ = server.Serve(limitConnections(listener, maxProbes, maxProbes, g.metrics.probeConnections)) }() // until Close
	return server, nil
}

// maxProbes is how many connections there may be for probes.
const maxProbes = 64

// openPool opens the pool that the store, the directory and the webhooks share. Exec mode prepares nothing, so a PgBouncer in transaction mode may be in between.
func openPool(ctx context.Context, dsn string, tracer pgx.QueryTracer) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.Tracer = tracer
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	cfg.ConnConfig.ConnectTimeout = 10 * time.Second
	cfg.MaxConns = max(cfg.MaxConns, 8)
	return pgxpool.NewWithConfig(ctx, cfg)
}

// openStore opens the store. What is said there of ownership is all that several processes need.
func openStore(ctx context.Context, cfg config, pool *pgxpool.Pool, log *slog.Logger) (deviceStore, error) {
	return pgstore.NewWithConfig(ctx, pgstore.Config{
		Pool:         pool,
		DurableAcks:  true,                 // no message whose handler returned is lost
		Takes:        pgstore.RespectLease, // nobody takes an instance from a process that lives
		Lease:        cfg.lease,            // what a process that was killed had is free so long after its last sign of life
		Owner:        cfg.name,             // for people
		Address:      cfg.advertise,        // for the other processes, which forward to it
		MaxInstances: cfg.maxInstances,
		Log:          clientLog{log},
		Logger:       log,
	})
}
