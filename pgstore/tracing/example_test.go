package tracing_test

import (
	"fmt"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/tracing"
)

func ExampleNew() {
	dsn, drop, err := pgtest.Database() // postgres://…
	if err != nil {
		log.Panic(err)
	}
	defer drop(ctx)
	spans := tracetest.NewInMemoryExporter() // or one that sends them
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	defer provider.Shutdown(ctx)

	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		log.Panic(err)
	}
	cfg.ConnConfig.Tracer = tracing.New(tracing.WithTracerProvider(provider))
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		log.Panic(err)
	}
	defer pool.Close() // after the container
	store, err := pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool})
	if err != nil {
		log.Panic(err)
	}
	defer store.Close()

	fmt.Println(len(spans.GetSpans()) > 0)
	// Output: true
}
