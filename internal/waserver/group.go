package waserver

// Groups: who is in them and what they are called. Members are addressed by LID, or by phone number in groups of the old
// kind. Clients can make groups, change their members and leave them; each change is told to all members' clients.

import (
	"strconv"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// Group is a group.
type Group struct {
	host       *Server
	jid        types.JID
	addressing types.AddressingMode
	created    int64

	// Guarded by Server.mu.
	subject string
	creator *Contact
	order   []*Contact
	members map[*Contact]bool
	version int
}

// GroupConfig says how a group is.
type GroupConfig struct {
	Subject string
	// Addressing is how members are named. Defaults to LID.
	Addressing types.AddressingMode
}

// NewGroup makes a group. Its first member is its admin. Members' clients that are connected are told.
func (s *Server) NewGroup(cfg GroupConfig, members ...*Contact) *Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cfg.Addressing == "" {
		cfg.Addressing = types.AddressingModeLID
	}
	g := s.newGroupLocked(cfg, members)
	g.announceLocked(nil)
	return g
}

func (s *Server) newGroupLocked(cfg GroupConfig, members []*Contact) *Group {
	s.mu.nextNumber++
	n := strconv.Itoa(s.mu.nextNumber)
	g := &Group{
		host: s, jid: types.NewJID("1203630000000000"[:18-len(n)-2]+n, types.GroupServer), addressing: cfg.Addressing, created: unix(),
		subject: cfg.Subject, members: make(map[*Contact]bool), version: 1,
	}
	for _, m := range members {
		g.addLocked(m)
	}
	if len(members) > 0 {
		g.creator = members[0]
	}
	s.mu.groups[g.jid] = g
	return g
}

// JID is the group's JID.
func (g *Group) JID() types.JID { return g.jid }

// server is the server of the JIDs by which members are named.
func (g *Group) server() string {
	if g.addressing == types.AddressingModePN {
		return types.DefaultUserServer
	}
	return types.HiddenUserServer
}

func (g *Group) addLocked(m *Contact) {
	if !g.members[m] {
		g.members[m] = true
		g.order = append(g.order, m)
	}
}

func (g *Group) removeLocked(m *Contact) {
	delete(g.members, m)
	for i, other := range g.order {
		if other == m {
			g.order = append(g.order[:i:i], g.order[i+1:]...)
			return
		}
	}
}

// devicesLocked are the devices of all members.
func (g *Group) devicesLocked() []*Device {
	var all []*Device
	for _, m := range g.order {
		all = append(all, m.devicesLocked()...)
	}
	return all
}

// Add takes somebody into the group.
func (g *Group) Add(m *Contact) { g.change("add", m) }

// Remove takes somebody out of the group.
func (g *Group) Remove(m *Contact) { g.change("remove", m) }

func (g *Group) change(action string, m *Contact) {
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	g.changeLocked(action, nil, m)
}

// changeLocked changes members and tells all of them, those that are gone too, except the device that asked for it.
func (g *Group) changeLocked(action string, by *Device, members ...*Contact) {
	told := append([]*Contact(nil), g.order...)
	for _, m := range members {
		switch action {
		case "add":
			g.addLocked(m)
			told = append(told, m)
		case "remove":
			g.removeLocked(m)
		}
	}
	g.version++
	v := strconv.Itoa(g.version)
	change := waBinary.Node{Tag: action, Attrs: waBinary.Attrs{"v_id": v, "prev_v_id": strconv.Itoa(g.version - 1)}}
	var list []waBinary.Node
	for _, m := range members {
		list = append(list, g.participantLocked(m))
	}
	change.Content = list
	g.tellLocked(told, by, change)
}

// tellLocked sends a group notification to users' clients.
func (g *Group) tellLocked(users []*Contact, by *Device, change waBinary.Node) {
	author := g.creator
	if by != nil {
		author = by.user
	}
	attrs := waBinary.Attrs{"addressing_mode": string(g.addressing)}
	if author != nil {
		attrs["participant"], attrs["participant_pn"] = author.in(g.server()), author.pn
	}
	told := make(map[*Device]bool)
	for _, m := range users {
		for _, d := range m.devicesLocked() {
			if d.phone == nil && d != by && !told[d] {
				told[d] = true
				d.deliverLocked(&stanza{node: g.host.notificationLocked("w:gp2", g.jid, attrs, change)})
			}
		}
	}
}

// announceLocked tells the members of a new group that it is there.
func (g *Group) announceLocked(by *Device) {
	g.tellLocked(g.order, by, waBinary.Node{Tag: "create", Attrs: waBinary.Attrs{"type": "new"}, Content: []waBinary.Node{g.nodeLocked()}})
}

func (g *Group) participantLocked(m *Contact) waBinary.Node {
	node := waBinary.Node{Tag: "participant", Attrs: waBinary.Attrs{"jid": m.in(g.server())}}
	if g.addressing == types.AddressingModeLID {
		node.Attrs["phone_number"] = m.pn
	} else if !m.hidden {
		node.Attrs["lid"] = m.lid
	}
	if m == g.creator {
		node.Attrs["type"] = "superadmin"
	}
	return node
}

func (g *Group) nodeLocked() waBinary.Node {
	attrs := waBinary.Attrs{
		"id": g.jid.User, "subject": g.subject, "s_t": g.created, "creation": g.created, "addressing_mode": string(g.addressing),
		"size": len(g.order), "p_v_id": strconv.Itoa(g.version), "a_v_id": "1",
	}
	if g.creator != nil {
		attrs["creator"], attrs["s_o"] = g.creator.in(g.server()), g.creator.in(g.server())
		attrs["creator_pn"], attrs["s_o_pn"] = g.creator.pn, g.creator.pn
	}
	var children []waBinary.Node
	for _, m := range g.order {
		children = append(children, g.participantLocked(m))
	}
	return waBinary.Node{Tag: "group", Attrs: attrs, Content: children}
}

// groupQuery answers what clients ask about groups and ask to be changed.
func (s *Server) groupQuery(q *query) ([]waBinary.Node, *iqError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	children := q.node.GetChildren()
	if len(children) == 0 {
		return nil, errBadRequest
	}
	action := &children[0]
	if q.to.User == "" {
		return s.groupsQueryLocked(q, action)
	}
	g, me := s.mu.groups[q.to], q.device.user
	if g == nil {
		return nil, errItemNotFound
	}
	if !g.members[me] {
		return nil, errForbidden
	}
	switch action.Tag {
	case "query":
		return []waBinary.Node{g.nodeLocked()}, nil
	case "add", "remove":
		var members []*Contact
		answer := waBinary.Node{Tag: action.Tag}
		var list []waBinary.Node
		for _, p := range action.GetChildrenByTag("participant") {
			if m := s.mu.users[attrJID(&p, "jid").ToNonAD()]; m != nil {
				members = append(members, m)
				list = append(list, g.participantLocked(m))
			}
		}
		answer.Content = list
		g.changeLocked(action.Tag, q.device, members...)
		return []waBinary.Node{answer}, nil
	case "subject":
		g.subject = string(content(q.node, "subject"))
		g.tellLocked(g.order, q.device, waBinary.Node{Tag: "subject", Attrs: waBinary.Attrs{
			"subject": g.subject, "s_t": unix(), "s_o": me.in(g.server()),
		}})
		return nil, nil
	default:
		return nil, nil
	}
}

// groupsQueryLocked answers what is not about one group.
func (s *Server) groupsQueryLocked(q *query, action *waBinary.Node) ([]waBinary.Node, *iqError) {
	me := q.device.user
	switch action.Tag {
	case "participating":
		var groups []waBinary.Node
		for _, g := range s.mu.groups {
			if g.members[me] {
				groups = append(groups, g.nodeLocked())
			}
		}
		return []waBinary.Node{{Tag: "groups", Content: groups}}, nil
	case "create":
		members := []*Contact{me}
		for _, p := range action.GetChildrenByTag("participant") {
			if m := s.mu.users[attrJID(&p, "jid").ToNonAD()]; m != nil {
				members = append(members, m)
			}
		}
		g := s.newGroupLocked(GroupConfig{Subject: attrString(action, "subject"), Addressing: types.AddressingModeLID}, members)
		g.announceLocked(q.device)
		return []waBinary.Node{g.nodeLocked()}, nil
	case "leave":
		for _, item := range action.GetChildrenByTag("group") {
			if g := s.mu.groups[attrJID(&item, "id")]; g != nil {
				g.changeLocked("remove", q.device, me)
			}
		}
		return []waBinary.Node{{Tag: "leave"}}, nil
	default:
		return nil, nil
	}
}
