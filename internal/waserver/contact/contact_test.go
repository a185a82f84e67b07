package contact_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"
	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var group = types.NewJID("120363000000000001", types.GroupServer)

func newDevice(user string) *contact.Device {
	return contact.NewDevice(
		types.JID{User: user, Server: types.DefaultUserServer},
		types.JID{User: "1" + user, Server: types.HiddenUserServer})
}

// sealed is a ciphertext on its way.
type sealed struct {
	typ  string
	body []byte
}

// pair is two devices that know each other by their LIDs.
type pair struct {
	*testing.T
	a, b *contact.Device
}

func newPair(t *testing.T) *pair {
	t.Helper()
	return &pair{T: t, a: newDevice("4915100000001"), b: newDevice("4915100000002")}
}

// meet exchanges first messages, so that both sessions are established.
func (p *pair) meet() {
	p.Helper()
	require.NoError(p, p.a.Process(p.b.LID(), p.b.Bundle()))
	p.say(p.a, p.b, "pkmsg")
	p.say(p.b, p.a, "msg")
}

func (p *pair) seal(from, to *contact.Device, text string) sealed {
	p.Helper()
	typ, body, err := from.Encrypt(to.LID(), []byte(text))
	require.NoError(p, err)
	return sealed{typ, body}
}

func (p *pair) open(from, to *contact.Device, s sealed, text string) contact.Used {
	p.Helper()
	got, used, err := to.Decrypt(from.LID(), s.typ, s.body)
	require.NoError(p, err)
	require.Equal(p, text, string(got))
	require.Len(p, used.CipherKey, 32)
	require.Len(p, used.IV, 16)
	return used
}

func (p *pair) say(from, to *contact.Device, typ string) contact.Used {
	p.Helper()
	s := p.seal(from, to, "hello")
	require.Equal(p, typ, s.typ)
	return p.open(from, to, s, "hello")
}

func TestTalkBothWays(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.False(t, p.a.HasSession(p.b.LID()))
	require.NoError(t, p.a.Process(p.b.LID(), p.b.Bundle()))
	require.True(t, p.a.HasSession(p.b.LID()))
	require.Equal(t, "pkmsg", p.seal(p.a, p.b, "lost").typ)
	first := p.say(p.a, p.b, "pkmsg") // still unanswered
	require.Equal(t, uint32(1), first.Counter)

	derived := map[string]bool{}
	chains := map[string]bool{}
	for range 5 { // each answer is a step of the ratchet
		for _, used := range []contact.Used{p.say(p.b, p.a, "msg"), p.say(p.b, p.a, "msg"), p.say(p.a, p.b, "msg")} {
			derived[string(used.CipherKey)+string(used.IV)] = true
			chains[string(used.Chain)] = true
			require.Len(t, used.MacKey, 32)
		}
	}
	require.Len(t, derived, 15)
	require.Len(t, chains, 10)
}

func TestOutOfOrderAndDuplicates(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet()
	var sent []sealed
	for i := range 4 {
		sent = append(sent, p.seal(p.a, p.b, fmt.Sprint(i)))
	}
	seen := map[string]bool{}
	for _, i := range []int{2, 0, 3, 1} {
		used := p.open(p.a, p.b, sent[i], fmt.Sprint(i))
		require.False(t, seen[string(used.CipherKey)])
		seen[string(used.CipherKey)] = true

		_, again, err := p.b.Decrypt(p.a.LID(), sent[i].typ, sent[i].body)
		require.ErrorIs(t, err, contact.ErrDuplicate)
		require.Equal(t, used.Chain, again.Chain)
		require.Equal(t, used.Counter, again.Counter)
		require.Nil(t, again.CipherKey)
	}
	p.say(p.b, p.a, "msg")
	late := p.seal(p.a, p.b, "late")
	p.say(p.a, p.b, "msg")
	p.say(p.b, p.a, "msg")
	p.open(p.a, p.b, late, "late")
}

func TestDuplicateFirstMessage(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, p.a.Process(p.b.LID(), p.b.Bundle()))
	first, second := p.seal(p.a, p.b, "1"), p.seal(p.a, p.b, "2")
	p.open(p.a, p.b, second, "2")
	p.open(p.a, p.b, first, "1")
	_, _, err := p.b.Decrypt(p.a.LID(), first.typ, first.body)
	require.ErrorIs(t, err, contact.ErrDuplicate)
	p.say(p.b, p.a, "msg")
}

// The ciphertext names the chain and counter that the recipient derived its keys for; the same ciphertext has the same
// keys wherever it is read.
func TestUsedIsOfTheCiphertext(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, p.a.ProcessDistribution(group, p.b.LID(), distribution(t, p.b)))
	c := newDevice("4915100000003")
	require.NoError(t, c.ProcessDistribution(group, p.b.LID(), distribution(t, p.b)))
	body, err := p.b.EncryptGroup(group, []byte("to all"))
	require.NoError(t, err)
	_, usedA, err := p.a.DecryptGroup(group, p.b.LID(), body)
	require.NoError(t, err)
	_, usedC, err := c.DecryptGroup(group, p.b.LID(), body)
	require.NoError(t, err)
	require.Equal(t, usedA, usedC)
	require.Len(t, usedA.Chain, 36)
	require.Len(t, usedA.CipherKey, 32)
	require.Len(t, usedA.IV, 16)
	require.Nil(t, usedA.MacKey)
}

func TestBothBeginAtOnce(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, p.a.Process(p.b.LID(), p.b.Bundle()))
	require.NoError(t, p.b.Process(p.a.LID(), p.a.Bundle()))
	fromA, fromB := p.seal(p.a, p.b, "a"), p.seal(p.b, p.a, "b")
	p.open(p.a, p.b, fromA, "a")
	p.open(p.b, p.a, fromB, "b")
	for range 4 { // crossing messages on crossing sessions
		fromA, fromB = p.seal(p.a, p.b, "a"), p.seal(p.b, p.a, "b")
		p.open(p.a, p.b, fromA, "a")
		p.open(p.b, p.a, fromB, "b")
		p.say(p.a, p.b, "msg")
		p.say(p.b, p.a, "msg")
	}
}

func TestPreKeys(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	one, two := p.b.Bundle(), p.b.Bundle()
	require.NotEqual(t, one.PreKey.KeyID, two.PreKey.KeyID)
	require.Nil(t, one.PreKey.Priv)
	require.Nil(t, one.SignedPreKey.Priv)
	require.Equal(t, one.SignedPreKey.KeyID, two.SignedPreKey.KeyID)

	require.NoError(t, p.a.Process(p.b.LID(), one))
	p.say(p.a, p.b, "pkmsg")
	c := newDevice("4915100000003")
	require.NoError(t, c.Process(p.b.LID(), one)) // as if a server gave it out twice
	s := p.seal(c, p.b, "x")
	_, used, err := p.b.Decrypt(c.LID(), s.typ, s.body)
	require.ErrorIs(t, err, contact.ErrNoPreKey)
	require.Len(t, used.Chain, 32)

	two.PreKey = nil
	d := newDevice("4915100000004")
	require.NoError(t, d.Process(p.b.LID(), two))
	p.say(d, p.b, "pkmsg")
	p.say(p.b, d, "msg")
}

func TestNoSession(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	_, _, err := p.a.Encrypt(p.b.LID(), []byte("x"))
	require.ErrorIs(t, err, contact.ErrNoSession)
	p.meet()
	p.b.ResetSession(p.a.LID())
	require.False(t, p.b.HasSession(p.a.LID()))
	s := p.seal(p.a, p.b, "x")
	_, used, err := p.b.Decrypt(p.a.LID(), s.typ, s.body)
	require.ErrorIs(t, err, contact.ErrNoSession)
	require.Len(t, used.Chain, 32)

	require.NoError(t, p.b.Process(p.a.LID(), p.a.Bundle()))
	p.say(p.b, p.a, "pkmsg")
	p.say(p.a, p.b, "msg")
}

func TestChangeIdentity(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet()
	stale := p.b.Bundle()
	old, oldID := p.b.IdentityKey(), p.b.RegistrationID()
	p.b.ChangeIdentity()
	require.NotEqual(t, old.Pub, p.b.IdentityKey().Pub)
	require.NotZero(t, oldID)
	require.False(t, p.b.HasSession(p.a.LID()))

	s := p.seal(p.a, p.b, "x")
	_, _, err := p.b.Decrypt(p.a.LID(), s.typ, s.body)
	require.ErrorIs(t, err, contact.ErrNoSession)
	require.ErrorIs(t, p.a.Process(p.b.LID(), p.b.Bundle()), contact.ErrUntrusted)
	require.NoError(t, p.b.Process(p.a.LID(), p.a.Bundle()))
	s = p.seal(p.b, p.a, "it is me")
	_, _, err = p.a.Decrypt(p.b.LID(), s.typ, s.body)
	require.ErrorIs(t, err, contact.ErrUntrusted)

	p.a.ResetSession(p.b.LID())
	p.open(p.b, p.a, s, "it is me")
	p.say(p.a, p.b, "msg")

	c := newDevice("4915100000003")
	require.NoError(t, c.Process(p.b.LID(), stale))
	s = p.seal(c, p.b, "x")
	_, _, err = p.b.Decrypt(c.LID(), s.typ, s.body)
	require.Error(t, err)
}

func distribution(t *testing.T, d *contact.Device) []byte {
	t.Helper()
	skdm, err := d.DistributionMessage(group)
	require.NoError(t, err)
	return skdm
}

func TestGroup(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	body, err := p.a.EncryptGroup(group, []byte("0"))
	require.NoError(t, err)
	_, used, err := p.b.DecryptGroup(group, p.a.LID(), body)
	require.ErrorIs(t, err, contact.ErrNoSenderKey)
	require.Empty(t, used)

	skdm := distribution(t, p.a)
	require.NoError(t, p.b.ProcessDistribution(group, p.a.LID(), skdm))
	var sent [][]byte
	for i := range 4 {
		body, err = p.a.EncryptGroup(group, []byte(fmt.Sprint(i+1)))
		require.NoError(t, err)
		sent = append(sent, body)
	}
	seen := map[string]bool{}
	for _, i := range []int{2, 0, 3, 1} {
		got, used, err := p.b.DecryptGroup(group, p.a.LID(), sent[i])
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i+1), string(got))
		require.Equal(t, uint32(i+1), used.Counter)
		require.False(t, seen[string(used.CipherKey)+string(used.IV)])
		seen[string(used.CipherKey)+string(used.IV)] = true
		require.NoError(t, p.b.ProcessDistribution(group, p.a.LID(), skdm)) // heard before: must not rewind
		_, again, err := p.b.DecryptGroup(group, p.a.LID(), sent[i])
		require.ErrorIs(t, err, contact.ErrDuplicate)
		require.Equal(t, used.Chain, again.Chain)
		require.Equal(t, used.Counter, again.Counter)
	}

	p.a.ChangeIdentity() // and with it the sender key
	body, err = p.a.EncryptGroup(group, []byte("new"))
	require.NoError(t, err)
	_, _, err = p.b.DecryptGroup(group, p.a.LID(), body)
	require.ErrorIs(t, err, contact.ErrNoSenderKey)
	require.NoError(t, p.b.ProcessDistribution(group, p.a.LID(), distribution(t, p.a)))
	body, err = p.a.EncryptGroup(group, []byte("new"))
	require.NoError(t, err)
	got, _, err := p.b.DecryptGroup(group, p.a.LID(), body)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
}

func TestGroupTooFarAhead(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	require.NoError(t, p.b.ProcessDistribution(group, p.a.LID(), distribution(t, p.a)))
	var body []byte
	for range 2002 {
		var err error
		body, err = p.a.EncryptGroup(group, nil)
		require.NoError(t, err)
	}
	_, _, err := p.b.DecryptGroup(group, p.a.LID(), body)
	require.ErrorContains(t, err, "into the future")
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet()
	s := p.seal(p.a, p.b, "x")
	for _, typ := range []string{"msg", "pkmsg", "skmsg"} {
		for n := range len(s.body) {
			_, _, err := p.b.Decrypt(p.a.LID(), typ, s.body[:n])
			require.Error(t, err)
		}
	}
	flipped := bytes.Clone(s.body)
	flipped[len(flipped)-1] ^= 1
	_, _, err := p.b.Decrypt(p.a.LID(), s.typ, flipped)
	require.ErrorContains(t, err, "MAC")
	p.open(p.a, p.b, s, "x") // the failures left nothing behind

	for _, body := range []string{"", "3", "3\x12\x00", strings.Repeat("3", 100)} {
		require.ErrorIs(t, p.b.ProcessDistribution(group, p.a.LID(), []byte(body)), contact.ErrMalformed)
		_, _, err = p.b.DecryptGroup(group, p.a.LID(), []byte(body))
		require.Error(t, err)
	}
}

func TestConcurrently(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet()
	require.NoError(t, p.b.ProcessDistribution(group, p.a.LID(), distribution(t, p.a)))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			from, to := p.a, p.b
			if i%2 == 1 {
				from, to = p.b, p.a
			}
			for range 25 {
				typ, body, err := from.Encrypt(to.LID(), []byte("x"))
				if err == nil {
					_, _, err = to.Decrypt(from.LID(), typ, body)
				}
				if err == nil {
					body, err = p.a.EncryptGroup(group, []byte("x"))
				}
				if err == nil {
					_, _, err = p.b.DecryptGroup(group, p.a.LID(), body)
				}
				if err != nil {
					t.Error(err)
				}
				_ = from.Bundle()
			}
		})
	}
	all.Wait()
}

// The client reads what a device encrypts, and a device what the client encrypts.
func TestWithTheClient(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	client := signaltest.NewPeer(signaltest.NewMemoryDevice((&sqlstore.Container{}).NewDevice()))
	phone := newDevice("4915100000001")
	bundle, err := client.Bundle(ctx)
	require.NoError(t, err)
	require.NoError(t, phone.Process(client.Address(), fromClient(client, bundle.PreKeyID().Value, bundle.PreKey().PublicKey())))
	for range 5 {
		typ, body, err := phone.Encrypt(client.Address(), []byte("from the phone"))
		require.NoError(t, err)
		got, err := client.Receive(ctx, phone.LID(), &waBinary.Node{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": typ}, Content: body})
		require.NoError(t, err)
		require.Equal(t, "from the phone", string(got))

		sent, err := client.Send(ctx, []types.JID{phone.LID()}, []byte("from the client"))
		require.NoError(t, err)
		node := sent[phone.LID()]
		got, _, err = phone.Decrypt(client.Address(), node.Attrs["type"].(string), node.Content.([]byte))
		require.NoError(t, err)
		require.Equal(t, "from the client", string(got))
	}
	require.NoError(t, client.Welcome(ctx, group, phone.LID(), distribution(t, phone)))
	body, err := phone.EncryptGroup(group, []byte("to the group"))
	require.NoError(t, err)
	got, err := client.ReceiveGroup(ctx, group, phone.LID(), &waBinary.Node{Tag: "enc", Attrs: waBinary.Attrs{"v": "2", "type": "skmsg"}, Content: body})
	require.NoError(t, err)
	require.Equal(t, "to the group", string(got))

	skdm, err := client.JoinGroup(ctx, group)
	require.NoError(t, err)
	require.NoError(t, phone.ProcessDistribution(group, client.Address(), skdm))
	node, err := client.SendGroup(ctx, group, []byte("from the client"))
	require.NoError(t, err)
	got, _, err = phone.DecryptGroup(group, client.Address(), node.Content.([]byte))
	require.NoError(t, err)
	require.Equal(t, "from the client", string(got))
}

// fromClient is the client's bundle as the server would hand it out.
func fromClient(client *signaltest.Peer, preKey uint32, public [32]byte) contact.Bundle {
	return contact.Bundle{
		RegistrationID: client.Device.RegistrationID, Identity: *client.Device.IdentityKey.Pub,
		SignedPreKey: client.Device.SignedPreKey, PreKey: &keys.PreKey{KeyPair: keys.KeyPair{Pub: &public}, KeyID: preKey},
	}
}
