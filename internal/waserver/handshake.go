package waserver

// Noise_XX_25519_AESGCM_SHA256, the responder's side, and the frames that carry it.
//
//	-> e                          ClientHello
//	<- e, ee, s, es, certificates ServerHello; s and the certificates are encrypted
//	-> s, se, client payload      ClientFinish; both encrypted
//
// The prologue is the connection header "WA", the protocol's version and that of the token dictionary, which the client
// sends once in front of its first frame. A frame is a length of three bytes, big endian, and the data. After the handshake the
// data is one binary node, sealed with a counter for each direction. The certificate chain is root, intermediate (issuer
// serial 0) and leaf; the leaf's key is the server's static key.

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/whatsmeow/binary/token"
	"go.mau.fi/whatsmeow/proto/waCert"
	"go.mau.fi/whatsmeow/proto/waWa6"
	"go.mau.fi/whatsmeow/socket"
	"go.mau.fi/whatsmeow/util/gcmutil"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"
)

// root signs the certificates of every server. It is no secret: it is trusted only where [Endpoint.Attach] says so.
var root = keys.NewKeyPairFromPrivateKey(sha256.Sum256([]byte("whatsmeow-pgstore: stand-in server, root of trust")))

// TrustedRoot is the public key that clients of any [Server] trust.
func TrustedRoot() [32]byte { return *root.Pub }

// serverIdentity is the static key of a server and the certificates for it.
type serverIdentity struct {
	static       *keys.KeyPair
	certificates []byte
}

func newServerIdentity(static *keys.KeyPair) (serverIdentity, error) {
	const intermediateSerial, leafSerial = 1, 2
	intermediate := keys.NewKeyPair()
	certify := func(signer *keys.KeyPair, serial, issuer uint32, key *keys.KeyPair) (*waCert.CertChain_NoiseCertificate, error) {
		details, err := proto.Marshal(&waCert.CertChain_NoiseCertificate_Details{
			Serial: &serial, IssuerSerial: &issuer, Key: key.Pub[:],
			NotBefore: proto.Uint64(uint64(time.Now().Add(-time.Hour).Unix())),
			NotAfter:  proto.Uint64(uint64(time.Now().Add(365 * 24 * time.Hour).Unix())),
		})
		signature := ecc.CalculateSignature(ecc.NewDjbECPrivateKey(*signer.Priv), details)
		return &waCert.CertChain_NoiseCertificate{Details: details, Signature: signature[:]}, err
	}
	middle, err1 := certify(root, intermediateSerial, 0, intermediate)
	leaf, err2 := certify(intermediate, leafSerial, intermediateSerial, static)
	chain, err3 := proto.Marshal(&waCert.CertChain{Intermediate: middle, Leaf: leaf})
	return serverIdentity{static: static, certificates: chain}, errors.Join(err1, err2, err3)
}

// readHeader reads the connection header.
func readHeader(r io.Reader) ([]byte, error) {
	header := make([]byte, len(socket.WAConnHeader))
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, err
	}
	if string(header[:3]) != string(socket.WAConnHeader[:3]) || header[3] != token.DictVersion {
		return nil, fmt.Errorf("unexpected connection header %q", header)
	}
	return header, nil
}

// readFrame reads one frame.
func readFrame(r io.Reader) ([]byte, error) {
	var length [socket.FrameLengthSize]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, int(length[0])<<16|int(length[1])<<8|int(length[2]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

// writeFrame writes one frame at once: the client mends no frame that comes in two messages of the WebSocket.
func writeFrame(w io.Writer, data []byte) error {
	if len(data) >= socket.FrameMaxSize {
		return socket.ErrFrameTooLarge
	}
	frame := append(make([]byte, 0, socket.FrameLengthSize+len(data)), byte(len(data)>>16), byte(len(data)>>8), byte(len(data)))
	_, err := w.Write(append(frame, data...))
	return err
}

// noise is the symmetric state of a handshake.
type noise struct {
	hash, salt []byte
	key        cipher.AEAD
	counter    uint32
}

func newNoise(header []byte) (*noise, error) {
	n := &noise{hash: []byte(socket.NoiseStartPattern)}
	n.salt = n.hash
	var err error
	if n.key, err = gcmutil.Prepare(n.hash); err != nil {
		return nil, err
	}
	n.authenticate(header)
	return n, nil
}

func (n *noise) authenticate(data []byte) {
	sum := sha256.Sum256(append(append([]byte(nil), n.hash...), data...))
	n.hash = sum[:]
}

func (n *noise) seal(plaintext []byte) []byte {
	sealed := n.key.Seal(nil, nonce(n.counter), plaintext, n.hash)
	n.counter++
	n.authenticate(sealed)
	return sealed
}

func (n *noise) open(sealed []byte) ([]byte, error) {
	plaintext, err := n.key.Open(nil, nonce(n.counter), sealed, n.hash)
	n.counter++
	n.authenticate(sealed)
	return plaintext, err
}

func (n *noise) split(secret []byte) (first, second []byte, err error) {
	both, err := hkdf.Key(sha256.New, secret, n.salt, "", 64)
	if err != nil {
		return nil, nil, err
	}
	return both[:32], both[32:], nil
}

func (n *noise) mix(own *keys.KeyPair, other []byte) error {
	secret, err := sharedSecret(own, other)
	if err != nil {
		return err
	}
	salt, key, err := n.split(secret)
	if err != nil {
		return err
	}
	n.counter, n.salt = 0, salt
	n.key, err = gcmutil.Prepare(key)
	return err
}

func nonce(counter uint32) []byte {
	return binary.BigEndian.AppendUint32(make([]byte, 8, 12), counter)
}

// sharedSecret is X25519 of our private and their public key.
func sharedSecret(own *keys.KeyPair, other []byte) ([]byte, error) {
	private, err := ecdh.X25519().NewPrivateKey(own.Priv[:])
	if err != nil {
		return nil, err
	}
	public, err := ecdh.X25519().NewPublicKey(other)
	if err != nil {
		return nil, err
	}
	return private.ECDH(public)
}

// handshaken is what a handshake ends with.
type handshaken struct {
	client   [32]byte // the client's static key
	payload  *waWa6.ClientPayload
	toClient cipher.AEAD
	toServer cipher.AEAD
}

// handshake answers a client's handshake. A finish that does not decrypt is refused.
func (id serverIdentity) handshake(rw io.ReadWriter) (*handshaken, error) {
	header, err := readHeader(rw)
	if err != nil {
		return nil, err
	}
	n, err := newNoise(header)
	if err != nil {
		return nil, err
	}
	var hello, finish waWa6.HandshakeMessage
	if err = readMessage(rw, &hello); err != nil {
		return nil, fmt.Errorf("client hello: %w", err)
	}
	theirs := hello.GetClientHello().GetEphemeral()
	if len(theirs) != 32 {
		return nil, errors.New("client hello without an ephemeral key")
	}
	ephemeral := keys.NewKeyPair()
	n.authenticate(theirs)
	n.authenticate(ephemeral.Pub[:])
	if err = n.mix(ephemeral, theirs); err != nil {
		return nil, err
	}
	answer := &waWa6.HandshakeMessage_ServerHello{Ephemeral: ephemeral.Pub[:], Static: n.seal(id.static.Pub[:])}
	if err = n.mix(id.static, theirs); err != nil {
		return nil, err
	}
	answer.Payload = n.seal(id.certificates)
	data, err := proto.Marshal(&waWa6.HandshakeMessage{ServerHello: answer})
	if err != nil {
		return nil, err
	}
	if err = writeFrame(rw, data); err != nil {
		return nil, err
	}
	if err = readMessage(rw, &finish); err != nil {
		return nil, fmt.Errorf("client finish: %w", err)
	}
	return n.finish(ephemeral, finish.GetClientFinish())
}

func (n *noise) finish(ephemeral *keys.KeyPair, message *waWa6.HandshakeMessage_ClientFinish) (*handshaken, error) {
	static, err := n.open(message.GetStatic())
	if err != nil || len(static) != 32 {
		return nil, fmt.Errorf("client's static key: %w", errors.Join(err, errRefusedFinish))
	}
	if err = n.mix(ephemeral, static); err != nil {
		return nil, err
	}
	payload, err := n.open(message.GetPayload())
	if err != nil {
		return nil, fmt.Errorf("client's payload: %w", errors.Join(err, errRefusedFinish))
	}
	done := &handshaken{client: [32]byte(static), payload: &waWa6.ClientPayload{}}
	if err = proto.Unmarshal(payload, done.payload); err != nil {
		return nil, err
	}
	toServer, toClient, err := n.split(nil)
	if err != nil {
		return nil, err
	}
	if done.toServer, err = gcmutil.Prepare(toServer); err != nil {
		return nil, err
	}
	done.toClient, err = gcmutil.Prepare(toClient)
	return done, err
}

var errRefusedFinish = errors.New("refused")

func readMessage(r io.Reader, into proto.Message) error {
	data, err := readFrame(r)
	if err != nil {
		return err
	}
	return proto.Unmarshal(data, into)
}
