package waserver

// Pre-keys of clients: the signed one, and one-time ones of which each is handed out once, in the order in which they were
// uploaded. Everything a device ever published is remembered. An id that comes back with another public half is an error of
// the client's store, and goes into the record. One that comes back as it was is an upload that was repeated: a client that ends
// before it could take note of the answer does so. If it had the time for that, then its store forgot, and a server that
// believes it would give one key to two people; that goes into the record too. The client had the time if it has answered to
// something that was sent behind the answer to its upload, and a while has passed.

import (
	"encoding/binary"
	"time"

	"go.mau.fi/libsignal/ecc"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

type preKey struct {
	id        uint32
	public    [32]byte
	signature *[64]byte
}

// keyPair is the key as the client's packages have it, without a private half.
func (k preKey) keyPair() *keys.PreKey {
	return &keys.PreKey{KeyPair: keys.KeyPair{Pub: &k.public}, KeyID: k.id, Signature: k.signature}
}

// keyShelf is what a client's device has published.
type keyShelf struct {
	registrationID uint32
	identity       [32]byte
	signed         preKey
	free           []preKey
	published      map[uint32]*published
	everSigned     map[uint32][32]byte // public halves of all signed pre-keys
	asked          bool                // the device was asked for more since it last uploaded
}

// published is a one-time pre-key that a device published.
type published struct {
	public [32]byte
	last   *upload // the one with which it came in last, nil for a retry receipt, which the client does not wait for
}

// upload is an upload of one-time pre-keys.
type upload struct {
	on       *conn
	answered bool      // the answer is in the queue of the connection
	seen     time.Time // since when the client has certainly seen the answer: it has answered to something behind it
}

// seenLocked notes that the client must have seen the answer to an upload, if there was one.
func (u *upload) seenLocked() {
	if u != nil && u.answered && u.seen.IsZero() {
		u.seen = time.Now()
	}
}

// answeredLocked is the connection's last upload, if its answer is in the queue.
func (c *conn) answeredLocked() *upload {
	if c.upload == nil || !c.upload.answered {
		return nil
	}
	return c.upload
}

// notedLocked reports whether the client must have taken note of an upload, and made that durable.
func (u *upload) notedLocked() bool {
	const toNote = 400 * time.Millisecond // the longest pause between two flushes is 100; two cores are shared with much else
	switch {
	case u == nil:
		return true
	case u.seen.IsZero():
		return false
	case u.on.finished:
		return u.on.ended.Sub(u.seen) >= toNote
	default:
		return time.Since(u.seen) >= toNote
	}
}

func newKeyShelf(registrationID uint32, identity [32]byte, signed preKey) *keyShelf {
	return &keyShelf{
		registrationID: registrationID, identity: identity, signed: signed,
		published: make(map[uint32]*published), everSigned: map[uint32][32]byte{signed.id: signed.public},
	}
}

// publishLocked notes that a device published a one-time pre-key, in an upload or in a retry receipt, and reports whether it is
// new.
func (d *Device) publishLocked(key preKey, in *upload) bool {
	s := d.user.server
	old := d.keys.published[key.id]
	if old == nil {
		d.keys.published[key.id] = &published{key.public, in}
		return true
	}
	s.mu.stats.PreKeysRepeated++
	if old.public != key.public {
		s.record.preKeyAgain(ReusedPreKey, d.LID(), key.id)
	} else if old.last.notedLocked() {
		s.record.preKeyAgain(RepeatedPreKey, d.LID(), key.id)
	}
	old.last = in
	return false
}

// signLocked notes that a device published a signed pre-key.
func (d *Device) signLocked(key preKey) {
	if old, again := d.keys.everSigned[key.id]; again && old != key.public {
		d.user.server.record.preKeyAgain(ReusedSignedPreKey, d.LID(), key.id)
	}
	d.keys.everSigned[key.id] = key.public
}

// takePreKeysLocked takes the oldest of a device's one-time pre-keys off the shelf, for whoever asked.
func (d *Device) takePreKeysLocked(n int) []preKey {
	taken := d.keys.free[:n]
	d.keys.free = d.keys.free[n:]
	return taken
}

// bundle hands out what is needed to begin a session with a device, or nil.
func (s *Server) bundle(d *Device) *contact.Bundle {
	if d.phone != nil {
		b := d.phone.sim.Bundle()
		return &b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.gone {
		return nil
	}
	b := &contact.Bundle{RegistrationID: d.keys.registrationID, Identity: d.keys.identity, SignedPreKey: d.keys.signed.keyPair()}
	if len(d.keys.free) > 0 {
		b.PreKey = d.takePreKeysLocked(1)[0].keyPair()
		s.mu.stats.PreKeysHandedOut++
	}
	d.askForPreKeysLocked()
	return b
}

// askForPreKeysLocked tells a device that runs out of one-time pre-keys, once until it uploads.
func (d *Device) askForPreKeysLocked() {
	s := d.user.server
	if d.keys.asked || len(d.keys.free) >= s.cfg.LowPreKeys {
		return
	}
	d.keys.asked = true
	d.deliverLocked(&stanza{node: s.notificationLocked("encrypt", types.ServerJID, nil, waBinary.Node{
		Tag: "count", Attrs: waBinary.Attrs{"value": len(d.keys.free)},
	})})
}

// encrypt answers questions about pre-keys.
func (s *Server) encrypt(q *query) ([]waBinary.Node, *iqError) {
	if _, ok := q.node.GetOptionalChildByTag("count"); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		q.conn.upload.seenLocked() // the client asks after its uploads and before them
		return []waBinary.Node{{Tag: "count", Attrs: waBinary.Attrs{"value": len(q.device.keys.free)}}}, nil
	}
	if _, ok := q.node.GetOptionalChildByTag("digest"); ok {
		return s.digest(q.device), nil
	}
	if wanted, ok := q.node.GetOptionalChildByTag("key"); ok {
		var list []waBinary.Node
		for _, user := range wanted.GetChildrenByTag("user") {
			list = append(list, s.bundleNode(attrJID(&user, "jid")))
		}
		return []waBinary.Node{{Tag: "list", Content: list}}, nil
	}
	if _, ok := q.node.GetOptionalChildByTag("list"); ok {
		return nil, s.upload(q)
	}
	return nil, errBadRequest
}

// bundleNode is a bundle as it travels.
func (s *Server) bundleNode(jid types.JID) waBinary.Node {
	d := s.find(jid)
	var b *contact.Bundle
	if d != nil {
		b = s.bundle(d)
	}
	if b == nil {
		return waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid}, Content: []waBinary.Node{
			{Tag: "error", Attrs: waBinary.Attrs{"code": "406", "text": "not-acceptable"}},
		}}
	}
	children := []waBinary.Node{
		{Tag: "registration", Content: bytes32(b.RegistrationID)},
		{Tag: "type", Content: []byte{ecc.DjbType}},
		{Tag: "identity", Content: b.Identity[:]},
		preKeyNode("skey", b.SignedPreKey),
	}
	if b.PreKey != nil {
		children = append(children, preKeyNode("key", b.PreKey))
	}
	return waBinary.Node{Tag: "user", Attrs: waBinary.Attrs{"jid": jid, "t": unix()}, Content: children}
}

func preKeyNode(tag string, key *keys.PreKey) waBinary.Node {
	node := waBinary.Node{Tag: tag, Content: []waBinary.Node{{Tag: "id", Content: bytes24(key.KeyID)}, {Tag: "value", Content: key.Pub[:]}}}
	if key.Signature != nil {
		node.Content = append(node.GetChildren(), waBinary.Node{Tag: "signature", Content: key.Signature[:]})
	}
	return node
}

func parsePreKey(node *waBinary.Node) (preKey, bool) {
	id, value, signature := content(node, "id"), content(node, "value"), content(node, "signature")
	if len(id) != 3 || len(value) != 32 || len(signature) != 0 && len(signature) != 64 {
		return preKey{}, false
	}
	key := preKey{id: uint24(id), public: [32]byte(value)}
	if len(signature) == 64 {
		s := [64]byte(signature)
		key.signature = &s
	}
	return key, true
}

// upload takes in a device's pre-keys. They must come with the registration id and the identity that were paired.
func (s *Server) upload(q *query) *iqError {
	s.mu.Lock()
	defer s.mu.Unlock()
	shelf := q.device.keys
	registration, identity := content(q.node, "registration"), content(q.node, "identity")
	if len(registration) != 4 || binary.BigEndian.Uint32(registration) != shelf.registrationID || string(identity) != string(shelf.identity[:]) {
		s.mu.stats.RefusedLogins++
		s.log.Warn("waserver: pre-keys of another identity than was paired", "device", q.device.PN())
		return errForbidden
	}
	skey := q.node.GetChildByTag("skey")
	signed, ok := parsePreKey(&skey)
	if !ok || signed.signature == nil {
		return errBadRequest
	}
	list, in := q.node.GetChildByTag("list"), &upload{on: q.conn}
	for _, node := range list.GetChildrenByTag("key") {
		key, ok := parsePreKey(&node)
		if !ok || key.id == 0 {
			return errBadRequest
		}
		s.mu.stats.PreKeysUploaded++
		if q.device.publishLocked(key, in) {
			shelf.free = append(shelf.free, key)
		}
	}
	q.device.signLocked(signed)
	shelf.signed, shelf.asked = signed, false
	q.conn.upload = in
	q.after = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		in.answered = true
	}
	s.happenedLocked()
	return nil
}

// digest is what the server has of a device, for clients that compare.
func (s *Server) digest(d *Device) []waBinary.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]waBinary.Node, len(d.keys.free))
	for i, key := range d.keys.free {
		ids[i] = waBinary.Node{Tag: "id", Content: bytes24(key.id)}
	}
	return []waBinary.Node{{Tag: "digest", Content: []waBinary.Node{
		{Tag: "registration", Content: bytes32(d.keys.registrationID)},
		{Tag: "type", Content: []byte{ecc.DjbType}},
		{Tag: "identity", Content: d.keys.identity[:]},
		preKeyNode("skey", d.keys.signed.keyPair()),
		{Tag: "list", Content: ids},
	}}}
}
