package waserver

// Pairing by link code. The client shows a code of eight characters and sends, sealed with it, an ephemeral key. The phone
// into which the code is typed opens that key, sends an ephemeral key of its own back in the same way with its identity,
// and gets the client's identity and a random secret in a bundle sealed with what both ephemeral keys share. Both derive
// the secret that in a QR code is in the picture, and the pairing goes on as after a scan.

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"go.mau.fi/util/random"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/gcmutil"
	"go.mau.fi/whatsmeow/util/keys"
)

// linkCodeIterations is how often the code is hashed into a key.
const linkCodeIterations = 2 << 16

// linkCoding is a link code that a client shows.
type linkCoding struct {
	conn    *conn
	ref     string
	wrapped []byte // the client's ephemeral key, sealed with the code
	finish  chan *waBinary.Node
}

// linkCode answers the two steps of the client.
func (s *Server) linkCode(q *query, node *waBinary.Node) ([]waBinary.Node, *iqError) {
	if q.device != nil || q.conn.pairing == nil {
		return nil, errNotAllowed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	jid := attrJID(node, "jid")
	switch attrString(node, "stage") {
	case "companion_hello":
		wrapped := content(node, "link_code_pairing_wrapped_companion_ephemeral_pub")
		if len(wrapped) != 80 || string(content(node, "companion_server_auth_key_pub")) != string(q.conn.secret.client[:]) {
			return nil, errBadRequest
		}
		coding := &linkCoding{
			conn: q.conn, ref: base64.StdEncoding.EncodeToString(random.Bytes(24)), wrapped: wrapped, finish: make(chan *waBinary.Node, 1),
		}
		s.mu.linkCodes[jid] = coding
		s.mu.stats.LinkCodes++
		s.happenedLocked()
		return []waBinary.Node{{Tag: "link_code_companion_reg", Content: []waBinary.Node{
			{Tag: "link_code_pairing_ref", Content: []byte(coding.ref)},
		}}}, nil
	case "companion_finish":
		coding := s.mu.linkCodes[jid]
		if coding == nil || coding.conn != q.conn || string(content(node, "link_code_pairing_ref")) != coding.ref {
			return nil, errBadRequest
		}
		q.after = func() {
			select {
			case coding.finish <- node:
			default:
			}
		}
		return nil, nil
	default:
		return nil, errBadRequest
	}
}

// EnterCode is the account's phone being told the code that a client shows. It returns when the client has been paired and
// told to connect again.
func (a *Account) EnterCode(ctx context.Context, code string) (*Device, error) {
	code = strings.ReplaceAll(strings.ToUpper(code), "-", "")
	s := a.server
	s.mu.Lock()
	coding := s.mu.linkCodes[a.pn]
	s.mu.stats.CodesEntered++
	s.mu.Unlock()
	if coding == nil {
		return nil, ErrUnknownCode
	}
	companion, err := linkCodeCipher(code, coding.wrapped)
	if err != nil {
		return nil, err
	}
	ephemeral, phone := keys.NewKeyPair(), a.primary().sim.IdentityKey()
	wrapped, err := linkCodeCipher(code, concat(random.Bytes(48), ephemeral.Pub[:]))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	coding.conn.send(s.notificationLocked("link_code_companion_reg", types.ServerJID, nil, waBinary.Node{
		Tag: "link_code_companion_reg", Attrs: waBinary.Attrs{"stage": "primary_hello"}, Content: []waBinary.Node{
			{Tag: "link_code_pairing_ref", Content: []byte(coding.ref)},
			{Tag: "link_code_pairing_wrapped_primary_ephemeral_pub", Content: wrapped},
			{Tag: "primary_identity_pub", Content: phone.Pub[:]},
		},
	}))
	s.mu.Unlock()
	select {
	case node := <-coding.finish:
		secret, err := linkSecret(node, coding.conn.pairing.identity, phone, ephemeral, companion[48:])
		if err != nil {
			return nil, s.refusePairing(err.Error())
		}
		return a.pair(ctx, coding.conn, secret)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-coding.conn.ctx.Done():
		return nil, errConnectionLost
	}
}

// linkCodeCipher opens or seals the key at the end of a salt, a counter and a key, with the code.
func linkCodeCipher(code string, wrapped []byte) ([]byte, error) {
	key, err := pbkdf2.Key(sha256.New, code, wrapped[:32], linkCodeIterations, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	out := concat(wrapped)
	cipher.NewCTR(block, wrapped[32:48]).XORKeyStream(out[48:], wrapped[48:])
	return out, nil
}

// linkSecret opens the client's bundle and derives the secret that both sides share.
func linkSecret(node *waBinary.Node, identity [32]byte, phone, ephemeral *keys.KeyPair, companion []byte) ([]byte, error) {
	bundle := content(node, "link_code_pairing_wrapped_key_bundle")
	if len(bundle) < 44 || string(content(node, "companion_identity_public")) != string(identity[:]) {
		return nil, fmt.Errorf("malformed companion_finish")
	}
	shared, err := sharedSecret(ephemeral, companion)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, shared, bundle[:32], "link_code_pairing_key_bundle_encryption_key", 32)
	if err != nil {
		return nil, err
	}
	opened, err := gcmutil.Decrypt(key, bundle[32:44], bundle[44:], nil)
	if err != nil {
		return nil, fmt.Errorf("wrong code: %w", err)
	}
	if len(opened) != 96 || string(opened[:32]) != string(identity[:]) || string(opened[32:64]) != string(phone.Pub[:]) {
		return nil, fmt.Errorf("key bundle with other identities")
	}
	identities, err := sharedSecret(phone, identity[:])
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, concat(shared, identities, opened[64:]), nil, "adv_secret", 32)
}
