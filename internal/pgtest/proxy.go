package pgtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	_ "github.com/Shopify/toxiproxy/v2/toxics" // registers reset_peer, timeout, limit_data
	"github.com/rs/zerolog"
)

// Proxy is a network between a test and its PostgreSQL that can be broken.
type Proxy struct {
	DSN   string // through the proxy
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// NewProxy starts a proxy in front of the server that dsn names. It ends with the test.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	u, upstream := hostOf(t, dsn)
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{t: t, proxy: toxiproxy.NewProxy(server, "postgres", "127.0.0.1:0", upstream)}
	p.Up()
	t.Cleanup(p.proxy.Stop)
	u.Host = p.proxy.Listen
	p.DSN = u.String()
	return p
}

// hostOf is where a DSN leads to.
func hostOf(t testing.TB, dsn string) (u *url.URL, host string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if u.Port() == "" {
		return u, net.JoinHostPort(u.Hostname(), "5432")
	}
	return u, u.Host
}

// Lead lets a proxy that is down lead to another server from now on.
func (p *Proxy) Lead(dsn string) {
	p.t.Helper()
	_, p.proxy.Upstream = hostOf(p.t, dsn)
}

// Down breaks all connections and refuses new ones.
func (p *Proxy) Down() { p.proxy.Stop() }

// Up ends Down.
func (p *Proxy) Up() {
	p.t.Helper()
	if err := p.proxy.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// CutAfter breaks every connection once so many bytes have come through it: of what the server sends, or of what it is sent.
func (p *Proxy) CutAfter(bytes int, fromServer bool) {
	p.toxic("limit_data", fromServer, fmt.Sprintf(`{"bytes": %d}`, bytes))
}

// Hang lets nothing through any more, without breaking a connection.
func (p *Proxy) Hang() { p.toxic("timeout", true, `{"timeout": 0}`) }

// Slow delays all that the server sends.
func (p *Proxy) Slow(by time.Duration) {
	p.toxic("latency", true, fmt.Sprintf(`{"latency": %d}`, by.Milliseconds()))
}

// SlowClose lets clients learn only after a delay that the server has closed a connection.
func (p *Proxy) SlowClose(by time.Duration) {
	p.toxic("slow_close", true, fmt.Sprintf(`{"delay": %d}`, by.Milliseconds()))
}

func (p *Proxy) toxic(kind string, fromServer bool, attributes string) {
	p.t.Helper()
	stream := "upstream"
	if fromServer {
		stream = "downstream"
	}
	text := fmt.Sprintf(`{"name": "fault", "type": %q, "stream": %q, "attributes": %s}`, kind, stream, attributes)
	if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(text)); err != nil {
		p.t.Fatal(err)
	}
}

// Heal ends CutAfter, Hang, Slow and SlowClose.
func (p *Proxy) Heal() { p.proxy.Toxics.ResetToxics(context.Background()) }
