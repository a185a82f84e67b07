package waserver

// How a simulated phone sends: a session with each device of the recipient and of its own user, begun from a bundle of the
// server where there is none; in groups its own sender key, which each device gets once; and again to one device when that
// asks with a retry receipt.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.mau.fi/util/random"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

// sentMessage is a message that may be asked for again.
type sentMessage struct {
	to      types.JID
	message *waE2E.Message
}

// Send sends a message to a user or a group from the user's own phone, and returns its id.
func (u *Contact) Send(to types.JID, message *waE2E.Message) (string, error) {
	return u.primary().send(to, message)
}

// SendText sends a text to a user or a group from the user's own phone, and returns the message's id.
func (u *Contact) SendText(to types.JID, text string) (string, error) {
	return u.Send(to, Conversation(text))
}

// Send sends a message from this simulated device.
func (d *Device) Send(to types.JID, message *waE2E.Message) (string, error) {
	if d.phone == nil {
		return "", errors.New("waserver: a client's device is not simulated")
	}
	return d.phone.send(to, message)
}

// ForgetSession loses this simulated device's session with another device, as if it were restored from nothing.
func (d *Device) ForgetSession(with *Device) {
	if d.phone != nil {
		d.phone.sim.ResetSession(with.LID())
	}
}

// SendPeer sends a message of the account's phone to one of the account's clients, as phones send app-state keys and history.
func (a *Account) SendPeer(to *Device, message *waE2E.Message) (string, error) {
	p, id := a.primary(), newMessageID()
	p.sending.Lock()
	defer p.sending.Unlock()
	enc, err := p.encrypt(to, message)
	if err != nil {
		return "", err
	}
	p.sent[id] = sentMessage{a.pn, message}
	a.server.handleMessage(p.device, nil, &waBinary.Node{
		Tag:     "message",
		Attrs:   waBinary.Attrs{"id": id, "type": "text", "category": "peer", "to": to.PN()},
		Content: []waBinary.Node{*enc},
	})
	return id, nil
}

func newMessageID() string {
	return "3EB0" + strings.ToUpper(fmt.Sprintf("%x", random.Bytes(9)))
}

// send sends a message to a user or a group.
func (p *phone) send(to types.JID, message *waE2E.Message) (string, error) {
	p.sending.Lock()
	defer p.sending.Unlock()
	id := newMessageID()
	var node *waBinary.Node
	var err error
	if to.Server == types.GroupServer {
		node, err = p.groupMessage(id, to, message)
	} else {
		node, to, err = p.directMessage(id, to, message)
	}
	if err != nil {
		return "", err
	}
	p.sent[id] = sentMessage{to, message}
	p.user.server.handleMessage(p.device, nil, node)
	return id, nil
}

// directMessage encrypts a message for each device of a user and for the sender's others.
func (p *phone) directMessage(id string, to types.JID, message *waE2E.Message) (*waBinary.Node, types.JID, error) {
	s := p.user.server
	s.mu.Lock()
	other := s.mu.users[to.ToNonAD()]
	if other == nil {
		s.mu.Unlock()
		return nil, to, fmt.Errorf("waserver: nobody is %s", to)
	}
	server := types.HiddenUserServer
	if p.user.byNumber {
		server = types.DefaultUserServer
	}
	targets := other.devicesLocked()
	if other != p.user {
		targets = append(targets, p.user.devicesLocked()...)
	}
	s.mu.Unlock()
	to = other.in(server)
	copied := &waE2E.Message{DeviceSentMessage: &waE2E.DeviceSentMessage{DestinationJID: proto.String(to.String()), Message: message}}
	var participants []waBinary.Node
	first := false
	for _, d := range targets {
		if d == p.device {
			continue
		}
		content := message
		if d.user == p.user {
			content = copied
		}
		enc, err := p.encrypt(d, content)
		if errors.Is(err, errNoBundle) {
			continue // it has not published its keys yet, and gets nothing
		} else if err != nil {
			return nil, to, err
		}
		first = first || enc.Attrs["type"] == typePreKeyMessage
		participants = append(participants, waBinary.Node{Tag: "to", Attrs: waBinary.Attrs{"jid": d.in(server)}, Content: []waBinary.Node{*enc}})
	}
	node := &waBinary.Node{
		Tag:     "message",
		Attrs:   waBinary.Attrs{"id": id, "type": "text", "to": to},
		Content: []waBinary.Node{{Tag: "participants", Content: participants}},
	}
	return node, to, p.introduce(node, first)
}

// groupMessage encrypts a message for a group, and our sender key for the devices that do not have it.
func (p *phone) groupMessage(id string, to types.JID, message *waE2E.Message) (*waBinary.Node, error) {
	s := p.user.server
	s.mu.Lock()
	group := s.mu.groups[to]
	if group == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("waserver: no group is %s", to)
	}
	targets, server := group.devicesLocked(), group.server()
	s.mu.Unlock()
	distribution, err := p.distribution(to)
	if err != nil {
		return nil, err
	}
	if p.knows[to] == nil {
		p.knows[to] = make(map[*Device]bool)
	}
	var participants []waBinary.Node
	first := false
	for _, d := range targets {
		if d == p.device || p.knows[to][d] || overheard(p.device, d) {
			continue
		}
		enc, err := p.encrypt(d, &waE2E.Message{SenderKeyDistributionMessage: distribution})
		if errors.Is(err, errNoBundle) {
			continue
		} else if err != nil {
			return nil, err
		}
		p.knows[to][d] = true
		first = first || enc.Attrs["type"] == typePreKeyMessage
		participants = append(participants, waBinary.Node{Tag: "to", Attrs: waBinary.Attrs{"jid": d.in(server)}, Content: []waBinary.Node{*enc}})
	}
	plaintext, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	body, err := p.sim.EncryptGroup(to, plaintext)
	if err != nil {
		return nil, err
	}
	node := &waBinary.Node{Tag: "message", Attrs: waBinary.Attrs{"id": id, "type": "text", "to": to}, Content: []waBinary.Node{
		{Tag: "participants", Content: participants},
		{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": "skmsg"}, Content: body},
	}}
	return node, p.introduce(node, first)
}

func (p *phone) distribution(group types.JID) (*waE2E.SenderKeyDistributionMessage, error) {
	skdm, err := p.sim.DistributionMessage(group)
	return &waE2E.SenderKeyDistributionMessage{GroupID: proto.String(group.String()), AxolotlSenderKeyDistributionMessage: skdm}, err
}

// introduce adds the device's signed identity to a message that begins a session.
func (p *phone) introduce(node *waBinary.Node, first bool) error {
	if !first || p.device.id == 0 {
		return nil
	}
	identity, err := p.deviceIdentity()
	node.Content = append(node.GetChildren(), waBinary.Node{Tag: "device-identity", Content: identity})
	return err
}

var errNoBundle = errors.New("waserver: device has no keys")

// encrypt encrypts a message for one device.
func (p *phone) encrypt(d *Device, message *waE2E.Message) (*waBinary.Node, error) {
	if !p.sim.HasSession(d.LID()) {
		if err := p.begin(d, p.user.server.bundle(d)); err != nil {
			return nil, err
		}
	}
	plaintext, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	typ, body, err := p.sim.Encrypt(d.LID(), plaintext)
	return &waBinary.Node{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": typ}, Content: body}, err
}

// begin begins a session. A simulated device that was reinstalled is believed; a client must stay who it is.
func (p *phone) begin(d *Device, b *contact.Bundle) error {
	if b == nil {
		return errNoBundle
	}
	err := p.sim.Process(d.LID(), *b)
	if errors.Is(err, contact.ErrUntrusted) && d.phone != nil {
		p.sim.ResetSession(d.LID())
		err = p.sim.Process(d.LID(), *b)
	}
	return err
}

// sendAgain answers a device's retry receipt.
func (p *phone) sendAgain(d *Device, node *waBinary.Node) error {
	retry := node.GetChildByTag("retry")
	id, count := attrString(&retry, "id"), atoi(attrString(&retry, "count"))
	p.sending.Lock()
	defer p.sending.Unlock()
	known, ok := p.sent[id]
	if !ok {
		return fmt.Errorf("message %s was not sent", id)
	}
	switch keys, ok := node.GetOptionalChildByTag("keys"); {
	case ok:
		b, err := parseKeys(node, &keys)
		if err != nil {
			return err
		}
		if err = p.begin(d, b); err != nil {
			return err
		}
	case count > 1:
		if err := p.begin(d, p.user.server.bundle(d)); err != nil {
			return err
		}
	}
	message := known.message
	from := attrJID(node, "from")
	attrs := waBinary.Attrs{"id": id, "type": "text", "to": from, "device_fanout": "false"}
	switch {
	case from.Server == types.GroupServer:
		distribution, err := p.distribution(from)
		if err != nil {
			return err
		}
		message = proto.CloneOf(message)
		message.SenderKeyDistributionMessage = distribution
		attrs["participant"] = node.Attrs["participant"]
	case d.user == p.user && known.to.ToNonAD() == p.user.pn:
		attrs["category"] = "peer"
	case d.user == p.user:
		message = &waE2E.Message{DeviceSentMessage: &waE2E.DeviceSentMessage{DestinationJID: proto.String(known.to.String()), Message: message}}
		attrs["recipient"] = known.to
	}
	enc, err := p.encrypt(d, message)
	if err != nil {
		return err
	}
	enc.Attrs["count"] = strconv.Itoa(count)
	answer := &waBinary.Node{Tag: "message", Attrs: attrs, Content: []waBinary.Node{*enc}}
	if err = p.introduce(answer, enc.Attrs["type"] == typePreKeyMessage); err != nil {
		return err
	}
	p.user.server.handleMessage(p.device, nil, answer)
	return nil
}

// parseKeys reads the bundle of a retry receipt.
func parseKeys(receipt, keys *waBinary.Node) (*contact.Bundle, error) {
	registration, identity := content(receipt, "registration"), content(keys, "identity")
	skey := keys.GetChildByTag("skey")
	signed, ok := parsePreKey(&skey)
	if !ok || signed.signature == nil || len(registration) != 4 || len(identity) != 32 {
		return nil, errors.New("malformed keys in retry receipt")
	}
	b := &contact.Bundle{
		RegistrationID: binary.BigEndian.Uint32(registration), Identity: [32]byte(identity), SignedPreKey: signed.keyPair(),
	}
	keyNode := keys.GetChildByTag("key")
	if key, ok := parsePreKey(&keyNode); ok {
		b.PreKey = key.keyPair()
	}
	return b, nil
}

func atoi(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}
