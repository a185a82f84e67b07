package waserver

// Messages, from any device to any others. A message to a user carries one ciphertext for each of the recipient's devices
// and of the sender's others, in <participants>; one to a group carries in <participants> the sender key for each device of
// the members and beside it one ciphertext for all. A ciphertext of its own without participants goes to a single device: the
// answer to a retry receipt, or a message to the sender's own phone (category peer). The server takes the message apart,
// puts what belongs to each device into its mailbox, and acknowledges it, with its own participant hash where it knows of
// other devices than the sender did.

import (
	"crypto/sha256"
	"slices"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"
)

// part is what a message holds for one device.
type part struct {
	jid    types.JID
	device *Device // nil if there is no such device
	encs   []waBinary.Node
	sent   []*Sent // the place of each in the record, nil for a message that no client sent
}

// handleMessage handles a message of a device, which has a connection if it is a client's.
func (s *Server) handleMessage(from *Device, c *conn, node *waBinary.Node) {
	all := s.parts(node)
	if c == nil {
		s.route(from, node, all)
		return
	}
	wrong := s.recordMessage(from, c.login, node, all)
	s.mu.Lock()
	f := s.faultLocked(FromClient, from, node)
	s.mu.stats.Messages++
	resent := false
	if f == nil || f.Action != CutBefore && f.Action != Lose && f.Action != AnswerError {
		resent = s.resentLocked(from, node, all)
	}
	s.mu.Unlock()
	var ack waBinary.Node
	switch {
	case f != nil && f.Action == CutBefore:
		s.mu.Lock()
		c.cutLocked()
		s.mu.Unlock()
		return
	case f != nil && f.Action == Lose:
		return
	case f != nil && f.Action == AnswerError:
		ack = messageAck(node, waBinary.Attrs{"error": f.Code})
	case wrong:
		ack = messageAck(node, waBinary.Attrs{"error": refusedIdentity})
	case resent:
		ack = messageAck(node, nil)
	default:
		ack = messageAck(node, s.route(from, node, all))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f != nil && f.Action == CutAfter {
		c.cutLocked()
		return
	}
	if f != nil && f.Action == WrongPHash {
		ack.Attrs["phash"] = "2:AAAAAAAA"
	}
	c.send(ack)
	if f != nil && f.Action == CutAfterAck {
		c.lingerLocked()
	}
}

// overhear notes what a client sent on a connection that is as good as gone.
func (s *Server) overhear(from *Device, login int, node *waBinary.Node) {
	s.recordMessage(from, login, node, s.parts(node))
}

func messageAck(node *waBinary.Node, extra waBinary.Attrs) waBinary.Node {
	ack := waBinary.Node{Tag: "ack", Attrs: waBinary.Attrs{"class": "message", "id": node.Attrs["id"], "from": node.Attrs["to"], "t": unix()}}
	if participant, ok := node.Attrs["participant"]; ok {
		ack.Attrs["participant"] = participant
	}
	for key, value := range extra {
		ack.Attrs[key] = value
	}
	return ack
}

// resentLocked reports whether a message came before as it is: the client sends the frame again when a connection ends before
// the acknowledgement came.
func (s *Server) resentLocked(from *Device, node *waBinary.Node, all []*part) bool {
	hash := sha256.New()
	for _, p := range all {
		hash.Write([]byte(p.jid.ADString()))
		for _, enc := range p.encs {
			body, _ := enc.Content.([]byte)
			hash.Write(body)
		}
	}
	sum, id := [32]byte(hash.Sum(nil)), attrString(node, "id")
	if from.resends == nil {
		from.resends = make(map[string][32]byte)
	}
	if from.resends[id] == sum {
		s.mu.stats.Resent++
		return true
	}
	from.resends[id] = sum
	return false
}

// parts takes a message apart by recipient. A ciphertext for all members of a group has the empty JID.
func (s *Server) parts(node *waBinary.Node) []*part {
	var all []*part
	participants := node.GetChildByTag("participants")
	for _, to := range participants.GetChildrenByTag("to") {
		all = append(all, &part{jid: attrJID(&to, "jid"), encs: to.GetChildrenByTag("enc")})
	}
	for _, enc := range node.GetChildrenByTag("enc") {
		p := &part{encs: []waBinary.Node{enc}}
		if attrString(&enc, "type") != "skmsg" {
			p.jid = attrJID(node, "to")
			if participant := attrJID(node, "participant"); !participant.IsEmpty() {
				p.jid = participant
			}
		}
		all = append(all, p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range all {
		if !p.jid.IsEmpty() {
			p.device = s.findLocked(p.jid)
		}
	}
	return all
}

// route delivers a message, and returns what the acknowledgement says besides the usual.
func (s *Server) route(from *Device, node *waBinary.Node, all []*part) waBinary.Attrs {
	s.mu.Lock()
	defer s.mu.Unlock()
	to := attrJID(node, "to")
	group := s.mu.groups[to]
	switch {
	case to.Server == types.GroupServer && group == nil:
		return waBinary.Attrs{"error": 404}
	case from.gone:
		return waBinary.Attrs{"error": 401}
	case group != nil && !group.members[from.user]:
		return waBinary.Attrs{"error": 403}
	}
	for _, st := range s.stanzasLocked(from, to, group, node, all) {
		st.target.deliverLocked(&st.stanza)
	}
	s.happenedLocked()
	if from.phone != nil {
		return nil
	}
	return s.checkPHashLocked(from, to, group, node, all)
}

// refusedIdentity is the error of a message or receipt that names another identity than the one that was paired.
const refusedIdentity = 401

// recordMessage puts the ciphertexts of a client's message into the record, and looks at the identities in it: those inside
// of first messages, and the signed one beside them. It reports whether one of them is not what was paired.
func (s *Server) recordMessage(from *Device, login int, node *waBinary.Node, all []*part) (wrong bool) {
	id, to := attrString(node, "id"), attrJID(node, "to")
	first, added, nowhere := false, 0, 0
	for _, p := range all {
		recipient := p.jid
		switch {
		case p.device != nil:
			recipient = p.device.LID()
		case p.jid.IsEmpty():
			recipient = to
		default:
			nowhere++
		}
		for _, enc := range p.encs {
			body, _ := enc.Content.([]byte)
			entry, isNew := s.record.add(from.LID(), recipient, login, id, attrString(&enc, "type"), body)
			p.sent = append(p.sent, entry)
			if isNew {
				added++
			}
			if entry.Type == typePreKeyMessage {
				first = true
				wrong = wrong || entry.registrationID != from.keys.registrationID || entry.identity != from.keys.identity
			}
		}
	}
	if first {
		var signed waAdv.ADVSignedDeviceIdentity
		err := proto.Unmarshal(content(node, "device-identity"), &signed)
		wrong = wrong || err != nil || !validIdentity(&signed, *from.user.primary().sim.IdentityKey().Pub, from.identity())
	}
	_, direct := node.GetOptionalChildByTag("enc")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.stats.Ciphertexts += added
	s.mu.stats.Undeliverable += nowhere
	if wrong {
		s.mu.stats.BadIdentities++
	}
	if direct && attrString(node, "category") != "peer" && (to.Server != types.GroupServer || !attrJID(node, "participant").IsEmpty()) {
		s.mu.stats.RetryAnswers++
	}
	return wrong
}

const typePreKeyMessage = "pkmsg"

// addressed is a stanza and the device that it is for.
type addressed struct {
	stanza
	target *Device
}

// stanzasLocked makes what each device gets.
func (s *Server) stanzasLocked(from *Device, to types.JID, group *Group, node *waBinary.Node, all []*part) []*addressed {
	var out []*addressed
	byDevice := make(map[*Device]*addressed)
	add := func(target *Device, encs []waBinary.Node, sent []*Sent) {
		st := byDevice[target]
		if st == nil {
			st = &addressed{target: target}
			st.node = waBinary.Node{Tag: "message", Attrs: s.deliveryAttrsLocked(from, to, group, target, node)}
			byDevice[target] = st
			out = append(out, st)
		}
		st.sent = append(st.sent, sent...)
		st.node.Content = append(st.node.GetChildren(), encs...)
	}
	for _, p := range all {
		switch {
		case p.device != nil && p.device != from:
			add(p.device, p.encs, p.sent)
		case p.jid.IsEmpty() && group != nil:
			for _, d := range group.devicesLocked() {
				if d != from && !overheard(from, d) {
					add(d, p.encs, p.sent)
				}
			}
		}
	}
	identity, ok := node.GetOptionalChildByTag("device-identity")
	for _, st := range out {
		encs := st.node.GetChildren()
		if ok && attrString(&encs[0], "type") == typePreKeyMessage {
			st.node.Content = slices.Concat(encs, []waBinary.Node{identity})
		}
	}
	return out
}

// overheard reports whether a group message goes from one contact to another. It is not delivered: what no client takes part
// in proves nothing, and hundreds of contacts would spend their time on each other.
func overheard(from, to *Device) bool {
	return from.phone != nil && to.phone != nil && to.user.account == nil
}

// deliveryAttrsLocked are the attributes with which a message reaches a device: who sent it, by the kind of JID by which the
// recipient was addressed, and the other kind beside it unless the sender hides it.
func (s *Server) deliveryAttrsLocked(from *Device, to types.JID, group *Group, target *Device, node *waBinary.Node) waBinary.Attrs {
	attrs := waBinary.Attrs{"id": node.Attrs["id"], "t": unix(), "type": node.Attrs["type"], "notify": from.user.name}
	for _, key := range []string{"category", "edit"} {
		if value, ok := node.Attrs[key]; ok {
			attrs[key] = value
		}
	}
	if group != nil {
		attrs["from"], attrs["participant"], attrs["addressing_mode"] = to, from.in(group.server()), group.addressing
		if group.addressing == types.AddressingModeLID {
			attrs["participant_pn"] = from.user.pn
		} else if !from.user.hidden {
			attrs["participant_lid"] = from.user.lid
		}
		attrs["addressing_mode"] = string(group.addressing)
		return attrs
	}
	attrs["from"] = from.in(to.Server)
	switch {
	case target.user == from.user:
		recipient := attrJID(node, "recipient")
		if recipient.IsEmpty() && attrString(node, "category") != "peer" {
			recipient = to.ToNonAD()
		}
		if !recipient.IsEmpty() {
			attrs["recipient"] = recipient
		}
		if other := s.mu.users[recipient]; other != nil && recipient.Server == types.HiddenUserServer {
			attrs["peer_recipient_pn"] = other.pn
		} else if other != nil && !other.hidden {
			attrs["peer_recipient_lid"] = other.lid
		}
	case to.Server == types.HiddenUserServer:
		attrs["sender_pn"] = from.user.pn
	case !from.user.hidden:
		attrs["sender_lid"] = from.user.lid
	}
	return attrs
}

// checkPHashLocked compares for which devices a message was encrypted with those that there are.
func (s *Server) checkPHashLocked(from *Device, to types.JID, group *Group, node *waBinary.Node, all []*part) waBinary.Attrs {
	if _, ok := node.GetOptionalChildByTag("participants"); !ok {
		return nil
	}
	var expected []types.JID
	if group != nil {
		for _, d := range group.devicesLocked() {
			expected = append(expected, d.in(group.server()))
		}
	} else {
		other := s.mu.users[to.ToNonAD()]
		if other == nil || other == from.user {
			return nil
		}
		for _, d := range append(other.devicesLocked(), from.user.devicesLocked()...) {
			expected = append(expected, d.in(to.Server))
		}
	}
	ours, theirs := participantHash(expected), attrString(node, "phash")
	if group == nil {
		encrypted := []types.JID{from.in(to.Server)}
		for _, p := range all {
			encrypted = append(encrypted, p.jid)
		}
		theirs = participantHash(encrypted)
	}
	if ours == theirs {
		return nil
	}
	s.mu.stats.PHashMismatches++
	return waBinary.Attrs{"phash": ours}
}
