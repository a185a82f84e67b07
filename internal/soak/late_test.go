package soak

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// post is the network of a process. It can hold back a flush, as a connection does that is half open, and deliver it later.
type post struct {
	mu     sync.Mutex
	letter *letter // what the next flush becomes
}

// letter is a flush that is held back.
type letter struct {
	sent    []byte
	server  net.Conn
	givenUp chan struct{} // closed when the sender has closed the connection
}

// pool connects through the post.
func (p *post) pool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.MaxConns = 4
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // not prepared, so that all of a statement is sent at once
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &postedConn{now: conn, post: p}, err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// hold keeps the next flush, and returns it when its sender has given it up.
func (p *post) hold(t testing.TB) *letter {
	l := &letter{givenUp: make(chan struct{})}
	p.mu.Lock()
	p.letter = l
	p.mu.Unlock()
	select {
	case <-l.givenUp:
	case <-time.After(time.Minute):
		require.Fail(t, "no flush was held back")
	}
	return l
}

// deliver lets the server have it, and returns the answer, which is empty if the connection has broken.
func (l *letter) deliver(t testing.TB) []byte {
	defer func() { _ = l.server.Close() }()
	require.NoError(t, l.server.SetDeadline(time.Now().Add(time.Minute)))
	_, _ = l.server.Write(append(l.sent, 'X', 0, 0, 0, 4)) // then terminate
	answer, _ := io.ReadAll(l.server)
	return answer
}

// postedConn is a connection through the post.
type postedConn struct {
	post *post
	mu   sync.Mutex
	now  net.Conn // a pipe to nobody once something was held back
}

func (c *postedConn) conn() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Write implements [net.Conn].
func (c *postedConn) Write(b []byte) (int, error) {
	c.post.mu.Lock()
	l := c.post.letter
	if l == nil || !bytes.Contains(b, []byte("WITH lane AS")) {
		c.post.mu.Unlock()
		return c.conn().Write(b)
	}
	c.post.letter = nil
	c.post.mu.Unlock()
	ours, theirs := net.Pipe()
	c.mu.Lock()
	l.sent, l.server, c.now = bytes.Clone(b), c.now, ours
	c.mu.Unlock()
	go func() {
		_, _ = theirs.Read(make([]byte, 1<<10)) // that it gives up
		_ = theirs.Close()
		close(l.givenUp)
	}()
	return len(b), nil
}

// Read implements [net.Conn].
func (c *postedConn) Read(b []byte) (int, error) { return c.conn().Read(b) }

// Close implements [net.Conn].
func (c *postedConn) Close() error { return c.conn().Close() }

// LocalAddr implements [net.Conn].
func (c *postedConn) LocalAddr() net.Addr { return c.conn().LocalAddr() }

// RemoteAddr implements [net.Conn].
func (c *postedConn) RemoteAddr() net.Addr { return c.conn().RemoteAddr() }

// SetDeadline implements [net.Conn].
func (c *postedConn) SetDeadline(t time.Time) error { return c.conn().SetDeadline(t) }

// SetReadDeadline implements [net.Conn].
func (c *postedConn) SetReadDeadline(t time.Time) error { return c.conn().SetReadDeadline(t) }

// SetWriteDeadline implements [net.Conn].
func (c *postedConn) SetWriteDeadline(t time.Time) error { return c.conn().SetWriteDeadline(t) }
