package waserver

// Users and the questions about them: which devices somebody has, which LID belongs to a phone number, who is on WhatsApp.
// The answers name a user as the question did, by phone number or by LID.

import (
	"crypto/sha256"
	"encoding/base64"
	"sort"
	"strconv"
	"strings"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// find is the device with a JID by phone number or LID, or nil.
func (s *Server) find(jid types.JID) *Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(jid)
}

func (s *Server) findLocked(jid types.JID) *Device {
	user := s.mu.users[jid.ToNonAD()]
	if user == nil {
		return nil
	}
	return user.devices[jid.Device]
}

// in is the user's JID on one of the two servers.
func (u *Contact) in(server string) types.JID {
	if server == types.HiddenUserServer {
		return u.lid
	}
	return u.pn
}

// devicesLocked are the user's devices in the order of their ids.
func (u *Contact) devicesLocked() []*Device {
	all := make([]*Device, 0, len(u.devices))
	for _, d := range u.devices {
		all = append(all, d)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all
}

// usync answers questions about many users at once.
func (s *Server) usync(q *query) ([]waBinary.Node, *iqError) {
	asked, ok1 := q.node.GetOptionalChildByTag("usync", "query")
	list, ok2 := q.node.GetOptionalChildByTag("usync", "list")
	if !ok1 || !ok2 {
		return nil, errBadRequest
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var users []waBinary.Node
	for _, wanted := range list.GetChildrenByTag("user") {
		users = append(users, s.usyncUserLocked(&wanted, asked.GetChildren()))
	}
	u := q.node.GetChildByTag("usync")
	return []waBinary.Node{{Tag: "usync", Attrs: waBinary.Attrs{
		"sid": u.Attrs["sid"], "mode": u.Attrs["mode"], "last": "true", "index": "0", "context": u.Attrs["context"],
	}, Content: []waBinary.Node{{Tag: "result"}, {Tag: "list", Content: users}}}}, nil
}

func (s *Server) usyncUserLocked(wanted *waBinary.Node, asked []waBinary.Node) waBinary.Node {
	jid := attrJID(wanted, "jid")
	phone := string(content(wanted, "contact"))
	if jid.IsEmpty() {
		number, _, _ := strings.Cut(strings.TrimPrefix(phone, "+"), "@")
		jid = types.NewJID(number, types.DefaultUserServer)
	}
	user := s.mu.users[jid.ToNonAD()]
	node := waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid}}
	if user != nil && phone != "" {
		node.Attrs["jid"], node.Attrs["pn_jid"] = user.lid, user.pn
	}
	var answers []waBinary.Node
	for _, question := range asked {
		answers = append(answers, user.usyncAnswerLocked(question.Tag, phone))
	}
	node.Content = answers
	return node
}

// usyncAnswerLocked answers one question about a user, who may be nil.
func (u *Contact) usyncAnswerLocked(question, phone string) waBinary.Node {
	answer := waBinary.Node{Tag: question}
	switch {
	case question == "contact":
		answer.Attrs = waBinary.Attrs{"type": "out"}
		if u != nil {
			answer.Attrs["type"] = "in"
		}
		answer.Content = []byte(phone)
	case u == nil:
	case question == "devices":
		answer.Content = []waBinary.Node{u.deviceListLocked()}
	case question == "lid":
		answer.Attrs = waBinary.Attrs{"val": u.lid}
	case question == "status":
		answer.Content = []byte(u.about)
	}
	return answer
}

func (u *Contact) deviceListLocked() waBinary.Node {
	var list []waBinary.Node
	for _, d := range u.devicesLocked() {
		node := waBinary.Node{Tag: "device", Attrs: waBinary.Attrs{"id": strconv.Itoa(int(d.id))}}
		if d.id != 0 {
			node.Attrs["key-index"] = strconv.Itoa(int(d.id))
		}
		list = append(list, node)
	}
	return waBinary.Node{Tag: "device-list", Content: list}
}

// participantHash is the hash by which a client and the server compare for which devices a message was encrypted.
func participantHash(devices []types.JID) string {
	names := make([]string, len(devices))
	for i, jid := range devices {
		names[i] = jid.ADString()
	}
	sort.Strings(names)
	sum := sha256.Sum256([]byte(strings.Join(names, "")))
	return "2:" + base64.RawStdEncoding.EncodeToString(sum[:6])
}

// status answers to a change of the about text.
func (s *Server) status(q *query) ([]waBinary.Node, *iqError) {
	if text := content(q.node, "status"); text != nil && q.typ == "set" {
		s.mu.Lock()
		q.device.user.about = string(text)
		s.mu.Unlock()
	}
	return nil, nil
}

// profilePicture answers that nobody has one.
func (s *Server) profilePicture(*query) ([]waBinary.Node, *iqError) { return nil, errItemNotFound }
