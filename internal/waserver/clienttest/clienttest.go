// Package clienttest connects an unmodified client to a function that answers its info queries and to a handler that
// answers its media requests, and to nothing else: no login, no messages. With it the parts of the stand-in server are
// tested by the client's own code, each without the others.
package clienttest

// The Noise handshake is left out. Both ends derive the keys of the connection from a handshake in which nothing was
// said, and the socket that results is put into the client through reflection, since the client makes its own otherwise.

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	signallogger "go.mau.fi/libsignal/logger"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/socket"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/util/gcmutil"
	waLog "go.mau.fi/whatsmeow/util/log"
)

func init() {
	signallogger.Debug() // libsignal makes its default logger at the first use, without a lock
}

// Answer answers an info query.
type Answer func(iq *waBinary.Node) waBinary.Node

// Connect makes a client of a device and connects it until the test ends.
func Connect(t testing.TB, device *store.Device, answer Answer, files http.Handler) *whatsmeow.Client {
	t.Helper()
	server := httptest.NewServer(serve(t, answer))
	t.Cleanup(server.Close)
	client := whatsmeow.NewClient(device, nil)
	client.EnableAutoReconnect = false
	client.SetMediaHTTPClient(&http.Client{Transport: inMemory{files}})

	frames := socket.NewFrameSocket(waLog.Noop, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}})
	frames.URL = "ws" + strings.TrimPrefix(server.URL, "http")
	require.NoError(t, frames.Connect(context.Background()))
	handshake := socket.NewNoiseHandshake()
	handshake.Start(socket.NoiseStartPattern, nil)
	internals := client.DangerousInternals() //nolint:staticcheck // deprecated to warn off bots; this is what it is for
	connection, err := handshake.Finish(context.Background(), frames,
		internals.MakeFrameHandler(make(chan *waBinary.Node, 1)), internals.OnDisconnect)
	require.NoError(t, err)
	field := reflect.ValueOf(client).Elem().FieldByName("socket")
	*(**socket.NoiseSocket)(unsafe.Pointer(field.UnsafeAddr())) = connection
	t.Cleanup(client.Disconnect)
	return client
}

// inMemory hands requests to a handler without a network.
type inMemory struct{ http.Handler }

// RoundTrip implements [http.RoundTripper].
func (m inMemory) RoundTrip(request *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	m.ServeHTTP(recorder, request)
	response := recorder.Result()
	response.Request = request
	return response, nil
}

// direction is the cipher of one direction and how many frames it has sealed.
type direction struct {
	cipher.AEAD
	count uint32
}

func (d *direction) nonce() []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint32(nonce[8:], d.count)
	d.count++
	return nonce
}

// serve is the other end of the connection.
func serve(t testing.TB, answer Answer) http.HandlerFunc {
	keys, err := hkdf.Key(sha256.New, nil, []byte(socket.NoiseStartPattern), "", 64)
	require.NoError(t, err)
	in, err := gcmutil.Prepare(keys[:32])
	require.NoError(t, err)
	out, err := gcmutil.Prepare(keys[32:])
	require.NoError(t, err)
	return func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow() //nolint:errcheck // it is closed already, by the client
		conn.SetReadLimit(socket.FrameMaxSize)
		fromClient, toClient := &direction{AEAD: in}, &direction{AEAD: out}
		header := len(socket.WAConnHeader)
		for {
			_, message, err := conn.Read(context.Background())
			if err != nil {
				return // the client has gone
			}
			frame := message[header+socket.FrameLengthSize:]
			header = 0
			node, err := read(fromClient, frame)
			if err != nil {
				t.Error(err)
				return
			}
			if node.Tag != "iq" {
				continue
			}
			reply, err := waBinary.Marshal(answer(node))
			if err != nil {
				t.Error(err)
				return
			}
			sealed := toClient.Seal(nil, toClient.nonce(), reply, nil)
			length := []byte{byte(len(sealed) >> 16), byte(len(sealed) >> 8), byte(len(sealed))}
			if err = conn.Write(context.Background(), websocket.MessageBinary, append(length, sealed...)); err != nil {
				return // the client has gone
			}
		}
	}
}

func read(from *direction, frame []byte) (*waBinary.Node, error) {
	plaintext, err := from.Open(nil, from.nonce(), frame, nil)
	if err != nil {
		return nil, err
	}
	unpacked, err := waBinary.Unpack(plaintext)
	if err != nil {
		return nil, err
	}
	return waBinary.Unmarshal(unpacked)
}
