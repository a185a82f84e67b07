package waserver

// Privacy settings, privacy tokens and the block list: kept per account as far as a client asks for them again. A token that
// a client issues to somebody is passed on to that user's devices, as tokens of contacts are to the client.

import (
	"crypto/sha256"
	"encoding/hex"
	"sort"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"go.mau.fi/util/random"
)

// privacyDefaults are the settings of a new account.
var privacyDefaults = map[string]string{
	"groupadd": "all", "last": "all", "status": "all", "profile": "all", "readreceipts": "all", "online": "all", "calladd": "all",
}

// privacy answers questions about settings and takes in tokens.
func (s *Server) privacy(q *query) ([]waBinary.Node, *iqError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	user := q.device.user
	if tokens, ok := q.node.GetOptionalChildByTag("tokens"); ok {
		for _, token := range tokens.GetChildrenByTag("token") {
			user.grantLocked(s.mu.users[attrJID(&token, "jid").ToNonAD()], random.Bytes(16), attrString(&token, "t"))
		}
		return nil, nil
	}
	settings := q.node.GetChildByTag("privacy")
	for _, category := range settings.GetChildrenByTag("category") {
		user.settings[attrString(&category, "name")] = attrString(&category, "value")
	}
	names := make([]string, 0, len(privacyDefaults))
	for name := range privacyDefaults {
		names = append(names, name)
	}
	sort.Strings(names)
	categories := make([]waBinary.Node, len(names))
	for i, name := range names {
		value := user.settings[name]
		if value == "" {
			value = privacyDefaults[name]
		}
		categories[i] = waBinary.Node{Tag: "category", Attrs: waBinary.Attrs{"name": name, "value": value}}
	}
	return []waBinary.Node{{Tag: "privacy", Content: categories}}, nil
}

// grantLocked gives somebody a privacy token of the user.
func (u *Contact) grantLocked(to *Contact, token []byte, t string) {
	if to == nil || to == u {
		return
	}
	for _, d := range to.devicesLocked() {
		d.deliverLocked(&stanza{node: u.server.notificationLocked("privacy_token", u.pn, waBinary.Attrs{"sender_lid": u.lid}, waBinary.Node{
			Tag: "tokens", Content: []waBinary.Node{{Tag: "token", Attrs: waBinary.Attrs{"type": "trusted_contact", "t": t}, Content: token}},
		})})
	}
}

// blocklist answers with the account's block list, after a change if there is one in the query.
func (s *Server) blocklist(q *query) ([]waBinary.Node, *iqError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	user := q.device.user
	if item, ok := q.node.GetOptionalChildByTag("item"); ok {
		if attrString(&item, "action") == "block" {
			user.blocked[attrJID(&item, "jid")] = true
		} else {
			delete(user.blocked, attrJID(&item, "jid"))
		}
	}
	jids := make([]types.JID, 0, len(user.blocked))
	for jid := range user.blocked {
		jids = append(jids, jid)
	}
	sort.Slice(jids, func(i, j int) bool { return jids[i].String() < jids[j].String() })
	hash := sha256.New()
	items := make([]waBinary.Node, len(jids))
	for i, jid := range jids {
		hash.Write([]byte(jid.String()))
		items[i] = waBinary.Node{Tag: "item", Attrs: waBinary.Attrs{"jid": jid}}
	}
	return []waBinary.Node{{Tag: "list", Attrs: waBinary.Attrs{"dhash": hex.EncodeToString(hash.Sum(nil))}, Content: items}}, nil
}
