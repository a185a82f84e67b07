package waserver

// One connection. A reading goroutine handles what the client sends, in order, and a writing goroutine sends what is put into
// an unbounded queue, so that nobody ever waits for a slow client. Closing comes through the queue too, behind what is in
// it, unless the connection is cut, which is at once.

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waWa6"
)

const handshakeTimeout = 20 * time.Second

var errEmptyFrame = errors.New("empty frame")

// tcpKey is where a request's context has the connection under it.
type tcpKey struct{}

// conn is a client's connection.
type conn struct {
	server *Server
	tcp    *net.TCPConn
	socket *websocket.Conn
	rw     net.Conn
	secret *handshaken
	login  int // which login of the device it is, counted from 1; used by the reading goroutine
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by Server.mu.
	device   *Device       // who it is, once logged in
	pairing  *registration // what an unpaired client said of itself
	active   bool          // the client asked for its messages
	upload   *upload       // the last one of pre-keys
	deaf     bool          // what comes in goes into the record and nowhere else: as far as the client can tell it was lost
	finished bool          // nothing but the end of the connection comes any more
	ended    time.Time     // since when that is so

	out struct {
		sync.Mutex
		queue []outgoing
		ready chan struct{}
	}
	waiting struct {
		sync.Mutex
		answers map[string]func(*waBinary.Node)
	}
}

type outgoing struct {
	node waBinary.Node
	end  bool
}

// serveChat is the WebSocket endpoint.
func (s *Server) serveChat(w http.ResponseWriter, r *http.Request) {
	if status := s.takeRejection(); status != 0 {
		w.WriteHeader(status)
		return
	}
	// The client's Origin is that of the real service.
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		s.log.Warn("waserver: WebSocket refused", "error", err)
		return
	}
	tcp, _ := r.Context().Value(tcpKey{}).(*net.TCPConn)
	c := &conn{server: s, tcp: tcp, socket: socket}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	c.out.ready = make(chan struct{}, 1)
	c.waiting.answers = make(map[string]func(*waBinary.Node))
	done := make(chan struct{})
	if !s.spawn(func() { defer close(done); c.serve() }) {
		_ = socket.CloseNow()
		return
	}
	<-done
}

func (s *Server) takeRejection() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.stats.Connections++
	if len(s.mu.rejections) == 0 {
		return 0
	}
	status := s.mu.rejections[0]
	s.mu.rejections = s.mu.rejections[1:]
	return status
}

// serve runs the connection until it ends.
func (c *conn) serve() {
	s := c.server
	defer func() {
		c.cancel()
		_ = c.socket.CloseNow()
		s.mu.Lock()
		delete(s.mu.conns, c)
		c.forgetOffersLocked()
		c.leaveLocked()
		s.happenedLocked()
		s.mu.Unlock()
	}()
	s.mu.Lock()
	s.mu.conns[c] = struct{}{}
	s.mu.Unlock()
	c.rw = websocket.NetConn(c.ctx, c.socket, websocket.MessageBinary)
	_ = c.rw.SetDeadline(time.Now().Add(handshakeTimeout))
	secret, err := s.identity.handshake(c.rw)
	if err != nil {
		s.log.Warn("waserver: handshake refused", "error", err)
		s.mu.Lock()
		s.mu.stats.RefusedHandshakes++
		s.mu.Unlock()
		return
	}
	_ = c.rw.SetDeadline(time.Time{})
	c.secret = secret
	if !s.spawn(c.write) {
		return
	}
	c.open(secret.payload)
	c.over(c.read())
}

// over notes why a connection is over. If it was not its client that ended it, then the client may have sent what was not read.
func (c *conn) over(why error) {
	s := c.server
	s.log.Debug("waserver: connection ended", "error", why)
	if errors.Is(why, io.EOF) || errors.Is(why, io.ErrUnexpectedEOF) || errors.Is(why, syscall.ECONNRESET) || s.ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.stats.Unread++
}

// read handles what comes in until the connection ends, and returns why it did.
func (c *conn) read() error {
	for counter := uint32(0); ; counter++ {
		frame, err := readFrame(c.rw)
		if err != nil {
			return err
		}
		plaintext, err := c.secret.toServer.Open(nil, nonce(counter), frame, nil)
		if err != nil {
			return err
		}
		if len(plaintext) == 0 {
			return errEmptyFrame
		}
		data, err := waBinary.Unpack(plaintext)
		if err != nil {
			return err
		}
		node, err := waBinary.Unmarshal(data)
		if err != nil {
			return err
		}
		c.server.mu.Lock()
		ignore, device := c.deaf, c.device
		c.server.mu.Unlock()
		switch {
		case !ignore:
			c.handle(node)
			c.server.happened()
		case device != nil && node.Tag == "message":
			c.server.overhear(device, c.login, node)
		}
	}
}

// write sends what is in the queue until the connection ends. When the client is gone nothing can be sent any more, but what it
// sent before that may still wait to be read: the reader comes to the end of that by itself.
func (c *conn) write() {
	counter := uint32(0)
	for {
		select {
		case <-c.out.ready:
		case <-c.ctx.Done():
			return
		}
		c.out.Lock()
		queue := c.out.queue
		c.out.queue = nil
		c.out.Unlock()
		for _, next := range queue {
			if next.end {
				c.hangUp()
				return
			}
			data, err := waBinary.Marshal(next.node)
			if err != nil {
				c.server.log.Error("waserver: malformed node", "error", err)
				c.hangUp()
				return
			}
			if err = writeFrame(c.rw, c.secret.toClient.Seal(nil, nonce(counter), data, nil)); err != nil {
				c.server.log.Debug("waserver: write failed", "error", err)
				return
			}
			counter++
		}
	}
}

// hangUp ends the connection as seen by the client, and goes on reading for as long as the client writes, so that the record
// has all that it sent: a key is used when its ciphertext leaves, whoever gets it.
func (c *conn) hangUp() {
	c.server.mu.Lock()
	c.deaf = true
	c.server.mu.Unlock()
	if c.tcp.CloseWrite() == nil {
		select {
		case <-c.ctx.Done():
		case <-time.After(c.server.cfg.Grace):
		}
	}
	_ = c.socket.CloseNow()
}

// send puts nodes into the queue. It never blocks.
func (c *conn) send(nodes ...waBinary.Node) {
	out := make([]outgoing, len(nodes))
	for i, node := range nodes {
		out[i].node = node
	}
	c.enqueue(out)
}

// finish ends the connection once everything in the queue is sent.
func (c *conn) finish() { c.enqueue([]outgoing{{end: true}}) }

func (c *conn) enqueue(out []outgoing) {
	c.out.Lock()
	c.out.queue = slices.Concat(c.out.queue, out)
	c.out.Unlock()
	select {
	case c.out.ready <- struct{}{}:
	default:
	}
}

// dismissLocked sends the last nodes of a connection, ignores what still comes in, and ends it a while later. The client handles nodes in a loop that
// the end of its connection stops, so a node that is read together with the end may never be handled.
func (c *conn) dismissLocked(nodes ...waBinary.Node) {
	c.deaf = true
	c.leaveLocked()
	c.send(nodes...)
	c.server.afterLocked(c.server.cfg.Grace, c.finish)
}

// cutLocked ends the connection at once, as a broken network would. What the client has sent and is not handled yet is lost,
// but for the record.
func (c *conn) cutLocked() {
	c.deaf = true
	c.leaveLocked()
	c.finish()
}

// leaveLocked ends that the connection is its device's.
func (c *conn) leaveLocked() {
	if !c.finished {
		c.finished, c.ended = true, time.Now()
	}
	c.active = false
	if c.device != nil && c.device.conn == c {
		c.device.conn = nil
	}
}

// lingerLocked ends the connection as a broken network would, but only when the client has had the time to read what is in
// the queue and to handle it. Nothing that comes in is handled any more.
func (c *conn) lingerLocked() {
	const toRead = 50 * time.Millisecond
	c.deaf = true
	c.leaveLocked()
	c.server.afterLocked(toRead, c.finish)
}

// handle handles one node of the client.
func (c *conn) handle(node *waBinary.Node) {
	s := c.server
	s.mu.Lock()
	device := c.device
	s.mu.Unlock()
	switch {
	case node.Tag == "iq":
		c.handleIQ(device, node)
	case node.Tag == "chatstate" || node.Tag == "ib" || device == nil && node.Tag == "ack":
		// Nobody in here looks at them.
	case device == nil:
		s.unknown(node.Tag)
	case node.Tag == "message":
		s.handleMessage(device, c, node)
	case node.Tag == "receipt":
		s.handleReceipt(device, c, node)
	case node.Tag == "ack":
		s.handleAck(device, node)
	case node.Tag == "presence":
		s.handlePresence(device, node)
	default:
		s.unknown(node.Tag)
	}
}

func (s *Server) unknown(tag string) {
	s.mu.Lock()
	s.mu.stats.UnknownNodes[tag]++
	s.mu.Unlock()
	s.log.Warn("waserver: unknown node", "tag", tag)
}

// registration is what a client that is to be paired says of itself.
type registration struct {
	registrationID uint32
	identity       [32]byte
	signed         preKey
}

func parseRegistration(data *waWa6.ClientPayload_DevicePairingRegistrationData) (*registration, bool) {
	if len(data.GetERegid()) != 4 || len(data.GetEIdent()) != 32 || len(data.GetESkeyID()) != 3 ||
		len(data.GetESkeyVal()) != 32 || len(data.GetESkeySig()) != 64 {
		return nil, false
	}
	signature := [64]byte(data.GetESkeySig())
	return &registration{
		registrationID: binary.BigEndian.Uint32(data.GetERegid()),
		identity:       [32]byte(data.GetEIdent()),
		signed:         preKey{id: uint24(data.GetESkeyID()), public: [32]byte(data.GetESkeyVal()), signature: &signature},
	}, true
}
