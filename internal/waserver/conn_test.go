package waserver_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// tripper is a function as an [http.RoundTripper].
type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

// hold returns a function that gives the TCP connection which the client made last.
func (c *testClient) hold(server *waserver.Server) func() *net.TCPConn {
	var last net.Conn // set while the client connects
	c.dial(server, func(conn net.Conn) net.Conn {
		last = conn
		return conn
	})
	return func() *net.TCPConn { return last.(*net.TCPConn) }
}

// dial has the client use what wrap makes of its TCP connections.
func (c *testClient) dial(server *waserver.Server, wrap func(net.Conn) net.Conn) {
	transport := &http.Transport{DisableKeepAlives: true}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
	c.SetWebsocketHTTPClient(&http.Client{Transport: tripper(func(request *http.Request) (*http.Response, error) {
		request = request.Clone(request.Context())
		request.URL.Scheme, request.URL.Host = "http", strings.TrimPrefix(server.Endpoint().URL, "http://")
		return transport.RoundTrip(request)
	})})
}

// endless is a connection whose end is not seen for a while.
type endless struct {
	net.Conn
	until <-chan struct{}
}

func (e endless) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if err != nil {
		<-e.until
	}
	return n, err
}

// TestWhatAKilledClientSentIsRecorded resets a connection, as the death of a process does, before the server has read all that
// was sent on it, and lets the server find that out by writing.
func TestWhatAKilledClientSentIsRecorded(t *testing.T) {
	t.Parallel()
	const frames = 6
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.client.Disconnect()
	b.client.EnableAutoReconnect = false
	tcp := b.client.hold(b.server)
	require.NoError(t, b.client.Connect())
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 2 && b.device.Connected() }))
	before := len(b.server.Record().Sent())

	killed, seen := make(chan struct{}), 0
	b.server.Inject(waserver.Fault{
		Direction: waserver.FromClient,
		Match: func(_ *waserver.Device, node *waBinary.Node) bool {
			if node.Tag != "message" {
				return false
			}
			select {
			case <-killed:
			case <-ctx.Done():
			}
			if seen++; seen == 2 {
				time.Sleep(200 * time.Millisecond) // the writer fails to acknowledge the first message
			}
			return false
		},
	})
	for i := range frames {
		body := make([]byte, 5<<10) // more than the server reads at once; all of them are less than the network takes at once
		body[0] = byte(i)
		//nolint:staticcheck // deprecated to warn off bots; this is what it is for
		require.NoError(t, b.client.DangerousInternals().SendNode(ctx, waBinary.Node{
			Tag: "message", Attrs: waBinary.Attrs{"id": b.client.GenerateMessageID(), "to": friend.LID(), "type": "text"},
			Content: []waBinary.Node{{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": "msg"}, Content: body}},
		}))
	}
	require.NoError(t, tcp().SetLinger(0))
	require.NoError(t, tcp().Close())
	close(killed)
	require.NoError(t, b.server.Wait(ctx, func() bool { return !b.device.Connected() }))
	require.Equal(t, frames, len(b.server.Record().Sent())-before)
	require.Zero(t, b.server.Stats().Unread)
}

// TestAConnectionThatIsNotReadToItsEndIsCounted cuts the connection of a client that does not see it, and goes on writing.
func TestAConnectionThatIsNotReadToItsEndIsCounted(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.client.Disconnect()
	b.client.EnableAutoReconnect = false
	until := make(chan struct{})
	b.client.dial(b.server, func(conn net.Conn) net.Conn { return endless{conn, until} })
	require.NoError(t, b.client.Connect())
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 2 && b.device.Connected() }))
	require.Zero(t, b.server.Stats().Unread)
	b.device.Cut()
	require.NoError(t, b.server.Wait(ctx, func() bool { return b.server.Stats().Unread == 1 }))
	close(until)
}
