package waserver

// Faults that tests inject. A fault waits for stanzas in one direction that fit it and does its harm to as many of them as it
// says; the rest of the server behaves as always, so a client that is cut off finds everything in its place afterwards. It harms
// nothing on a connection on which the client has not yet asked for its messages: two logins that nothing lies between race
// with each other in the client.

import (
	"time"

	waBinary "go.mau.fi/whatsmeow/binary"
)

// Direction is the way a stanza goes.
type Direction int

// The directions of faults.
const (
	ToClient   Direction = iota // what is delivered from a mailbox: messages, receipts, notifications
	FromClient                  // what a client sends: messages, receipts, acks
)

// Action is what a fault does.
type Action int

// The actions of faults.
const (
	// DeliverTwice sends a stanza to the client twice.
	DeliverTwice Action = iota
	// Late sends a stanza to the client after the fault's delay, so that others overtake it.
	Late
	// Hold keeps a stanza from the client until the fault is released.
	Hold
	// Swap sends a stanza to the client behind the next one, or after the fault's delay if none comes.
	Swap
	// CutBefore breaks the connection before the stanza is sent to the client, or in place of handling what it sent: as far
	// as the server knows it never came.
	CutBefore
	// CutAfter breaks the connection when the stanza was sent to the client and before anything of the client is read, or
	// when what it sent was handled and before it is acknowledged.
	CutAfter
	// CutAfterAck breaks the connection when what the client sent was handled and acknowledged.
	CutAfterAck
	// Lose drops what the client sent: an ack or a receipt that is lost leaves its message in the mailbox, a message is neither
	// delivered nor acknowledged.
	Lose
	// AnswerError acknowledges the client's message with the fault's error code, and does not deliver it.
	AnswerError
	// WrongPHash acknowledges the client's message with a participant hash that is not the client's.
	WrongPHash
)

// DelayDefault is how late a stanza is that a fault makes late.
const DelayDefault = 500 * time.Millisecond

// Fault is a fault that a test injects with [Server.Inject].
type Fault struct {
	Direction Direction
	Action    Action
	// Match chooses the stanzas, by the client's device and the node as it is on the wire. It must not call the server.
	// Defaults to every message.
	Match func(d *Device, node *waBinary.Node) bool
	// Times is how many stanzas are harmed. Defaults to 1; -1 is every one.
	Times int
	// Delay is how late a late stanza is. Defaults to DelayDefault.
	Delay time.Duration
	// Code is the error code of AnswerError.
	Code int

	server *Server
	hits   int
	held   []heldStanza
}

type heldStanza struct {
	device *Device
	stanza *stanza
}

// Messages matches the messages among stanzas.
func Messages(_ *Device, node *waBinary.Node) bool { return node.Tag == "message" }

// Inject puts a fault in place and returns it.
func (s *Server) Inject(f Fault) *Fault {
	if f.Match == nil {
		f.Match = Messages
	}
	if f.Times == 0 {
		f.Times = 1
	}
	if f.Delay == 0 {
		f.Delay = DelayDefault
	}
	f.server = s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.faults = append(s.mu.faults, &f)
	return &f
}

// Hits is how many stanzas the fault has harmed.
func (f *Fault) Hits() int {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	return f.hits
}

// Release ends the fault and sends what it held.
func (f *Fault) Release() {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	f.Times = f.hits
	for _, h := range f.held {
		h.device.releaseLocked(h.stanza)
	}
	f.held = nil
}

// faultLocked is the fault that a stanza meets, if any.
func (s *Server) faultLocked(direction Direction, d *Device, node *waBinary.Node) *Fault {
	if d.conn == nil || !d.conn.active {
		return nil
	}
	for _, f := range s.mu.faults {
		if f.Direction == direction && (f.Times < 0 || f.hits < f.Times) && f.Match(d, node) {
			f.hits++
			s.happenedLocked()
			return f
		}
	}
	return nil
}

// holdsLocked does what a fault does before a stanza is sent, and reports whether it is not to be sent now.
func (f *Fault) holdsLocked(d *Device, st *stanza) bool {
	switch f.Action { //nolint:exhaustive // the others hold nothing
	case Late, Swap:
		st.held, st.swapped = true, f.Action == Swap
		f.server.afterLocked(f.Delay, func() {
			f.server.mu.Lock()
			defer f.server.mu.Unlock()
			if st.held {
				d.releaseLocked(st)
			}
		})
	case Hold:
		st.held = true
		f.held = append(f.held, heldStanza{d, st})
	case CutBefore:
		d.conn.cutLocked()
	default:
		return false
	}
	return true
}

// releaseLocked sends a stanza that was held, if it is still to be sent.
func (d *Device) releaseLocked(st *stanza) {
	st.held, st.swapped = false, false
	if d.conn == nil || !d.conn.active {
		return // it is in the mailbox for the next connection
	}
	for _, waiting := range d.box {
		if waiting == st {
			d.transmitLocked(st)
			return
		}
	}
}
