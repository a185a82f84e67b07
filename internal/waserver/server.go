package waserver

// The server as a whole: one HTTP server on the loopback interface whose WebSocket endpoint speaks the chat protocol, and
// what all connections share. Every connection and every burst of work of a simulated phone is a goroutine that Close
// waits for; none lives on when there is nothing to do.
//
// Locks, in the order in which they may be taken: a phone's sending lock, Server.mu, then the small locks of a
// connection's outgoing queue, of an app state, of the media and of the record. No encryption and no network happens under
// Server.mu.

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

// What a Config without a value of its own gets.
const (
	GraceDefault      = 2 * time.Second
	LowPreKeysDefault = 5
)

// Config says how a [Server] behaves. Its zero value is a server that works.
type Config struct {
	// Logger takes what the server has to say, which is never key material. Defaults to no log.
	Logger *slog.Logger
	// Grace is how long a connection that was told of a stream error or a failure is kept open, so that the client
	// reads it before it sees the end of the connection. Defaults to GraceDefault.
	Grace time.Duration
	// LowPreKeys is the number of one-time pre-keys below which a device is asked to upload more. Defaults to
	// LowPreKeysDefault, where the client begins to listen; -1 disables.
	LowPreKeys int
}

// WithDefaults is a copy of the configuration with every field set.
func (c Config) WithDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Grace == 0 {
		c.Grace = GraceDefault
	}
	if c.LowPreKeys == 0 {
		c.LowPreKeys = LowPreKeysDefault
	}
	return c
}

// Server is a stand-in for WhatsApp. Its methods may be called at any time from any goroutine.
type Server struct {
	cfg      Config
	log      *slog.Logger
	identity serverIdentity
	handlers map[string]iqHandler
	mux      *http.ServeMux
	http     *http.Server
	url      string
	record   *Record
	media    *media.Store

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		closed     bool
		conns      map[*conn]struct{}
		users      map[types.JID]*Contact // by phone number and by LID
		groups     map[types.JID]*Group
		offers     map[string]*offer         // QR references that are shown, by reference
		linkCodes  map[types.JID]*linkCoding // link codes that are shown, by phone number
		faults     []*Fault
		failures   []int // reasons with which the next logins fail
		rejections []int // HTTP states with which the next connections are turned away
		timers     map[*time.Timer]struct{}
		activity   chan struct{} // closed when something happened that somebody may wait for
		stats      Stats
		nextNumber int
		nextID     int
	}
}

// New starts a server on a free port of the loopback interface.
func New(cfg Config) (*Server, error) {
	cfg = cfg.WithDefaults()
	identity, err := newServerIdentity(keys.NewKeyPair())
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, identity: identity, mux: http.NewServeMux(),
		url: "http://" + listener.Addr().String(), record: newRecord(), media: media.New(),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.mu.conns = make(map[*conn]struct{})
	s.mu.users = make(map[types.JID]*Contact)
	s.mu.groups = make(map[types.JID]*Group)
	s.mu.offers = make(map[string]*offer)
	s.mu.linkCodes = make(map[types.JID]*linkCoding)
	s.mu.timers = make(map[*time.Timer]struct{})
	s.mu.activity = make(chan struct{})
	s.mu.stats.UnknownIQs = make(map[string]int)
	s.mu.stats.UnknownNodes = make(map[string]int)
	s.handlers = s.iqHandlers()
	s.mux.HandleFunc("/ws/chat", s.serveChat)
	s.mux.Handle(media.Host+"/", s.media)
	s.http = &http.Server{
		Handler: s.mux, ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, tcpKey{}, c) },
	}
	s.wg.Go(func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("waserver: HTTP server ended", "error", err)
		}
	})
	return s, nil
}

// Close ends all connections and waits until every goroutine of the server has ended.
func (s *Server) Close() error {
	s.mu.Lock()
	s.mu.closed = true
	for timer := range s.mu.timers {
		timer.Stop()
	}
	clear(s.mu.timers)
	s.mu.Unlock()
	s.cancel()
	err := s.http.Close()
	s.wg.Wait()
	return err
}

// Record is the wire record of everything that clients sent.
func (s *Server) Record() *Record { return s.record }

// Handle serves an HTTP path on the server, for what clients fetch outside of the chat connection. Requests keep the
// host that the client asked for.
func (s *Server) Handle(pattern string, handler http.Handler) { s.mux.Handle(pattern, handler) }

// spawn runs work that Close waits for. It reports false when the server is closed.
func (s *Server) spawn(work func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spawnLocked(work)
}

func (s *Server) spawnLocked(work func()) bool {
	if s.mu.closed {
		return false
	}
	s.wg.Go(work)
	return true
}

// afterLocked runs work later, unless the server is closed by then. Server.mu is not held when the work is run.
func (s *Server) afterLocked(d time.Duration, work func()) {
	if s.mu.closed {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		s.mu.Lock()
		delete(s.mu.timers, timer)
		s.spawnLocked(work)
		s.mu.Unlock()
	})
	s.mu.timers[timer] = struct{}{}
}

// happened wakes those who wait for something to happen.
func (s *Server) happened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happenedLocked()
}

// happenedLocked wakes those who wait for something to happen.
func (s *Server) happenedLocked() {
	close(s.mu.activity)
	s.mu.activity = make(chan struct{})
}

// wait blocks until check, which is called with Server.mu held, is true.
func (s *Server) wait(ctx context.Context, check func() bool) error {
	for {
		s.mu.Lock()
		ok, activity := check(), s.mu.activity
		s.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-activity:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errClosed
		}
	}
}

var errClosed = errors.New("waserver: server is closed")
