package waserver

// Devices and what waits for them. Every message, receipt and notification for a client's device stays in its mailbox, in
// order, until the client acknowledges it, and is sent again on the next connection if it does not. An acknowledgement
// takes the oldest stanza that it fits away: the answer to a retry receipt has the id of the message that could not be
// read, and may be in the mailbox before the first one's acknowledgement comes in.

import (
	"errors"
	"time"

	client "go.mau.fi/whatsmeow/appstate"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// Device is a device of a user: a client's, or a simulated one.
type Device struct {
	user   *Contact
	id     uint16
	phone  *phone // what simulates it, nil for a client's device
	noise  [32]byte
	paired time.Time

	// Guarded by Server.mu.
	keys     *keyShelf
	conn     *conn
	box      []*stanza
	gone     bool // unlinked
	logins   int
	welcomed bool                          // took messages once
	greeting bool                          // its phone has not yet sent all that a new client gets
	fetched  map[client.WAPatchName]uint64 // the version of each collection of app state that it was given
	resends  map[string][32]byte           // hash of the last message with an id, to know it when it is sent again

	acknowledged []Acknowledged
}

// stanza is something on its way to a device.
type stanza struct {
	node    waBinary.Node
	sent    []*Sent // the places of its ciphertexts in the record, nil for those that no client sent
	on      *conn   // the connection on which it was last sent
	behind  *upload // the last one before it on that connection
	tries   int
	held    bool // kept back by a fault
	swapped bool // kept back until the next one is sent
}

// PN is the device's JID by phone number.
func (d *Device) PN() types.JID { return d.in(types.DefaultUserServer) }

// LID is the device's JID by LID.
func (d *Device) LID() types.JID { return d.in(types.HiddenUserServer) }

// in is the device's JID on one of the two servers.
func (d *Device) in(server string) types.JID {
	jid := d.user.in(server)
	jid.Device = d.id
	return jid
}

func (d *Device) identity() [32]byte {
	if d.phone != nil {
		return *d.phone.sim.IdentityKey().Pub
	}
	return d.keys.identity
}

// deliverLocked puts a stanza on its way.
func (d *Device) deliverLocked(st *stanza) {
	switch {
	case d.gone:
	case d.phone != nil:
		d.phone.receive(st)
	default:
		d.box = append(d.box, st)
		if d.conn != nil && d.conn.active {
			d.sendLocked(st)
		}
	}
}

// sendLocked sends a stanza on the device's connection, unless a fault stands in the way.
func (d *Device) sendLocked(st *stanza) {
	c := d.conn
	f := d.user.server.faultLocked(ToClient, d, &st.node)
	if f != nil && f.holdsLocked(d, st) {
		return
	}
	d.transmitLocked(st)
	if f == nil {
		return
	}
	switch f.Action { //nolint:exhaustive // the others do nothing after a stanza was sent
	case DeliverTwice:
		c.send(st.node)
		d.user.server.mu.stats.Duplicated++
	case CutAfter:
		c.lingerLocked()
	}
}

func (d *Device) transmitLocked(st *stanza) {
	c, s := d.conn, d.user.server
	if st.tries++; st.tries > 1 {
		s.mu.stats.Redelivered++
	}
	st.on, st.behind = c, c.answeredLocked()
	if st.tries > 1 {
		again := waBinary.Node{Tag: st.node.Tag, Attrs: waBinary.Attrs{"offline": st.tries - 1}, Content: st.node.Content}
		for key, value := range st.node.Attrs {
			again.Attrs[key] = value
		}
		c.send(again)
	} else {
		c.send(st.node)
	}
	for _, other := range d.box {
		if other.swapped && other != st {
			other.swapped, other.held = false, false
			if d.conn != nil {
				d.transmitLocked(other)
			}
			return
		}
	}
}

// flushLocked sends everything that waits, between a preview and an end mark.
func (d *Device) flushLocked() {
	waiting := make([]*stanza, 0, len(d.box))
	count := map[string]int{}
	for _, st := range d.box {
		if st.swapped { // the one that was to overtake it has not come
			st.swapped, st.held = false, false
		}
		if st.on != d.conn && !st.held {
			waiting = append(waiting, st)
			count[st.node.Tag]++
		}
	}
	ib := func(tag string, attrs waBinary.Attrs) waBinary.Node {
		return waBinary.Node{Tag: "ib", Attrs: waBinary.Attrs{"from": types.ServerJID}, Content: []waBinary.Node{{Tag: tag, Attrs: attrs}}}
	}
	c := d.conn
	if len(waiting) > 0 {
		c.send(ib("offline_preview", waBinary.Attrs{
			"count": len(waiting), "appdata": 0, "message": count["message"], "notification": count["notification"], "receipt": count["receipt"],
		}))
	}
	for _, st := range waiting {
		if d.conn != c {
			return // a fault cut it
		}
		d.sendLocked(st)
	}
	c.send(ib("offline", waBinary.Attrs{"count": len(waiting)}))
}

// takeLocked takes the oldest stanza away that was sent and fits, for an acknowledgement which says that it was read or not.
func (d *Device) takeLocked(read bool, fits func(*waBinary.Node) bool) {
	for i, st := range d.box {
		if st.on != nil && fits(&st.node) {
			d.box = append(d.box[:i:i], d.box[i+1:]...)
			st.behind.seenLocked()
			if st.node.Tag == "message" {
				d.acknowledgeLocked(&st.node, read)
			}
			d.user.server.happenedLocked()
			return
		}
	}
}

// handleAck handles a client's acknowledgement.
func (s *Server) handleAck(d *Device, node *waBinary.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.faultLocked(FromClient, d, node); f != nil {
		if f.Action == CutBefore && d.conn != nil {
			d.conn.cutLocked()
		}
		if f.Action == CutBefore || f.Action == Lose {
			return
		}
	}
	class, id, to := attrString(node, "class"), attrString(node, "id"), attrJID(node, "to")
	participant := attrJID(node, "participant")
	if code := attrString(node, "error"); code != "" {
		s.mu.stats.Nacks++
		s.log.Warn("waserver: client refused a stanza", "class", class, "error", code)
	}
	s.mu.stats.Acks++
	d.takeLocked(false, func(n *waBinary.Node) bool {
		return n.Tag == class && attrString(n, "id") == id && attrJID(n, "from") == to && attrJID(n, "participant") == participant &&
			(class != "receipt" || attrString(n, "type") == attrString(node, "type"))
	})
}

// unlinkLocked takes a device out of its account: nothing reaches it any more and it cannot log in.
func (d *Device) unlinkLocked() {
	if d.gone {
		return
	}
	d.gone, d.box = true, nil
	delete(d.user.devices, d.id)
	d.user.server.mu.stats.Unlinked++
	d.user.server.happenedLocked()
	if d.user.account != nil {
		d.user.account.ownDevicesChangedLocked(nil)
	}
}

// Connected reports whether the device's client is logged in and takes messages.
func (d *Device) Connected() bool {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	return d.conn != nil && d.conn.active
}

// Logins is how often the device has logged in.
func (d *Device) Logins() int {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	return d.logins
}

// Pending is how many stanzas the device has not acknowledged, or messages among them.
func (d *Device) Pending() (stanzas, messages int) {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	for _, st := range d.box {
		if st.node.Tag == "message" {
			messages++
		}
	}
	return len(d.box), messages
}

// PreKeys is how many one-time pre-keys of the device the server still has.
func (d *Device) PreKeys() int {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	return len(d.keys.free)
}

// SpendPreKeys hands out all but so many of the device's one-time pre-keys to nobody, as if many people had asked.
func (d *Device) SpendPreKeys(left int) {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	if spent := len(d.keys.free) - left; spent > 0 {
		d.takePreKeysLocked(spent)
	}
	d.askForPreKeysLocked()
}

// Cut breaks the device's connection as a network would. What the client sent and the server has not read is lost.
func (d *Device) Cut() {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	if d.conn != nil {
		d.conn.cutLocked()
	}
}

// ErrNotConnected is the answer when something is to be sent on a connection that is not there.
var ErrNotConnected = errors.New("waserver: device is not connected")

// StreamError ends the device's connection with a stream error, 503 for example, or 515.
func (d *Device) StreamError(code int) error {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	if d.conn == nil {
		return ErrNotConnected
	}
	d.conn.dismissLocked(streamError(code))
	return nil
}

// Unlink removes the device as its owner's phone does. A client that is connected is told; one that is not is refused when
// it comes back. Either way it deletes its store.
func (d *Device) Unlink() {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	if d.conn != nil {
		d.conn.dismissLocked(removed())
	}
	d.unlinkLocked()
}
