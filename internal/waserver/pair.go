package waserver

// Pairing by QR code. The server shows six references; the client makes a QR code of each with its Noise key, its identity
// and a secret. The phone that scans one signs the client's identity together with the details of the new device, adds the
// secret's HMAC, and the server passes both on in pair-success. The client checks them, saves its device, signs in turn and
// answers; the signature is checked, the device is entered, and the connection ends with stream error 515, after which the
// client logs in on a new one.

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"
)

// maxDevice is the highest device id that fits on the wire.
const maxDevice = 255

// shownReferences is how many QR codes a connection gets.
const shownReferences = 6

var (
	errConnectionLost = errors.New("waserver: the client's connection ended")
	// ErrUnknownCode is the answer to a QR code or link code that is not shown by any client.
	ErrUnknownCode = errors.New("waserver: no client shows this code")
	// ErrPairing is the answer when a client did not accept a pairing or was not accepted.
	ErrPairing = errors.New("waserver: pairing failed")
)

// offer is a QR reference that a client shows.
type offer struct{ conn *conn }

// offerLocked shows QR references to the client.
func (c *conn) offerLocked() {
	s := c.server
	refs := make([]waBinary.Node, shownReferences)
	for i := range refs {
		ref := "2@" + base64.StdEncoding.EncodeToString(random.Bytes(48))
		s.mu.offers[ref] = &offer{c}
		refs[i] = waBinary.Node{Tag: "ref", Content: []byte(ref)}
	}
	s.mu.stats.QRCodes++
	s.happenedLocked()
	c.ask(s.nextIDLocked("pair"), "md", "set", waBinary.Node{Tag: "pair-device", Content: refs}, func(*waBinary.Node) {})
}

// forgetOffersLocked takes back what was shown on a connection.
func (c *conn) forgetOffersLocked() {
	for ref, o := range c.server.mu.offers {
		if o.conn == c {
			delete(c.server.mu.offers, ref)
		}
	}
	for jid, l := range c.server.mu.linkCodes {
		if l.conn == c {
			delete(c.server.mu.linkCodes, jid)
		}
	}
}

// Scan is the account's phone scanning a QR code that a client shows. It returns when the client has been paired and told
// to connect again.
func (a *Account) Scan(ctx context.Context, qr string) (*Device, error) {
	_, code, ok := strings.Cut(qr, "#")
	if !ok {
		code = qr // older clients show no address in front
	}
	parts := strings.Split(code, ",")
	if len(parts) < 4 {
		return nil, fmt.Errorf("%w: %d parts in QR code", ErrUnknownCode, len(parts))
	}
	noise, err1 := base64.StdEncoding.DecodeString(parts[1])
	identity, err2 := base64.StdEncoding.DecodeString(parts[2])
	secret, err3 := base64.StdEncoding.DecodeString(parts[3])
	if err := errors.Join(err1, err2, err3); err != nil || len(noise) != 32 || len(identity) != 32 {
		return nil, errors.Join(ErrUnknownCode, err)
	}
	s := a.server
	s.mu.Lock()
	shown := s.mu.offers[parts[0]]
	s.mu.stats.QRScans++
	s.mu.Unlock()
	if shown == nil {
		return nil, ErrUnknownCode
	}
	if [32]byte(noise) != shown.conn.secret.client || [32]byte(identity) != shown.conn.pairing.identity {
		return nil, s.refusePairing("QR code with other keys than the client presented")
	}
	return a.pair(ctx, shown.conn, secret)
}

func (s *Server) refusePairing(why string) error {
	s.mu.Lock()
	s.mu.stats.RefusedPairings++
	s.mu.Unlock()
	return fmt.Errorf("%w: %s", ErrPairing, why)
}

// pair gives the client on a connection a device of the account.
func (a *Account) pair(ctx context.Context, c *conn, secret []byte) (*Device, error) {
	s := a.server
	s.mu.Lock()
	if a.nextDevice > maxDevice {
		s.mu.Unlock()
		return nil, s.refusePairing("the account has had all device ids")
	}
	d := &Device{
		user: a.Contact, id: a.nextDevice, noise: c.secret.client, paired: time.Now(),
		keys: newKeyShelf(c.pairing.registrationID, c.pairing.identity, c.pairing.signed),
	}
	a.nextDevice++
	id := s.nextIDLocked("pair")
	s.mu.Unlock()

	signed, err := signIdentity(a.primary().sim.IdentityKey(), d)
	if err != nil {
		return nil, err
	}
	details, err := proto.Marshal(signed)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(details)
	container, err := proto.Marshal(&waAdv.ADVSignedDeviceIdentityHMAC{Details: details, HMAC: mac.Sum(nil)})
	if err != nil {
		return nil, err
	}
	answer, err := c.request(ctx, id, "md", "set", waBinary.Node{Tag: "pair-success", Content: []waBinary.Node{
		{Tag: "device-identity", Content: container},
		{Tag: "device", Attrs: waBinary.Attrs{"jid": d.PN(), "lid": d.LID()}},
		{Tag: "platform", Attrs: waBinary.Attrs{"name": "android"}},
	}})
	if err != nil {
		return nil, err
	}
	if attrString(answer, "type") != "result" {
		e := answer.GetChildByTag("error")
		return nil, s.refusePairing("the client answered " + attrString(&e, "code") + " " + attrString(&e, "text"))
	}
	var confirmed waAdv.ADVSignedDeviceIdentity
	if err = proto.Unmarshal(content(answer, "pair-device-sign", "device-identity"), &confirmed); err != nil {
		return nil, s.refusePairing(err.Error())
	}
	signed.DeviceSignature = confirmed.GetDeviceSignature()
	if string(confirmed.GetDetails()) != string(signed.GetDetails()) || !validDeviceSignature(signed, d.keys.identity) {
		s.mu.Lock()
		c.dismissLocked(failure(int(events.ConnectFailureLoggedOut))) // the client believes that it is paired
		s.mu.Unlock()
		return nil, s.refusePairing("the client's signature of its device identity is wrong")
	}
	a.enter(d, c)
	return d, nil
}

// enter makes a device part of the account, tells the others, and sends its client to log in.
func (a *Account) enter(d *Device, c *conn) {
	s := a.server
	s.mu.Lock()
	defer s.mu.Unlock()
	a.devices[d.id] = d
	s.mu.stats.Pairings++
	c.forgetOffersLocked()
	s.happenedLocked()
	c.dismissLocked(streamError(515))
	a.ownDevicesChangedLocked(d)
}

// multiDevice answers what clients ask about linked devices.
func (s *Server) multiDevice(q *query) ([]waBinary.Node, *iqError) {
	if code, ok := q.node.GetOptionalChildByTag("link_code_companion_reg"); ok {
		return s.linkCode(q, &code)
	}
	if _, ok := q.node.GetOptionalChildByTag("remove-companion-device"); ok && q.device != nil {
		s.mu.Lock()
		q.device.unlinkLocked()
		s.mu.Unlock()
		return nil, nil
	}
	return nil, nil
}

// signIdentity is the account's signature of a device's identity.
func signIdentity(account *keys.KeyPair, d *Device) (*waAdv.ADVSignedDeviceIdentity, error) {
	details, err := proto.Marshal(&waAdv.ADVDeviceIdentity{
		RawID: proto.Uint32(1), Timestamp: proto.Uint64(uint64(unix())), KeyIndex: proto.Uint32(uint32(d.id)),
		AccountType: waAdv.ADVEncryptionType_E2EE.Enum(), DeviceType: waAdv.ADVEncryptionType_E2EE.Enum(),
	})
	if err != nil {
		return nil, err
	}
	identity := d.identity()
	signature := ecc.CalculateSignature(ecc.NewDjbECPrivateKey(*account.Priv), concat(whatsmeow.AdvAccountSignaturePrefix, details, identity[:]))
	return &waAdv.ADVSignedDeviceIdentity{Details: details, AccountSignatureKey: account.Pub[:], AccountSignature: signature[:]}, nil
}

// signDevice adds the device's own signature.
func signDevice(signed *waAdv.ADVSignedDeviceIdentity, device *keys.KeyPair) {
	signature := ecc.CalculateSignature(ecc.NewDjbECPrivateKey(*device.Priv),
		concat(whatsmeow.AdvDeviceSignaturePrefix, signed.Details, device.Pub[:], signed.AccountSignatureKey))
	signed.DeviceSignature = signature[:]
}

func validDeviceSignature(signed *waAdv.ADVSignedDeviceIdentity, identity [32]byte) bool {
	return len(signed.GetDeviceSignature()) == 64 && ecc.VerifySignature(ecc.NewDjbECPublicKey(identity),
		concat(whatsmeow.AdvDeviceSignaturePrefix, signed.Details, identity[:], signed.AccountSignatureKey), [64]byte(signed.DeviceSignature))
}

// validIdentity reports whether a signed identity, as it travels with first messages, is right for a device.
func validIdentity(signed *waAdv.ADVSignedDeviceIdentity, account, identity [32]byte) bool {
	return string(signed.GetAccountSignatureKey()) == string(account[:]) && len(signed.GetAccountSignature()) == 64 &&
		ecc.VerifySignature(ecc.NewDjbECPublicKey(account), concat(whatsmeow.AdvAccountSignaturePrefix, signed.GetDetails(), identity[:]),
			[64]byte(signed.GetAccountSignature())) && validDeviceSignature(signed, identity)
}

func concat(parts ...[]byte) []byte {
	var all []byte
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func (s *Server) nextIDLocked(kind string) string {
	s.mu.nextID++
	return kind + "-" + strconv.Itoa(s.mu.nextID)
}

// notificationLocked is a notification to a client's device.
func (s *Server) notificationLocked(typ string, from types.JID, attrs waBinary.Attrs, content ...waBinary.Node) waBinary.Node {
	node := waBinary.Node{
		Tag:     "notification",
		Attrs:   waBinary.Attrs{"id": s.nextIDLocked("notification"), "from": from, "type": typ, "t": unix()},
		Content: content,
	}
	for key, value := range attrs {
		node.Attrs[key] = value
	}
	return node
}
