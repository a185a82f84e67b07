package waserver

// Info queries. Each namespace has a handler, which answers with the children of the result or with an error; a namespace
// without one is answered with an empty result and counted, so that a test can see what was not simulated.

import (
	"context"
	"encoding/binary"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

// query is an iq of a client.
type query struct {
	conn   *conn
	device *Device // nil before it is paired
	node   *waBinary.Node
	typ    string
	to     types.JID
	after  func() // is run when the answer is in the queue
}

// iqError is an answer that is an error.
type iqError struct {
	code int
	text string
}

var (
	errBadRequest   = &iqError{400, "bad-request"}
	errForbidden    = &iqError{403, "forbidden"}
	errItemNotFound = &iqError{404, "item-not-found"}
	errNotAllowed   = &iqError{405, "not-allowed"}
)

type iqHandler func(q *query) ([]waBinary.Node, *iqError)

// iqHandlers is what answers the namespaces.
func (s *Server) iqHandlers() map[string]iqHandler {
	return map[string]iqHandler{
		"blocklist":              s.blocklist,
		"encrypt":                s.encrypt,
		"md":                     s.multiDevice,
		"passive":                s.passive,
		"privacy":                s.privacy,
		"status":                 s.status,
		"usync":                  s.usync,
		"w:g2":                   s.groupQuery,
		media.Namespace:          s.mediaConn,
		"w:p":                    s.keepAlive,
		"w:profile:picture":      s.profilePicture,
		appstate.Namespace:       s.appState,
		"urn:xmpp:whatsapp:push": func(*query) ([]waBinary.Node, *iqError) { return nil, nil },
	}
}

// unpaired are the namespaces that a client may use before it is paired.
var unpaired = map[string]bool{"md": true, "w:p": true}

// handleIQ handles a query, or the answer to one of ours.
func (c *conn) handleIQ(device *Device, node *waBinary.Node) {
	s := c.server
	typ := attrString(node, "type")
	if typ == "result" || typ == "error" {
		c.answered(node)
		return
	}
	xmlns := attrString(node, "xmlns")
	q := &query{conn: c, device: device, node: node, typ: typ, to: attrJID(node, "to")}
	handler := s.handlers[xmlns]
	var content []waBinary.Node
	var problem *iqError
	switch {
	case device == nil && !unpaired[xmlns]:
		problem = errForbidden
	case handler == nil:
		s.mu.Lock()
		s.mu.stats.UnknownIQs[xmlns]++
		s.mu.Unlock()
		s.log.Info("waserver: unknown iq", "xmlns", xmlns)
	default:
		content, problem = handler(q)
	}
	answer := waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"id": node.Attrs["id"], "from": q.from(), "type": "result"}}
	if problem != nil {
		answer.Attrs["type"] = "error"
		answer.Content = []waBinary.Node{{Tag: "error", Attrs: waBinary.Attrs{"code": problem.code, "text": problem.text}}}
	} else if len(content) > 0 {
		answer.Content = content
	}
	c.send(answer)
	if q.after != nil {
		q.after()
	}
}

func (q *query) from() types.JID {
	if q.to.IsEmpty() {
		return types.ServerJID
	}
	return q.to
}

// ask sends a query of ours to the client. The answer is handled by the goroutine that reads the connection.
func (c *conn) ask(id, xmlns, typ string, content waBinary.Node, answer func(*waBinary.Node)) {
	c.waiting.Lock()
	c.waiting.answers[id] = answer
	c.waiting.Unlock()
	c.send(waBinary.Node{
		Tag:     "iq",
		Attrs:   waBinary.Attrs{"id": id, "from": types.ServerJID, "type": typ, "xmlns": xmlns, "t": unix()},
		Content: []waBinary.Node{content},
	})
}

func (c *conn) answered(node *waBinary.Node) {
	id := attrString(node, "id")
	c.waiting.Lock()
	answer := c.waiting.answers[id]
	delete(c.waiting.answers, id)
	c.waiting.Unlock()
	if answer != nil {
		answer(node)
	}
}

// request sends a query of ours and waits for the answer.
func (c *conn) request(ctx context.Context, id, xmlns, typ string, content waBinary.Node) (*waBinary.Node, error) {
	answer := make(chan *waBinary.Node, 1)
	c.ask(id, xmlns, typ, content, func(node *waBinary.Node) { answer <- node })
	select {
	case node := <-answer:
		return node, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.ctx.Done():
		return nil, errConnectionLost
	}
}

// attrString is an attribute of a node as text, or empty.
func attrString(node *waBinary.Node, key string) string {
	value, _ := node.Attrs[key].(string)
	return value
}

// attrJID is an attribute of a node as a JID, or the empty one.
func attrJID(node *waBinary.Node, key string) types.JID {
	jid, _ := node.Attrs[key].(types.JID)
	return jid
}

// content is the content of a child of a node as bytes. Text that is a token travels as text.
func content(node *waBinary.Node, tags ...string) []byte {
	child := node.GetChildByTag(tags...)
	switch data := child.Content.(type) {
	case []byte:
		return data
	case string:
		return []byte(data)
	default:
		return nil
	}
}

// uint24 is a big-endian number of three bytes.
func uint24(b []byte) uint32 { return binary.BigEndian.Uint32(append([]byte{0}, b...)) }

func bytes24(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n)[1:] }

func bytes32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
