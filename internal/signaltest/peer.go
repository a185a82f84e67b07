// Package signaltest lets devices talk to each other with the client's own code and libsignal's real encryption, with
// no server in between: ciphertexts are handed over in memory.
package signaltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/libsignal/groups"
	"go.mau.fi/libsignal/keys/identity"
	"go.mau.fi/libsignal/keys/prekey"
	"go.mau.fi/libsignal/protocol"
	"go.mau.fi/libsignal/util/optional"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

// FillPairing gives a fresh device what pairing would: a phone number, a LID and a signed identity. Save it then.
func FillPairing(d *store.Device) {
	jid := types.JID{User: Number(), Device: 7, Server: types.DefaultUserServer}
	d.ID = &jid
	d.LID = types.JID{User: Number(), Device: 7, Server: types.HiddenUserServer}
	d.Account = &waAdv.ADVSignedDeviceIdentity{
		Details: random.Bytes(40), AccountSignature: random.Bytes(64), AccountSignatureKey: random.Bytes(32), DeviceSignature: random.Bytes(64),
	}
}

// Number is a random phone number.
func Number() string {
	b := []byte("49")
	for range 11 {
		b = append(b, byte('0'+rand.IntN(10)))
	}
	return string(b)
}

// Peer is a device with the client's code around it.
type Peer struct {
	Device   *store.Device
	client   *whatsmeow.DangerousInternalClient
	buffered bool
}

// NewPeer makes a peer of a saved device, with the client's event buffer in use.
func NewPeer(d *store.Device) *Peer { return newPeer(d, true) }

// NewUnbufferedPeer makes a peer that decrypts outside of transactions, as a client does without EnableDecryptedEventBuffer.
func NewUnbufferedPeer(d *store.Device) *Peer { return newPeer(d, false) }

func newPeer(d *store.Device, buffered bool) *Peer {
	client := whatsmeow.NewClient(d, nil)
	client.EnableDecryptedEventBuffer = buffered
	//nolint:staticcheck // deprecated to warn off bots; this is what it is for
	return &Peer{Device: d, client: client.DangerousInternals(), buffered: buffered}
}

// Address is where others send to: the LID.
func (p *Peer) Address() types.JID { return p.Device.LID }

// Bundle is what the server would hand out for the peer's device.
func (p *Peer) Bundle(ctx context.Context) (*prekey.Bundle, error) {
	one, err := p.Device.PreKeys.GenOnePreKey(ctx)
	if err != nil {
		return nil, err
	}
	point := func(key *[32]byte) ecc.ECPublicKeyable { return ecc.NewDjbECPublicKey(*key) }
	signed := p.Device.SignedPreKey
	return prekey.NewBundle(p.Device.RegistrationID, uint32(p.Device.ID.Device),
		optional.NewOptionalUint32(one.KeyID), signed.KeyID, point(one.Pub), point(signed.Pub), *signed.Signature,
		identity.NewKey(point(p.Device.IdentityKey.Pub))), nil
}

// Meet begins a session with another peer from its bundle, and returns the first message.
func (p *Peer) Meet(ctx context.Context, other *Peer, plaintext []byte) (*waBinary.Node, error) {
	bundle, err := other.Bundle(ctx)
	if err != nil {
		return nil, err
	}
	node, _, err := p.client.EncryptMessageForDevice(ctx, plaintext, other.Address(), bundle, nil, nil)
	return node, err
}

// SendAnew encrypts a message for another peer as SendMessage does for a device without a session: it reads, finds none, fetches a bundle, and
// puts the new session with the others.
func (p *Peer) SendAnew(ctx context.Context, other *Peer, plaintext []byte) (*waBinary.Node, error) {
	return p.SendAnewTo(ctx, other.Address(), other.Bundle, plaintext)
}

// SendAnewTo is SendAnew with the bundle from elsewhere.
func (p *Peer) SendAnewTo(ctx context.Context, to types.JID, fetch func(context.Context) (*prekey.Bundle, error), plaintext []byte) (*waBinary.Node, error) {
	existing, ctx, err := p.Device.WithCachedSessions(ctx, []string{to.SignalAddress().String()})
	if err != nil {
		return nil, err
	}
	bundle, err := fetch(ctx)
	if err != nil {
		return nil, err
	}
	node, _, err := p.client.EncryptMessageForDevice(ctx, plaintext, to, bundle, nil, existing)
	if err != nil {
		return nil, err
	}
	return node, p.Device.PutCachedSessions(ctx)
}

// Send encrypts a message for others with whom there are sessions, as SendMessage does, and returns a ciphertext for each.
func (p *Peer) Send(ctx context.Context, others []types.JID, plaintext []byte) (map[types.JID]*waBinary.Node, error) {
	nodes, _, err := p.client.EncryptMessageForDevices(ctx, others, "id", plaintext, nil, nil)
	if err != nil {
		return nil, err
	}
	sent := make(map[types.JID]*waBinary.Node, len(nodes))
	for _, n := range nodes {
		enc := n.GetChildren()[0]
		sent[n.Attrs["jid"].(types.JID)] = &enc
	}
	if len(sent) != len(others) {
		return nil, fmt.Errorf("encrypted for %d of %d devices", len(sent), len(others))
	}
	return sent, nil
}

// identity is whose session is used for somebody: the LID of a phone number as soon as it is known, and then all that was stored for the
// number is moved there, as the client does before it decrypts and before it answers.
func (p *Peer) identity(ctx context.Context, jid types.JID) (types.JID, error) {
	if jid.Server != types.DefaultUserServer {
		return jid, nil
	}
	lid, err := p.Device.LIDs.GetLIDForPN(ctx, jid)
	if err != nil || lid.IsEmpty() {
		return jid, err
	}
	p.client.MigrateSessionStore(ctx, jid, lid)
	return lid, nil
}

// Answer encrypts a message for one peer as retry answers and messages to our own phone are, without the session cache.
func (p *Peer) Answer(ctx context.Context, to types.JID, plaintext []byte) (*waBinary.Node, error) {
	to, err := p.identity(ctx, to)
	if err != nil {
		return nil, err
	}
	node, _, err := p.client.EncryptMessageForDevice(ctx, plaintext, to, nil, nil, nil)
	return node, err
}

// Receive decrypts a message as the client does with one that comes in, up to the acknowledgement.
func (p *Peer) Receive(ctx context.Context, from types.JID, node *waBinary.Node) ([]byte, error) {
	from, err := p.identity(ctx, from)
	if err != nil {
		return nil, err
	}
	plaintext, hash, err := p.client.DecryptDM(ctx, node, from, node.Attrs["type"] == "pkmsg", time.Now())
	if err != nil {
		return nil, err
	}
	return plaintext, p.processed(ctx, hash)
}

// processed is what the client does between the handler and the acknowledgement.
func (p *Peer) processed(ctx context.Context, hash *[32]byte) error {
	if !p.buffered {
		return nil
	}
	return p.Device.EventBuffer.ClearBufferedEventPlaintext(ctx, *hash)
}

// JoinGroup is the distribution message of the peer's own sender key, made if there is none.
func (p *Peer) JoinGroup(ctx context.Context, group types.JID) ([]byte, error) {
	message, err := p.builder().Create(ctx, p.senderKey(group, p.Address()))
	if err != nil {
		return nil, err
	}
	return message.Serialize(), nil
}

// Welcome takes in somebody else's distribution message.
func (p *Peer) Welcome(ctx context.Context, group, from types.JID, distribution []byte) error {
	p.client.HandleSenderKeyDistributionMessage(ctx, group, from, distribution)
	key, err := p.Device.SenderKeys.GetSenderKey(ctx, group.String(), from.SignalAddress().String())
	if err == nil && key == nil {
		err = errors.New("sender key was not stored")
	}
	return err
}

// SendGroup encrypts a message with the peer's own sender key.
func (p *Peer) SendGroup(ctx context.Context, group types.JID, plaintext []byte) (*waBinary.Node, error) {
	node, _, err := p.SendGroupAnew(ctx, group, plaintext)
	return node, err
}

// SendGroupAnew is SendGroup, with what members need who do not have the sender key yet.
func (p *Peer) SendGroupAnew(ctx context.Context, group types.JID, plaintext []byte) (node *waBinary.Node, distribution []byte, err error) {
	builder := p.builder()
	name := p.senderKey(group, p.Address())
	created, err := builder.Create(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	message, err := groups.NewGroupCipher(builder, name, p.Device).Encrypt(ctx, append(plaintext, 1)) // one byte of padding
	if err != nil {
		return nil, nil, err
	}
	return &waBinary.Node{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": "skmsg"}, Content: message.SignedSerialize()}, created.Serialize(), nil
}

// ReceiveGroup decrypts a message of a group, up to the acknowledgement.
func (p *Peer) ReceiveGroup(ctx context.Context, group, from types.JID, node *waBinary.Node) ([]byte, error) {
	from, err := p.identity(ctx, from)
	if err != nil {
		return nil, err
	}
	plaintext, hash, err := p.client.DecryptGroupMsg(ctx, node, from, group, time.Now())
	if err != nil {
		return nil, err
	}
	return plaintext, p.processed(ctx, hash)
}

func (p *Peer) builder() *groups.SessionBuilder {
	return groups.NewGroupSessionBuilder(p.Device, store.SignalProtobufSerializer)
}

func (p *Peer) senderKey(group, sender types.JID) *protocol.SenderKeyName {
	return protocol.NewSenderKeyName(group.String(), sender.SignalAddress())
}
