package tracing_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/tracing"
)

var ctx = context.Background()

// traced is a container whose statements are traced.
func traced(t *testing.T, dsn string, tracer func(*trace.TracerProvider) pgx.QueryTracer) (*pgstore.Container, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig.Tracer = tracer(trace.NewTracerProvider(trace.WithSyncer(spans)))
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // one ends with what is refused
	return c, spans
}

func ours(provider *trace.TracerProvider) pgx.QueryTracer {
	return tracing.New(tracing.WithTracerProvider(provider))
}

// talk lets two devices of the container talk.
func talk(t *testing.T, c *pgstore.Container) {
	t.Helper()
	var peers [2]*signaltest.Peer
	for i := range peers {
		d := c.NewDevice()
		signaltest.FillPairing(d)
		require.NoError(t, d.Save(ctx))
		peers[i] = signaltest.NewPeer(d)
	}
	signaltest.Meet(t, peers[0], peers[1])
	signaltest.Say(t, peers[0], peers[1], "hello")
	require.NoError(t, c.Flush(ctx))
}

func sql(t *testing.T, dsn, statement string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	require.NoError(t, err)
}

// textOf is all that spans say.
func textOf(spans tracetest.SpanStubs) string {
	var text strings.Builder
	list := func(attributes []attribute.KeyValue) {
		for _, a := range attributes {
			fmt.Fprintln(&text, a.Key, a.Value)
		}
	}
	for _, s := range spans {
		fmt.Fprintln(&text, s.Name, s.Status)
		list(s.Attributes)
		for _, e := range s.Events {
			fmt.Fprintln(&text, e.Name)
			list(e.Attributes)
		}
	}
	return text.String()
}

// Spans say which statement ran and how it ended, and nothing of what was in it: neither when all goes well nor when the server refuses a row and
// quotes it.
func TestP12SpansHoldNoKeys(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, spans := traced(t, dsn, ours)
	talk(t, c)
	secrets := new(secrettest.Secrets)
	secrets.Note(t, dsn)
	require.Subset(t, secrets.Kinds(), []string{"creds", "session", "identity"})
	require.Contains(t, textOf(spans.GetSpans()), "INSERT INTO", "the flushes")
	secrets.RequireNoneIn(t, "a span", textOf(spans.GetSpans()))

	sql(t, dsn, `ALTER TABLE whatsmeow.auth_keys ADD CHECK (key_type <> 'contact') NOT VALID`)
	d, err := c.GetFirstDevice(ctx)
	require.NoError(t, err)
	spans.Reset()
	_, _, err = d.Contacts.PutPushName(ctx, types.NewJID("1", types.DefaultUserServer), "a name that is refused")
	require.NoError(t, err)
	require.ErrorIs(t, c.Flush(ctx), pgstore.ErrRefused)
	failed := spans.GetSpans()
	require.True(t, slices.ContainsFunc(failed, func(s tracetest.SpanStub) bool { return s.Status.Code == codes.Error }))
	require.Contains(t, textOf(failed), "23514")
	require.NotContains(t, textOf(failed), "a name that")
	secrets.RequireNoneIn(t, "a span", textOf(failed))
}

// A request's span has what was asked in its name below it, and what nobody asked for has traces of its own.
func TestSpansAreWhereTheyBelong(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, spans := traced(t, dsn, ours)
	talk(t, c)
	spans.Reset()
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	inside, request := provider.Tracer("test").Start(ctx, "request")
	_, err := c.Instances(inside)
	require.NoError(t, err)
	request.End()
	require.True(t, slices.ContainsFunc(spans.GetSpans(), func(s tracetest.SpanStub) bool {
		return s.Name != "request" && s.SpanContext.TraceID() == request.SpanContext().TraceID() && s.Parent.SpanID() == request.SpanContext().SpanID()
	}))
}

// With the arguments in the spans, as otelpgx has them when it is told to, the search finds them.
func TestP12TheSearchOfSpansFires(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, spans := traced(t, dsn, func(provider *trace.TracerProvider) pgx.QueryTracer {
		return everything{provider, otelpgx.NewTracer(otelpgx.WithTracerProvider(provider), otelpgx.WithIncludeQueryParameters())}
	})
	talk(t, c)
	secrets := new(secrettest.Secrets)
	secrets.Note(t, dsn)
	require.Subset(t, secrets.FoundIn(textOf(spans.GetSpans())), []string{"creds", "session"})
}

// everything is otelpgx below a span that never ends.
type everything struct {
	provider *trace.TracerProvider
	*otelpgx.Tracer
}

func (e everything) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	ctx, _ = e.provider.Tracer("test").Start(ctx, "root")
	return e.Tracer.TraceQueryStart(ctx, conn, data)
}

// A server's message about data quotes it.
func TestP12SpansQuoteNoData(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	cfg, err := pgx.ParseConfig(pgtest.Open(t))
	require.NoError(t, err)
	cfg.Tracer = ours(trace.NewTracerProvider(trace.WithSyncer(spans)))
	conn, err := pgx.ConnectConfig(ctx, cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, `SELECT $1::text::integer`, pgx.QueryExecModeExec, "a secret")
	require.ErrorContains(t, err, "a secret", "the caller gets it")
	require.Contains(t, textOf(spans.GetSpans()), "22P02")
	require.NotContains(t, textOf(spans.GetSpans()), "a secret")
}
