package waserver

// What happens to a connection after the handshake, and how it is ended.
//
// A payload with pairing data is a client that wants to be paired: it is shown QR references. One with a user name is a
// device that comes back: its static Noise key must be the one it was paired with, or it gets <failure reason="401">, on
// which the client deletes its store. A second connection of a device replaces the first. Messages start to flow when the
// client says that it is active.

import (
	"strconv"
	"time"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waWa6"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
)

// open begins the conversation after the handshake.
func (c *conn) open(payload *waWa6.ClientPayload) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.failures) > 0 {
		reason := s.mu.failures[0]
		s.mu.failures = s.mu.failures[1:]
		c.dismissLocked(failure(reason))
		return
	}
	if data := payload.GetDevicePairingData(); data != nil {
		reg, ok := parseRegistration(data)
		if !ok || payload.GetPassive() {
			c.refuseLocked("malformed registration")
			return
		}
		c.pairing = reg
		c.offerLocked()
		return
	}
	c.loginLocked(payload)
}

func (c *conn) loginLocked(payload *waWa6.ClientPayload) {
	s := c.server
	jid := types.JID{
		User: strconv.FormatUint(payload.GetUsername(), 10), Device: uint16(payload.GetDevice()), Server: types.DefaultUserServer,
	}
	d := s.findLocked(jid)
	switch {
	case d == nil || d.phone != nil:
		c.refuseLocked("no such device")
		return
	case d.noise != c.secret.client:
		c.refuseLocked("another Noise key than the one that was paired")
		return
	}
	if old := d.conn; old != nil {
		s.mu.stats.Replaced++
		old.dismissLocked(waBinary.Node{Tag: "stream:error", Content: []waBinary.Node{
			{Tag: "conflict", Attrs: waBinary.Attrs{"type": "replaced"}},
		}})
	}
	c.device, d.conn = d, c
	d.logins++
	c.login = d.logins
	s.mu.stats.Logins++
	s.happenedLocked()
	c.send(waBinary.Node{Tag: "success", Attrs: waBinary.Attrs{
		"t": unix(), "lid": d.LID(), "props": "27", "creation": d.paired.Unix(), "location": "local",
	}})
}

// refuseLocked turns a login away for good.
func (c *conn) refuseLocked(why string) {
	c.server.mu.stats.RefusedLogins++
	c.server.log.Warn("waserver: login refused", "why", why)
	c.server.happenedLocked()
	c.dismissLocked(failure(int(events.ConnectFailureLoggedOut)))
}

func failure(reason int) waBinary.Node {
	return waBinary.Node{Tag: "failure", Attrs: waBinary.Attrs{"reason": reason, "location": "local"}}
}

func streamError(code int, children ...waBinary.Node) waBinary.Node {
	return waBinary.Node{Tag: "stream:error", Attrs: waBinary.Attrs{"code": strconv.Itoa(code)}, Content: children}
}

// removed is the stream error of a device that was unlinked.
func removed() waBinary.Node {
	return streamError(401, waBinary.Node{Tag: "conflict", Attrs: waBinary.Attrs{"type": "device_removed"}})
}

// passive answers the iq with which a client asks for its messages, or for none. What waited for it is sent between a
// preview and an end mark, everything that was sent on an earlier connection and not acknowledged included.
func (s *Server) passive(q *query) ([]waBinary.Node, *iqError) {
	_, active := q.node.GetOptionalChildByTag("active")
	q.after = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if q.conn.finished {
			return
		}
		started := active && !q.conn.active
		q.conn.active = active
		if started {
			q.device.flushLocked()
			q.device.welcomeLocked()
		}
		s.happenedLocked()
	}
	return nil, nil
}

// welcomeLocked lets the phone greet a client that is there for the first time.
func (d *Device) welcomeLocked() {
	if d.welcomed {
		return
	}
	linked := d.user.onLinked
	d.welcomed = true
	d.greeting = d.user.server.spawnLocked(func() { d.user.account.greet(d, linked) })
}

// keepAlive answers the client's ping.
func (s *Server) keepAlive(*query) ([]waBinary.Node, *iqError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.stats.KeepAlives++
	return nil, nil
}

func unix() int64 { return time.Now().Unix() }

func unixText() string { return strconv.FormatInt(unix(), 10) }
