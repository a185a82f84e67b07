package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Who comes in, in this order: a connection, if its address has not too many of them; a request that comes from no other site's page; one that has
// the key, or the secret of the other processes; if there are not too many; with as many bytes as it may have.

// headerTimeout is how long a caller may take to say what he wants.
const headerTimeout = 5 * time.Second

// newServer bounds how long anybody may take over anything, so that those who are slow hold nothing up. What lasts (stream.go) sets limits of its own.
func newServer(cfg config, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      cfg.answer,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// handler is the routes, guarded.
func (g *gateway) handler() http.Handler {
	mux := http.NewServeMux()
	for _, route := range g.routes() {
		mux.Handle(route.pattern, g.metrics.measured(route.pattern, g.guarded(route)))
	}
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.writeProblem(w, r, errForbidden) }))
	return crossOrigin.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Content-Security-Policy", "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// Nothing is there, or not with this method: who has no key is not told which.
		if _, err := g.admit(r); err != nil {
			g.writeProblem(w, r, err)
			return
		}
		g.writeProblem(w, r, g.missing(mux, r))
	}))
}

// missing says why there is no route.
func (g *gateway) missing(mux *http.ServeMux, r *http.Request) error {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "" {
			return errMethod
		}
	}
	return errNoRoute
}

// guarded lets in who may come in.
func (g *gateway) guarded(route route) http.Handler {
	limit, media := g.cfg.maxBody, strings.HasSuffix(route.pattern, "/media")
	if media {
		limit = g.cfg.maxMedia
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !route.public {
			byProcess, err := g.admit(r)
			if err != nil {
				g.writeProblem(w, r, err)
				return
			}
			r = r.WithContext(context.WithValue(r.Context(), forwardedKey{}, byProcess))
		}
		if media { // before any of it is read
			select {
			case g.uploads <- struct{}{}:
				defer func() { <-g.uploads }()
			default:
				g.writeProblem(w, r, errTooMany.because("too many attachments at once"))
				return
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		if err := route.handle(w, r); err != nil {
			g.writeProblem(w, r, err)
		}
	})
}

// admit checks key and rate, and says whether another process has sent the request, which has checked both.
func (g *gateway) admit(r *http.Request) (byProcess bool, err error) {
	if g.cfg.apiKey == "" && !loopback(withPort(r.Host)) {
		return false, errUnauthorized // a page whose name leads to loopback is after a gateway without a key, whose secret everybody can work out
	}
	if secret := r.Header.Get(secretHeader); secret != "" && same(secret, g.cfg.secret) {
		return true, nil
	}
	key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case g.cfg.apiKey != "" && !same(key, g.cfg.apiKey):
		return false, errUnauthorized
	case !g.limit.Allow():
		return false, errTooMany
	}
	return false, nil
}

// same compares in a time that tells nothing, also not of the lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err != nil {
		return net.JoinHostPort(strings.Trim(host, "[]"), "80")
	}
	return host
}

// limitConnections turns connections away that are too many, at once: who waits in a queue behind idle ones is not served either. So one
// address cannot use up what there is for all.
func limitConnections(l net.Listener, most, mostPerAddress int, open prometheus.Gauge) net.Listener {
	return &limitedListener{Listener: l, most: most, mostPerAddress: mostPerAddress, gauge: open, open: make(map[string]int)}
}

type limitedListener struct {
	net.Listener
	most, mostPerAddress int
	gauge                prometheus.Gauge

	mu   sync.Mutex
	all  int
	open map[string]int // by address
}

// Accept implements [net.Listener].
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		if l.admit(address) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(address) })}, nil
		}
		_ = conn.Close()
	}
}

func (l *limitedListener) admit(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.most || l.open[address] >= l.mostPerAddress {
		return false
	}
	l.all++
	l.gauge.Inc()
	l.open[address]++
	return true
}

func (l *limitedListener) leave(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	l.gauge.Dec()
	if l.open[address]--; l.open[address] == 0 {
		delete(l.open, address)
	}
}

type limitedConn struct {
	net.Conn
	leave func()
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
