package waserver

// Receipts. A client's receipt for a message stands for the acknowledgement of it, except one that asks for the message
// again (type retry), which is followed by an acknowledgement of its own. Every receipt is acknowledged by the server and
// passed on to the device that sent the message.

import (
	"encoding/binary"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// handleReceipt handles a receipt of a device, which has a connection if it is a client's.
func (s *Server) handleReceipt(from *Device, c *conn, node *waBinary.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to, participant, typ := attrJID(node, "to"), attrJID(node, "participant"), attrString(node, "type")
	if c != nil {
		if f := s.faultLocked(FromClient, from, node); f != nil {
			if f.Action == CutBefore {
				c.cutLocked()
			}
			if f.Action == CutBefore || f.Action == Lose {
				return
			}
		}
		s.receivedLocked(from, node)
		ack := waBinary.Node{Tag: "ack", Attrs: waBinary.Attrs{"class": "receipt", "id": node.Attrs["id"], "from": to, "t": unix()}}
		for _, key := range []string{"type", "participant"} {
			if value, ok := node.Attrs[key]; ok {
				ack.Attrs[key] = value
			}
		}
		c.send(ack)
	}
	attrs := waBinary.Attrs{"id": node.Attrs["id"], "t": unix()}
	if typ != "" {
		attrs["type"] = typ
	}
	sender := to
	if group := s.mu.groups[to]; group != nil {
		attrs["from"], attrs["participant"] = to, from.in(group.server())
		sender = participant
	} else {
		attrs["from"] = from.in(to.Server)
		if recipient, ok := node.Attrs["recipient"]; ok {
			attrs["recipient"] = recipient
		}
	}
	passed := waBinary.Node{Tag: "receipt", Attrs: attrs, Content: node.Content}
	for _, d := range s.receiversLocked(sender, typ) {
		if d != from {
			d.deliverLocked(&stanza{node: passed})
		}
	}
	s.happenedLocked()
}

// receiversLocked are the devices that a receipt is for: the one that sent the message, or all of a user who is told that
// somebody has read it.
func (s *Server) receiversLocked(sender types.JID, typ string) []*Device {
	user := s.mu.users[sender.ToNonAD()]
	switch {
	case user == nil:
		return nil
	case typ == string(types.ReceiptTypeRead) || typ == string(types.ReceiptTypePlayed):
		return user.devicesLocked()
	case user.devices[sender.Device] != nil:
		return []*Device{user.devices[sender.Device]}
	default:
		return nil
	}
}

// receivedLocked takes what a client's receipt stands for out of its mailbox.
func (s *Server) receivedLocked(d *Device, node *waBinary.Node) {
	s.mu.stats.Receipts++
	to, participant := attrJID(node, "to"), attrJID(node, "participant")
	if attrString(node, "type") == string(types.ReceiptTypeRetry) {
		s.mu.stats.RetryReceipts++
		s.retryKeysLocked(d, node)
		return
	}
	if attrString(node, "type") == receiptServerError {
		return // it says something of the message's attachment
	}
	ids := map[string]bool{attrString(node, "id"): true}
	list := node.GetChildByTag("list")
	for _, item := range list.GetChildrenByTag("item") {
		ids[attrString(&item, "id")] = true
	}
	for id := range ids {
		d.takeLocked(true, func(n *waBinary.Node) bool {
			return n.Tag == "message" && attrString(n, "id") == id && attrJID(n, "from") == to && attrJID(n, "participant") == participant
		})
	}
}

// retryKeysLocked looks at the keys in a retry receipt: they must be those of the device that was paired, and the one-time
// pre-key counts as published.
func (s *Server) retryKeysLocked(d *Device, node *waBinary.Node) {
	registration := content(node, "registration")
	if len(registration) != 4 || binary.BigEndian.Uint32(registration) != d.keys.registrationID {
		s.mu.stats.BadIdentities++
	}
	if _, ok := node.GetOptionalChildByTag("keys"); !ok {
		return
	}
	if string(content(node, "keys", "identity")) != string(d.keys.identity[:]) {
		s.mu.stats.BadIdentities++
	}
	keyNode := node.GetChildByTag("keys", "key")
	if key, ok := parsePreKey(&keyNode); ok {
		d.publishLocked(key)
	}
}

// handlePresence takes the push name out of a presence.
func (s *Server) handlePresence(d *Device, node *waBinary.Node) {
	if name := attrString(node, "name"); name != "" {
		s.mu.Lock()
		d.user.name = name
		s.mu.Unlock()
	}
}
