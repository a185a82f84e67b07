// Package tracing shows what pgstore asks its database as OpenTelemetry spans:
//
//	cfg, err := pgxpool.ParseConfig(dsn)
//	cfg.ConnConfig.Tracer = tracing.New()
//	pool, err := pgxpool.NewWithConfig(ctx, cfg)
//	store, err := pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool})
//
// It is github.com/exaring/otelpgx, with two differences. That one makes spans only inside of a span, and most of what pgstore asks is asked in nobody's
// name: flushes above all. Here such a statement begins a trace of its own. And the arguments of statements are never in a span, since they are the
// keys; otelpgx does that when it is told to. What a span has is the statement's text, host and database, how long it took, and an SQLSTATE.
//
// It sees all statements of the pool, others than pgstore's, too.
package tracing

import (
	"context"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
)

// Tracer is a [pgx.QueryTracer] and the like.
type Tracer struct {
	inner  *otelpgx.Tracer
	tracer trace.Tracer
}

var (
	_ pgx.QueryTracer   = (*Tracer)(nil)
	_ pgx.ConnectTracer = (*Tracer)(nil)
)

// Option is an option of New.
type Option func(*options)

type options struct{ provider trace.TracerProvider }

// WithTracerProvider names who makes the spans: OpenTelemetry's global provider unless it is said.
func WithTracerProvider(provider trace.TracerProvider) Option {
	return func(o *options) { o.provider = provider }
}

// New makes a tracer for ConnConfig.Tracer.
func New(opts ...Option) *Tracer {
	o := options{provider: otel.GetTracerProvider()}
	for _, option := range opts {
		option(&o)
	}
	return &Tracer{
		inner:  otelpgx.NewTracer(otelpgx.WithTracerProvider(o.provider)),
		tracer: o.provider.Tracer("github.com/wataki/whatsmeow-pgstore/pgstore/tracing"),
	}
}

type rootKey struct{}

// TraceQueryStart implements [pgx.QueryTracer].
func (t *Tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if !trace.SpanFromContext(ctx).IsRecording() {
		var root trace.Span
		ctx, root = t.tracer.Start(ctx, "pgstore background", trace.WithSpanKind(trace.SpanKindInternal)) //nolint:spancheck // TraceQueryEnd ends it
		ctx = context.WithValue(ctx, rootKey{}, root)
	}
	return t.inner.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: data.SQL}) //nolint:spancheck // likewise
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (t *Tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	data.Err = withoutRows(data.Err)
	t.inner.TraceQueryEnd(ctx, conn, data)
	if root, ok := ctx.Value(rootKey{}).(trace.Span); ok {
		root.End()
	}
}

// TraceConnectStart implements [pgx.ConnectTracer].
func (t *Tracer) TraceConnectStart(ctx context.Context, data pgx.TraceConnectStartData) context.Context {
	return t.inner.TraceConnectStart(ctx, data)
}

// TraceConnectEnd implements [pgx.ConnectTracer].
func (t *Tracer) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	t.inner.TraceConnectEnd(ctx, data)
}
