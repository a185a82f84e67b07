package waserver_test

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waWa6"
	"go.mau.fi/whatsmeow/socket"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// dial opens a connection without a client.
func dial(ctx context.Context, t *testing.T, server *waserver.Server) net.Conn {
	t.Helper()
	ws, response, err := websocket.Dial(ctx, server.Endpoint().URL+"/ws/chat", nil)
	require.NoError(t, err)
	if response.Body != nil {
		require.NoError(t, response.Body.Close())
	}
	t.Cleanup(func() { _ = ws.CloseNow() })
	return websocket.NetConn(ctx, ws, websocket.MessageBinary)
}

// frame is a handshake message as it travels, behind the connection header.
func frame(t *testing.T, header []byte, message *waWa6.HandshakeMessage) []byte {
	t.Helper()
	data, err := proto.Marshal(message)
	require.NoError(t, err)
	return append(append(append([]byte(nil), header...), 0, byte(len(data)>>8), byte(len(data))), data...)
}

func TestHandshakesThatAreRefused(t *testing.T) {
	t.Parallel()
	hello := &waWa6.HandshakeMessage{ClientHello: &waWa6.HandshakeMessage_ClientHello{Ephemeral: keys.NewKeyPair().Pub[:]}}
	for name, messages := range map[string][][]byte{
		"header":    {frame(t, []byte("XY\x06\x03"), hello)},
		"hello":     {frame(t, socket.WAConnHeader, &waWa6.HandshakeMessage{})},
		"low order": {frame(t, socket.WAConnHeader, &waWa6.HandshakeMessage{ClientHello: &waWa6.HandshakeMessage_ClientHello{Ephemeral: make([]byte, 32)}})},
		"finish": {
			frame(t, socket.WAConnHeader, hello),
			frame(t, nil, &waWa6.HandshakeMessage{ClientFinish: &waWa6.HandshakeMessage_ClientFinish{Static: make([]byte, 48), Payload: make([]byte, 48)}}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			server := newServer(t)
			c := dial(ctx, t, server)
			for _, message := range messages {
				_, err := c.Write(message)
				require.NoError(t, err)
			}
			_, err := io.Copy(io.Discard, c) // until the server ends it
			if ctx.Err() != nil {
				require.NoError(t, err)
			}
			require.NoError(t, server.Wait(ctx, func() bool { return server.Stats().RefusedHandshakes == 1 }))
		})
	}
}
