package waserver

// What a client's device has acknowledged, in the terms of its store: a client that keeps decrypted events has one for every
// ciphertext that it could read, under a hash of the ciphertext, of what kind it is, and of whom it believes the sender to be.

import (
	"crypto/sha256"
	"slices"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// Acknowledged is a ciphertext that a client's device was sent and has acknowledged.
type Acknowledged struct {
	MessageID string
	Type      string // msg, pkmsg or skmsg
	// Read is set if a receipt was the acknowledgement: the client could read the message, or had read it before. If it is not
	// set the client could not, or refused it. Where the answer to a retry receipt waits beside the first message, the older one
	// is acknowledged first.
	Read bool
	// EventKey is what the client's event buffer calls the ciphertext. It is made with the sender's LID, or with the phone number
	// of one who hides it.
	EventKey [32]byte
}

// Acknowledged is what the device has acknowledged of what it was sent, in that order.
func (d *Device) Acknowledged() []Acknowledged {
	d.user.server.mu.Lock()
	defer d.user.server.mu.Unlock()
	return slices.Clone(d.acknowledged)
}

// acknowledgeLocked keeps that a message was acknowledged.
func (d *Device) acknowledgeLocked(message *waBinary.Node, read bool) {
	chat := attrJID(message, "from")
	sender := chat
	if chat.Server == types.GroupServer {
		sender = attrJID(message, "participant")
	}
	_, direct := message.Attrs["sender_lid"]
	_, group := message.Attrs["participant_lid"]
	if from := d.user.server.findLocked(sender); from != nil && (direct || group || from.user == d.user) {
		sender = from.LID()
	}
	for _, enc := range message.GetChildrenByTag("enc") {
		body, _ := enc.Content.([]byte)
		typ := attrString(&enc, "type")
		d.acknowledged = append(d.acknowledged, Acknowledged{
			MessageID: attrString(message, "id"), Type: typ, Read: read, EventKey: eventKey(body, typ, chat, sender),
		})
	}
}

// eventKey is the client's hash of a ciphertext.
func eventKey(body []byte, typ string, chat, sender types.JID) [32]byte {
	kind := "normal\x00"
	switch typ {
	case typePreKeyMessage:
		kind = "prekey\x00"
	case "skmsg":
		kind = "senderkey\x00" + chat.String() + "\x00"
	}
	return sha256.Sum256(slices.Concat(body, []byte("\x00"+kind+sender.String()+"\x00\x00")))
}
