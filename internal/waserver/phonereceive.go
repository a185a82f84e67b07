package waserver

// What a simulated phone does with a message: decrypt, tell the record what it derived, keep it, send a delivery receipt, and
// answer if it is to. A message that it cannot read is asked for again with a retry receipt, which carries keys for a new
// session, at most five times.

import (
	"errors"
	"time"

	"go.mau.fi/libsignal/ecc"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

// mostRetries is how often a phone asks for a message again.
const mostRetries = 5

// message handles a message.
func (p *phone) message(st *stanza) {
	s, node := p.user.server, &st.node
	chat := attrJID(node, "from")
	author := chat
	if chat.Server == types.GroupServer {
		author = attrJID(node, "participant")
	}
	sender := s.find(author)
	if sender == nil {
		return // it was unlinked meanwhile
	}
	base := Received{
		Device: p.device.LID(), Sender: sender.LID(), Chat: chat.ToNonAD(), ID: attrString(node, "id"),
		FromMe: sender.user == p.user, Peer: attrString(node, "category") == "peer",
	}
	var again error
	for i, enc := range node.GetChildrenByTag("enc") {
		body, _ := enc.Content.([]byte)
		base.Type, base.Retry = attrString(&enc, "type"), atoi(attrString(&enc, "count"))
		plaintext, used, err := p.decrypt(sender, chat, base.Type, body)
		message := &waE2E.Message{}
		if err == nil {
			err = proto.Unmarshal(plaintext, message)
		}
		if i < len(st.sent) {
			s.record.read(st.sent[i], used, err)
		}
		if errors.Is(err, contact.ErrDuplicate) {
			again = err
			continue
		}
		if err == nil {
			err = p.take(base, sender, chat, message)
		}
		if err != nil {
			p.failed(base, node, err)
			return
		}
	}
	if again != nil {
		p.repeated(base, again)
	}
	receipt := waBinary.Node{Tag: "receipt", Attrs: waBinary.Attrs{"id": base.ID, "to": attrJID(node, "from")}}
	for _, key := range []string{"participant", "recipient"} {
		if value, ok := node.Attrs[key]; ok {
			receipt.Attrs[key] = value
		}
	}
	if base.FromMe {
		receipt.Attrs["type"] = string(types.ReceiptTypeSender)
	}
	s.handleReceipt(p.device, nil, &receipt)
}

// decrypt decrypts one ciphertext. A simulated sender that was reinstalled is believed; a client must stay who it is.
func (p *phone) decrypt(sender *Device, chat types.JID, typ string, body []byte) ([]byte, contact.Used, error) {
	if typ == "skmsg" {
		return p.sim.DecryptGroup(chat, sender.LID(), body)
	}
	plaintext, used, err := p.sim.Decrypt(sender.LID(), typ, body)
	if errors.Is(err, contact.ErrUntrusted) && sender.phone != nil {
		p.sim.ResetSession(sender.LID())
		plaintext, used, err = p.sim.Decrypt(sender.LID(), typ, body)
	}
	return plaintext, used, err
}

// take keeps what a message says.
func (p *phone) take(base Received, sender *Device, chat types.JID, message *waE2E.Message) error {
	if skdm := message.GetSenderKeyDistributionMessage(); skdm != nil {
		if err := p.sim.ProcessDistribution(chat, sender.LID(), skdm.GetAxolotlSenderKeyDistributionMessage()); err != nil {
			return err
		}
		message.SenderKeyDistributionMessage = nil
		if proto.Size(message) == 0 {
			return nil
		}
	}
	if copied := message.GetDeviceSentMessage(); copied != nil {
		if to, err := types.ParseJID(copied.GetDestinationJID()); err == nil {
			base.Chat = to
		}
		message = copied.GetMessage()
	}
	p.read[base.key()] = true
	base.Message, base.Text = message, message.GetConversation()
	if base.Text == "" {
		base.Text = message.GetExtendedTextMessage().GetText()
	}
	s := p.user.server
	s.mu.Lock()
	base.Time = time.Now()
	for _, e := range p.user.undecryptable {
		if e.ID == base.ID && e.Sender == base.Sender && e.Device == base.Device {
			e.Recovered = true
		}
	}
	p.user.received = append(p.user.received, base)
	answer, onPeer := p.user.answer, p.user.onPeer
	s.happenedLocked()
	s.mu.Unlock()
	if base.Peer && p.user.account != nil {
		p.user.account.answerPeer(sender, base)
	}
	if base.Peer && onPeer != nil {
		onPeer(base)
	}
	if answer == nil || p.device.id != 0 || base.FromMe || message.GetProtocolMessage() != nil {
		return nil
	}
	if reply := answer(base); reply != nil {
		to := base.Chat
		if to.Server != types.GroupServer {
			to = sender.user.LID()
		}
		if _, err := p.send(to, reply); err != nil {
			s.log.Warn("waserver: contact could not answer", "error", err)
		}
	}
	return nil
}

// key names a message among those of a device.
func (r *Received) key() string { return r.Sender.String() + " " + r.ID }

// repeated notes that a ciphertext came whose key was used before: a message that came twice, or another one that was
// encrypted with the same key. That one is lost, for phones do not ask for it again.
func (p *phone) repeated(base Received, err error) {
	if !p.read[base.key()] {
		p.unread(base, err)
		return
	}
	p.user.server.mu.Lock()
	defer p.user.server.mu.Unlock()
	p.user.duplicates++
	p.user.server.happenedLocked()
}

// unread keeps that a message could not be read.
func (p *phone) unread(base Received, err error) {
	p.user.server.mu.Lock()
	defer p.user.server.mu.Unlock()
	defer p.user.server.happenedLocked()
	for _, e := range p.user.undecryptable {
		if e.ID == base.ID && e.Sender == base.Sender && e.Device == base.Device {
			e.Attempts++
			return
		}
	}
	p.user.undecryptable = append(p.user.undecryptable, &Undecryptable{
		Device: base.Device, Sender: base.Sender, Chat: base.Chat, ID: base.ID, Err: err, Attempts: 1,
	})
}

// failed keeps that a message could not be read, and asks for it again.
func (p *phone) failed(base Received, node *waBinary.Node, err error) {
	s := p.user.server
	p.retries[base.key()]++
	count := p.retries[base.key()]
	p.unread(base, err)
	s.log.Info("waserver: contact cannot read a message", "id", base.ID, "type", base.Type, "attempt", count, "error", err)
	if count > mostRetries {
		return
	}
	keys, err := p.keysNode()
	if err != nil {
		s.log.Error("waserver: keys for a retry receipt", "error", err)
		return
	}
	receipt := waBinary.Node{
		Tag:   "receipt",
		Attrs: waBinary.Attrs{"id": base.ID, "to": node.Attrs["from"], "type": string(types.ReceiptTypeRetry)},
		Content: []waBinary.Node{
			{Tag: "retry", Attrs: waBinary.Attrs{"count": count, "id": base.ID, "t": node.Attrs["t"], "v": 1}},
			{Tag: "registration", Content: bytes32(p.sim.RegistrationID())},
			keys,
		},
	}
	for _, key := range []string{"participant", "recipient"} {
		if value, ok := node.Attrs[key]; ok {
			receipt.Attrs[key] = value
		}
	}
	s.handleReceipt(p.device, nil, &receipt)
}

// AskAgain lets the device that got a message ask for it once more, without keys for a new session, as a client does at first. The answer
// is encrypted on the session that there is.
func (u *Contact) AskAgain(message Received) error {
	d := u.server.find(message.Device)
	if d == nil || d.phone == nil {
		return errors.New("waserver: no simulated device got this message")
	}
	receipt := waBinary.Node{
		Tag:   "receipt",
		Attrs: waBinary.Attrs{"id": message.ID, "to": message.Sender, "type": string(types.ReceiptTypeRetry)},
		Content: []waBinary.Node{
			{Tag: "retry", Attrs: waBinary.Attrs{"count": 1, "id": message.ID, "t": message.Time.Unix(), "v": 1}},
			{Tag: "registration", Content: bytes32(d.phone.sim.RegistrationID())},
		},
	}
	switch {
	case message.Chat.Server == types.GroupServer:
		receipt.Attrs["to"], receipt.Attrs["participant"] = message.Chat, message.Sender
	case message.FromMe:
		receipt.Attrs["recipient"] = message.Chat
	}
	u.server.handleReceipt(d, nil, &receipt)
	return nil
}

// keysNode is a bundle as it travels in a retry receipt.
func (p *phone) keysNode() (waBinary.Node, error) {
	b := p.sim.Bundle()
	identity, err := p.deviceIdentity()
	if err != nil {
		return waBinary.Node{}, err
	}
	return waBinary.Node{Tag: "keys", Content: []waBinary.Node{
		{Tag: "type", Content: []byte{ecc.DjbType}},
		{Tag: "identity", Content: b.Identity[:]},
		preKeyNode("key", b.PreKey),
		preKeyNode("skey", b.SignedPreKey),
		{Tag: "device-identity", Content: identity},
	}}, nil
}

// deviceIdentity is the signed identity of the device: its user's own phone signed it, and it itself.
func (p *phone) deviceIdentity() ([]byte, error) {
	signed, err := signIdentity(p.user.primary().sim.IdentityKey(), p.device)
	if err != nil {
		return nil, err
	}
	signDevice(signed, p.sim.IdentityKey())
	return proto.Marshal(signed)
}

// receipt handles a receipt.
func (p *phone) receipt(node *waBinary.Node) {
	s := p.user.server
	from := attrJID(node, "from")
	if participant := attrJID(node, "participant"); !participant.IsEmpty() {
		from = participant
	}
	d := s.find(from)
	if d == nil {
		return
	}
	typ := attrString(node, "type")
	s.mu.Lock()
	p.user.receipts = append(p.user.receipts, ReceiptSeen{Device: p.device.LID(), From: d.LID(), ID: attrString(node, "id"), Type: typ})
	s.happenedLocked()
	s.mu.Unlock()
	var err error
	switch typ {
	case string(types.ReceiptTypeRetry):
		err = p.sendAgain(d, node)
	case receiptServerError:
		err = p.uploadAgain(d, node)
	}
	if err != nil {
		s.log.Warn("waserver: contact could not honour a receipt", "type", typ, "error", err)
	}
}
