package waserver

// Receipts. A client's receipt that a message was delivered (of no type, inactive, or sender for one of the client's own user)
// stands for the acknowledgement of it. Others do not: one that asks for the message again (type retry) is followed by an
// acknowledgement of its own; that a message was read, or that a message of the phone was taken (peer_msg, hist_sync), is told
// beside the delivery. Every receipt is acknowledged by the server and
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
		ack := waBinary.Node{Tag: "ack", Attrs: waBinary.Attrs{"class": "receipt", "id": node.Attrs["id"], "from": to, "t": unix()}}
		for _, key := range []string{"type", "participant"} {
			if value, ok := node.Attrs[key]; ok {
				ack.Attrs[key] = value
			}
		}
		if !s.receivedLocked(from, node) {
			ack.Attrs["error"] = refusedIdentity
			c.send(ack)
			return
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

// receivedLocked takes what a client's receipt stands for out of its mailbox. It reports false for one that is refused.
func (s *Server) receivedLocked(d *Device, node *waBinary.Node) bool {
	s.mu.stats.Receipts++
	to, participant := attrJID(node, "to"), attrJID(node, "participant")
	if attrString(node, "type") == string(types.ReceiptTypeRetry) {
		s.mu.stats.RetryReceipts++
		return s.retryKeysLocked(d, node)
	}
	switch types.ReceiptType(attrString(node, "type")) { //nolint:exhaustive // the others say something else of a message
	case types.ReceiptTypeDelivered, types.ReceiptTypeInactive, types.ReceiptTypeSender:
	default:
		return true
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
	return true
}

// retryKeysLocked looks at the keys in a retry receipt, and reports whether they are those of the device that was paired. The
// one-time pre-key counts as published, and as handed out to whom the receipt is for.
func (s *Server) retryKeysLocked(d *Device, node *waBinary.Node) bool {
	registration := content(node, "registration")
	keys, withKeys := node.GetOptionalChildByTag("keys")
	if len(registration) != 4 || binary.BigEndian.Uint32(registration) != d.keys.registrationID ||
		withKeys && string(content(&keys, "identity")) != string(d.keys.identity[:]) {
		s.mu.stats.BadIdentities++
		return false
	}
	keyNode, signedNode := keys.GetChildByTag("key"), keys.GetChildByTag("skey")
	if key, ok := parsePreKey(&keyNode); ok {
		d.publishLocked(key, nil)
	}
	if signed, ok := parsePreKey(&signedNode); ok {
		d.signLocked(signed)
	}
	return true
}

// handlePresence takes the push name out of a presence.
func (s *Server) handlePresence(d *Device, node *waBinary.Node) {
	if name := attrString(node, "name"); name != "" {
		s.mu.Lock()
		d.user.name = name
		s.mu.Unlock()
	}
}
