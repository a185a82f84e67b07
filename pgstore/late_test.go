package pgstore_test

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// holdUp is a network that keeps back what one connection sends from a given text on, as one does that is half open, until it is released.
type holdUp struct {
	dsn      string
	released chan struct{}
	release  func()        // closes it
	held     chan struct{} // closed when the text was seen
	answer   chan []byte   // what the server said on that connection after the release, until it closed it

	mu   sync.Mutex
	text []byte // nil once it was seen
}

func newHoldUp(t testing.TB, dsn string) *holdUp {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	server := u.Host
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u.Host = listener.Addr().String()
	h := &holdUp{dsn: u.String(), released: make(chan struct{}), held: make(chan struct{}), answer: make(chan []byte, 1)}
	h.release = sync.OnceFunc(func() { close(h.released) })
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { h.serve(client, server) })
		}
	})
	t.Cleanup(func() {
		h.release()
		_ = listener.Close()
		all.Wait()
	})
	return h
}

// hold keeps back the first that sends text.
func (h *holdUp) hold(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = []byte(text)
}

func (h *holdUp) holds(sent []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.text == nil || !bytes.Contains(sent, h.text) {
		return false
	}
	h.text = nil
	return true
}

func (h *holdUp) serve(client net.Conn, address string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	down := make(chan struct{})
	var late bytes.Buffer
	mine := make(chan struct{}) // closed if this is the connection that is held up
	go func() {
		defer close(down)
		buffer := make([]byte, 64<<10)
		for {
			n, err := server.Read(buffer)
			select {
			case <-mine:
				late.Write(buffer[:n])
			default:
				_, _ = client.Write(buffer[:n])
			}
			if err != nil {
				_ = client.(*net.TCPConn).CloseWrite()
				return
			}
		}
	}()
	buffer := make([]byte, 1<<20) // a small flush comes in one piece
	for {
		n, err := client.Read(buffer)
		if h.holds(buffer[:n]) {
			sent := bytes.Clone(buffer[:n])
			close(mine)
			close(h.held)
			<-h.released
			_, _ = server.Write(sent)
			_, _ = io.Copy(server, client) // what it has sent since: that it gives up
			_ = server.(*net.TCPConn).CloseWrite()
			<-down
			h.answer <- late.Bytes()
			return
		}
		_, _ = server.Write(buffer[:n])
		if err != nil {
			_ = server.(*net.TCPConn).CloseWrite()
			<-down
			return
		}
	}
}

// The first flush hangs in a half-open connection, is sent again on another one and committed, newer ones follow, and then the first arrives.
func TestP6AFlushHeldInAHalfOpenConnectionChangesNothing(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := newHoldUp(t, dsn)
	// Not prepared, so that all of the statement is sent at once.
	c := reopen(t, withQuery(t, network.dsn, "default_query_exec_mode", "exec"), behind, func(cfg *pgstore.Config) { cfg.FlushTimeout = 300 * time.Millisecond })
	d := pair(t, c.NewDevice())
	put := func(value byte, others ...string) {
		require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{value}))
		for _, address := range others {
			require.NoError(t, d.Identities.PutIdentity(ctx, address, [32]byte{value}))
		}
	}
	require.NoError(t, c.Flush(ctx))
	network.hold("WITH lane AS")
	put(1, "only in the first:0")
	require.NoError(t, c.Flush(within(t, 20*time.Second)), "it is sent again")
	<-network.held
	require.Positive(t, c.Stats().Batcher.Retries)
	put(2)
	require.NoError(t, d.Identities.DeleteIdentity(ctx, "only in the first:0"))
	require.NoError(t, c.Flush(ctx))
	const state = `SELECT md5(string_agg(k::text, ',' ORDER BY key_type, key_id)) || (SELECT seq FROM whatsmeow.instances) FROM whatsmeow.auth_keys k`
	before := scalar[string](t, dsn, state)
	network.release()
	select {
	case answer := <-network.answer:
		require.Contains(t, string(answer), "SELECT 0\x00", "the server executed it, and no lane held")
	case <-time.After(20 * time.Second):
		require.Fail(t, "the late flush did not arrive")
	}
	require.Equal(t, before, scalar[string](t, dsn, state))
	put(3)
	require.NoError(t, c.Flush(ctx), "and the instance goes on")
}
