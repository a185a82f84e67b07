package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// hold stops a call of the client right before it stores what it made of what it had read.
type hold struct {
	at       string // the store's method
	arrived  chan struct{}
	released chan struct{}
}

type holdKey struct{}

func pause(ctx context.Context, at string) {
	if h, ok := ctx.Value(holdKey{}).(*hold); ok && h.at == at {
		h.at = "" // once
		close(h.arrived)
		<-h.released
	}
}

// held are the stores of a device whose Puts can be held.
type held struct {
	store.SessionStore
	store.SenderKeyStore
	store.EventBuffer
}

func (s held) PutSession(ctx context.Context, address string, session []byte) error {
	pause(ctx, "PutSession")
	return s.SessionStore.PutSession(ctx, address, session)
}

func (s held) PutManySessions(ctx context.Context, sessions map[string][]byte) error {
	pause(ctx, "PutManySessions")
	return s.SessionStore.PutManySessions(ctx, sessions)
}

func (s held) PutSenderKey(ctx context.Context, group, user string, session []byte) error {
	pause(ctx, "PutSenderKey")
	return s.SenderKeyStore.PutSenderKey(ctx, group, user, session)
}

// PutBufferedEvent is the last thing in a decryption transaction.
func (s held) PutBufferedEvent(ctx context.Context, hash [32]byte, plaintext []byte, at time.Time) error {
	pause(ctx, "PutBufferedEvent")
	return s.EventBuffer.PutBufferedEvent(ctx, hash, plaintext, at)
}

// talk is a device on pgstore and a peer on maps.
type talk struct {
	*testing.T
	c            *pgstore.Container
	ours, theirs *signaltest.Peer
	aDecrypt     string    // what ends a decrypt of a direct message
	to           types.JID // where we send: the peer's LID, or its phone number
	group        types.JID
	seen         map[place]string
	said         int
}

func newTalk(t *testing.T) *talk { return newTalkOf(t, signaltest.NewPeer, "PutBufferedEvent") }

func newUnbufferedTalk(t *testing.T) *talk {
	return newTalkOf(t, signaltest.NewUnbufferedPeer, "PutSession")
}

func newTalkOf(t *testing.T, peerOf func(*store.Device) *signaltest.Peer, aDecrypt string, edit ...func(*pgstore.Config)) *talk {
	c, _ := open(t, append(edit, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })...)
	d := pair(t, c.NewDevice())
	gated := held{d.Sessions, d.SenderKeys, d.EventBuffer}
	d.Sessions, d.SenderKeys, d.EventBuffer = gated, gated, gated
	peer := memoryPeers(1)[0]
	return &talk{
		T: t, c: c, ours: peerOf(d), theirs: peer, aDecrypt: aDecrypt, to: peer.Address(),
		group: types.NewJID("1-2", types.GroupServer), seen: make(map[place]string),
	}
}

// call is one of ours that is held before its Put; end lets it go on and returns its error.
type call struct{ end func() error }

func (t *talk) begin(at string, op func(ctx context.Context) error) call {
	h := &hold{at: at, arrived: make(chan struct{}), released: make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		err := errors.New("failed in the call itself")
		defer func() { result <- err }() // also when it failed the test
		err = op(context.WithValue(ctx, holdKey{}, h))
	}()
	select {
	case <-h.arrived:
	case err := <-result:
		require.FailNow(t, "not held", "%v", err)
	}
	return call{func() error {
		close(h.released)
		return <-result
	}}
}

// left has the peer read what left.
func (t *talk) left(node *waBinary.Node, text string, err error) error {
	if err != nil {
		return err
	}
	at, body := placeOf(t, 0, node)
	require.NotContains(t, t.seen, at, "a message key was used twice")
	t.seen[at] = string(body)
	read := t.theirs.Receive
	if node.Attrs["type"] == "skmsg" {
		read = func(ctx context.Context, from types.JID, node *waBinary.Node) ([]byte, error) {
			return t.theirs.ReceiveGroup(ctx, t.group, from, node)
		}
	}
	got, err := read(ctx, t.ours.Address(), node)
	require.NoError(t, err, "the peer cannot read what left")
	require.Equal(t, text, string(got))
	return nil
}

func (t *talk) text() string {
	t.said++
	return fmt.Sprint("message ", t.said)
}

// send, answer and meet are our three ways to send a direct message; sendGroup to a group.
func (t *talk) send(ctx context.Context) error {
	text, to := t.text(), t.to
	all, err := t.ours.Send(ctx, []types.JID{to}, []byte(text))
	return t.left(all[to], text, err)
}

func (t *talk) answer(ctx context.Context) error {
	text := t.text()
	node, err := t.ours.Answer(ctx, t.to, []byte(text))
	return t.left(node, text, err)
}

func (t *talk) meet(ctx context.Context) error {
	text := t.text()
	node, err := t.ours.Meet(ctx, t.theirs, []byte(text))
	return t.left(node, text, err)
}

func (t *talk) sendGroup(ctx context.Context) error {
	text := t.text()
	node, err := t.ours.SendGroup(ctx, t.group, []byte(text))
	return t.left(node, text, err)
}

// letter is what the peer wrote to us.
type letter struct {
	from types.JID
	text string
	node *waBinary.Node
}

func (t *talk) written() letter {
	text := t.text()
	all, err := t.theirs.Send(ctx, []types.JID{t.ours.Address()}, []byte(text))
	require.NoError(t, err)
	return letter{t.to, text, all[t.ours.Address()]}
}

// writtenAnew begins a new session.
func (t *talk) writtenAnew() letter {
	text := t.text()
	node, err := t.theirs.Meet(ctx, t.ours, []byte(text))
	require.NoError(t, err)
	return letter{t.to, text, node}
}

func (t *talk) read(l letter) func(context.Context) error {
	return func(ctx context.Context) error {
		got, err := t.ours.Receive(ctx, l.from, l.node)
		require.NoError(t, err, "we cannot read")
		require.Equal(t, l.text, string(got))
		return nil
	}
}

func (t *talk) do(ops ...func(context.Context) error) {
	t.Helper()
	for _, op := range ops {
		require.NoError(t, op(ctx))
	}
}

// introduce leaves both with an established session, and our next message on the chain of the one before.
func (t *talk) introduce() {
	signaltest.Meet(t.T, t.theirs, t.ours)
	t.do(t.read(t.written()), t.send)
}

// goOn shows that nothing is broken: messages both ways, with a step of the ratchet each time.
func (t *talk) goOn() {
	for range 3 {
		t.do(t.send, t.answer, t.read(t.written()), t.read(t.written()))
	}
}

func (t *talk) refused(err error) {
	t.Helper()
	require.ErrorIs(t, err, pgstore.ErrMessageKeyUsed)
	require.ErrorIs(t, err, context.Canceled, "the client must not acknowledge a retry receipt that it did not answer")
}

func (t *talk) session() string {
	session, err := t.ours.Device.Sessions.GetSession(ctx, t.to.SignalAddress().String())
	require.NoError(t, err)
	return string(session)
}

func (t *talk) put(session string) {
	require.NoError(t, t.ours.Device.Sessions.PutSession(ctx, t.to.SignalAddress().String(), []byte(session)))
}

const (
	aSend    = "PutManySessions"
	anAnswer = "PutSession"
)

// Every kind of race, in both orders, with real records. After each the talk goes on both ways.
func TestP4EveryKindOfRace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		merged  int64
		refused int64
		race    func(t *talk)
	}{
		{"nothing races", 0, 0, func(t *talk) { t.goOn() }},
		{"a send overtakes a decrypt", 1, 0, func(t *talk) {
			t.do(t.read(t.written()))
			reading := t.begin(t.aDecrypt, t.read(t.written()))
			t.do(t.send)
			t.do(func(context.Context) error { return reading.end() })
		}},
		{"a decrypt overtakes a send", 1, 0, func(t *talk) {
			t.do(t.read(t.written()))
			sending := t.begin(aSend, t.send)
			t.do(t.read(t.written()))
			require.NoError(t, sending.end())
		}},
		{"a decrypt overtakes a retry answer", 1, 0, func(t *talk) {
			t.do(t.read(t.written()))
			answering := t.begin(anAnswer, t.answer)
			t.do(t.read(t.written()))
			require.NoError(t, answering.end())
		}},
		{"a retry answer overtakes a decrypt", 1, 0, func(t *talk) {
			t.do(t.read(t.written()))
			reading := t.begin(t.aDecrypt, t.read(t.written()))
			t.do(t.answer)
			require.NoError(t, reading.end())
		}},
		{"two sends with one message key", 0, 1, func(t *talk) {
			sending := t.begin(aSend, t.send)
			t.do(t.answer)
			t.refused(sending.end())
		}},
		{"two retry answers with one message key", 0, 1, func(t *talk) {
			answering := t.begin(anAnswer, t.answer)
			t.do(t.answer)
			t.refused(answering.end())
		}},
		{"a send is overtaken by two more", 0, 1, func(t *talk) {
			answering := t.begin(anAnswer, t.answer)
			t.do(t.send, t.send)
			t.refused(answering.end())
		}},
		{"a send is overtaken by a send and a decrypt", 0, 1, func(t *talk) {
			t.do(t.read(t.written()))
			answering := t.begin(anAnswer, t.answer)
			t.do(t.send, t.read(t.written()))
			t.refused(answering.end())
		}},
		{"a step of the ratchet overtakes a send", 1, 0, func(t *talk) {
			sending := t.begin(aSend, t.send)
			t.do(t.read(t.written()))
			require.NoError(t, sending.end())
		}},
		{"a step of the ratchet, sent on already, overtakes a send", 1, 0, func(t *talk) {
			sending := t.begin(aSend, t.send)
			t.do(t.read(t.written()), t.send, t.send)
			require.NoError(t, sending.end())
		}},
		{"many steps of the ratchet overtake a retry answer", 1, 0, func(t *talk) {
			answering := t.begin(anAnswer, t.answer)
			for range 4 {
				t.do(t.read(t.written()), t.send)
			}
			require.NoError(t, answering.end())
		}},
		{"more steps of the ratchet than the peer keeps chains of", 0, 1, func(t *talk) {
			sending := t.begin(aSend, t.send)
			for range 5 {
				t.do(t.read(t.written()), t.send)
			}
			t.refused(sending.end())
		}},
		{"a send overtakes a step of the ratchet", 1, 0, func(t *talk) {
			reading := t.begin(t.aDecrypt, t.read(t.written()))
			t.do(t.send)
			require.NoError(t, reading.end())
		}},
		{"two sends hold a chain that was stepped over", 1, 1, func(t *talk) {
			first, second := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			t.do(t.read(t.written()))
			require.NoError(t, second.end())
			t.refused(first.end())
		}},
		{"two sends hold a chain that was stepped over twice", 1, 1, func(t *talk) {
			first, second := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			t.do(t.read(t.written()), t.send)
			t.do(t.read(t.written()), t.send)
			require.NoError(t, second.end()) // it changes nothing of the record, and its key is used
			t.refused(first.end())
		}},
		{"two decrypts step the ratchet at once", 1, 0, func(t *talk) {
			one, two := t.written(), t.written()
			reading := t.begin(t.aDecrypt, t.read(one))
			t.do(t.read(two), t.send)
			require.NoError(t, reading.end())
		}},
		{"two decrypts on one chain", 1, 0, func(t *talk) {
			t.do(t.read(t.written()))
			one, two, three := t.written(), t.written(), t.written()
			reading := t.begin(t.aDecrypt, t.read(two))
			t.do(t.read(three))
			require.NoError(t, reading.end())
			t.do(t.read(one))
		}},
		{"a decrypt of a chain that was stepped over", 1, 0, func(t *talk) {
			late := t.written()
			for range 3 {
				t.do(t.read(t.written()), t.send)
			}
			reading := t.begin(t.aDecrypt, t.read(late))
			t.do(t.read(t.written()), t.send)
			require.NoError(t, reading.end())
		}},
		{"a new session of the peer overtakes a send", 1, 0, func(t *talk) {
			sending := t.begin(aSend, t.send)
			t.do(t.read(t.writtenAnew()))
			require.NoError(t, sending.end())
		}},
		{"a send overtakes a new session of the peer", 1, 0, func(t *talk) {
			reading := t.begin(t.aDecrypt, t.read(t.writtenAnew()))
			t.do(t.send)
			require.NoError(t, reading.end())
		}},
		{"our new session overtakes a decrypt", 1, 0, func(t *talk) {
			reading := t.begin(t.aDecrypt, t.read(t.written()))
			t.do(t.meet)
			require.NoError(t, reading.end())
		}},
		{"a decrypt overtakes our new session", 1, 0, func(t *talk) {
			meeting := t.begin(anAnswer, t.meet)
			t.do(t.read(t.written()))
			require.NoError(t, meeting.end())
		}},
		{"our new session overtakes one of the peer", 1, 0, func(t *talk) {
			reading := t.begin(t.aDecrypt, t.read(t.writtenAnew()))
			t.do(t.meet)
			require.NoError(t, reading.end())
		}},
		{"a new session of the peer overtakes ours", 1, 0, func(t *talk) {
			meeting := t.begin(anAnswer, t.meet)
			t.do(t.read(t.writtenAnew()))
			require.NoError(t, meeting.end())
		}},
		{"two new sessions of ours", 1, 0, func(t *talk) {
			meeting := t.begin(anAnswer, t.meet)
			t.do(t.meet)
			require.NoError(t, meeting.end())
		}},
		{"a send overtakes our new session", 1, 0, func(t *talk) {
			meeting := t.begin(anAnswer, t.meet)
			t.do(t.send)
			require.NoError(t, meeting.end())
		}},
		{"a decrypt promotes an archived state while a send uses the current one", 1, 0, func(t *talk) {
			old := t.written() // on the session that ours replaces
			t.do(t.meet)
			sending := t.begin(aSend, t.send)
			t.do(t.read(old))
			require.NoError(t, sending.end())
		}},
		{"a session that was deleted stays deleted", 0, 0, func(t *talk) {
			sending := t.begin(aSend, t.send)
			require.NoError(t, t.ours.Device.Sessions.DeleteSession(ctx, t.to.SignalAddress().String()))
			require.NoError(t, sending.end())
			has, err := t.ours.Device.Sessions.HasSession(ctx, t.to.SignalAddress().String())
			require.NoError(t, err)
			require.False(t, has)
			t.do(t.meet)
		}},
		{"two sends hold a session that is deleted", 0, 1, func(t *talk) {
			first, second := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			require.NoError(t, t.ours.Device.Sessions.DeleteAllSessions(ctx, t.to.SignalAddressUser()))
			require.NoError(t, first.end())
			t.refused(second.end())
			t.do(t.meet)
		}},
		{"a session is deleted in a transaction while two sends hold it", 0, 1, func(t *talk) {
			first, second := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			require.NoError(t, t.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				require.NoError(t, t.ours.Device.Sessions.DeleteSession(inside, t.to.SignalAddress().String()))
				return first.end() // before the deletion is visible
			}))
			t.refused(second.end())
			t.do(t.meet)
		}},
		{"a session that does not parse is replaced", 0, 0, func(t *talk) {
			sending := t.begin(aSend, t.send)
			t.put(`{"SessionState":null}`)
			require.NoError(t, sending.end())
		}},
		{"a session of another version is another session", 1, 0, func(t *talk) {
			session := t.session()
			sending := t.begin(aSend, t.send)
			t.put(strings.Replace(session, `"SessionVersion":3`, `"SessionVersion":2`, 1))
			require.NoError(t, sending.end())
		}},
	} {
		for client, newTalk := range map[string]func(*testing.T) *talk{"event buffer": newTalk, "no event buffer": newUnbufferedTalk} {
			t.Run(tc.name+", "+client, func(t *testing.T) {
				t.Parallel()
				talk := newTalk(t)
				talk.introduce()
				before := talk.c.Stats()
				tc.race(talk)
				after := talk.c.Stats()
				require.Equal(t, tc.merged, after.Merged-before.Merged, "merged")
				require.Equal(t, tc.refused, after.Refused-before.Refused, "refused")
				talk.goOn()
			})
		}
	}
}

// An answer to our first message takes its pre-key away, and a send that held the session does not bring that back.
func TestP4APendingPreKeyThatWasAnsweredDoesNotComeBack(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	talk.do(talk.meet)
	sending := talk.begin(aSend, talk.send)
	talk.do(talk.read(talk.written()))
	require.NoError(t, sending.end())
	require.NotContains(t, talk.session(), `"BaseKey"`, "the pending pre-key")
	talk.goOn()
}

// crowd gives us sessions with more devices, and says whom a send to all of them goes to.
func (t *talk) crowd() (all []types.JID) {
	for _, p := range memoryPeers(3) {
		signaltest.Meet(t, p, t.ours)
		all = append(all, p.Address())
	}
	return append(all, t.to)
}

// sendAll sends to many devices, and the peer reads it.
func (t *talk) sendAll(to []types.JID) func(context.Context) error {
	return func(ctx context.Context) error {
		text := t.text()
		sent, err := t.ours.Send(ctx, to, []byte(text))
		return t.left(sent[t.to], text, err)
	}
}

// One used message key refuses the whole of a send, and nothing of it is stored. The answer that used it had waited for
// the send, but not for ever.
func TestP4ARefusedSendStoresNothing(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	talk.introduce()
	all := talk.crowd()
	sessions := func() map[string][]byte {
		var addresses []string
		for _, jid := range all[:3] {
			addresses = append(addresses, jid.SignalAddress().String())
		}
		got, err := talk.ours.Device.Sessions.GetManySessions(ctx, addresses)
		require.NoError(t, err)
		return got
	}
	before := sessions()
	sending := talk.begin(aSend, talk.sendAll(all))
	talk.do(talk.answer)
	talk.refused(sending.end())
	require.Equal(t, before, sessions())
	talk.do(talk.sendAll(all))
}

// A retry answer and a send to many devices take turns, so that neither is refused.
func TestP4RetryAnswersAndSendsToManyTakeTurns(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	talk.introduce()
	all := talk.crowd()
	stored := func() string { // no send reads like this
		var record string
		require.NoError(t, talk.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
			got, err := talk.ours.Device.Sessions.GetSession(inside, talk.to.SignalAddress().String())
			record = string(got)
			return err
		}))
		return record
	}
	for range 20 {
		before := stored()
		sending := talk.begin(aSend, talk.sendAll(all))
		answered := make(chan error, 1)
		go func() { answered <- talk.answerOnly(ctx) }()
		require.Equal(t, before, stored(), "the answer has not gone first")
		require.NoError(t, sending.end())
		require.NoError(t, <-answered)

		answering := talk.begin(anAnswer, talk.answerOnly)
		sent := make(chan error, 1)
		go func() { sent <- talk.sendOnly(ctx, all) }()
		require.NoError(t, answering.end())
		require.NoError(t, <-sent)
	}
	require.Zero(t, talk.c.Stats().Refused)
}

// answerOnly and sendOnly let nobody read, so that they may run beside something else.
func (t *talk) answerOnly(ctx context.Context) error {
	_, err := t.ours.Answer(ctx, t.to, []byte("answer"))
	return err
}

func (t *talk) sendOnly(ctx context.Context, to []types.JID) error {
	_, err := t.ours.Send(ctx, to, []byte("to all"))
	return err
}

func TestP4OurSenderKeyIsNeverTakenBack(t *testing.T) {
	t.Parallel()
	introduced := func(t *testing.T) *talk {
		talk := newTalk(t)
		distribution, err := talk.ours.JoinGroup(ctx, talk.group)
		require.NoError(t, err)
		require.NoError(t, talk.theirs.Welcome(ctx, talk.group, talk.ours.Address(), distribution))
		talk.do(talk.sendGroup)
		return talk
	}
	t.Run("two sends with one message key", func(t *testing.T) {
		t.Parallel()
		talk := introduced(t)
		sending := talk.begin("PutSenderKey", talk.sendGroup)
		talk.do(talk.sendGroup)
		talk.refused(sending.end())
		talk.do(talk.sendGroup)
	})
	t.Run("two make a key at once", func(t *testing.T) {
		t.Parallel()
		talk := newTalk(t)
		join := func(ctx context.Context) error {
			distribution, err := talk.ours.JoinGroup(ctx, talk.group)
			if err == nil {
				err = talk.theirs.Welcome(ctx, talk.group, talk.ours.Address(), distribution)
			}
			return err
		}
		joining := talk.begin("PutSenderKey", join)
		talk.do(join, talk.sendGroup)
		talk.refused(joining.end())
		talk.do(talk.sendGroup)
	})
}

// A new sender key that comes in while a message of the old one is decrypted is not lost.
func TestASenderKeyThatComesInWhileAMessageIsDecryptedIsKept(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	welcome := func() {
		distribution, err := talk.theirs.JoinGroup(ctx, talk.group)
		require.NoError(t, err)
		require.NoError(t, talk.ours.Welcome(ctx, talk.group, talk.theirs.Address(), distribution))
	}
	write := func() letter {
		text := talk.text()
		node, err := talk.theirs.SendGroup(ctx, talk.group, []byte(text))
		require.NoError(t, err)
		return letter{talk.theirs.Address(), text, node}
	}
	read := func(l letter) func(context.Context) error {
		return func(ctx context.Context) error {
			got, err := talk.ours.ReceiveGroup(ctx, talk.group, l.from, l.node)
			require.NoError(t, err)
			require.Equal(t, l.text, string(got))
			return nil
		}
	}
	welcome()
	one, two := write(), write()
	reading := talk.begin(talk.aDecrypt, read(two))
	talk.theirs.Device.SenderKeys = memoryPeers(1)[0].Device.SenderKeys // it has lost its key
	welcome()
	require.NoError(t, reading.end())
	talk.do(read(write()), read(one))
	require.EqualValues(t, 1, talk.c.Stats().Merged)
}

// A phone number's session becomes the LID's while sends and decrypts hold it.
func TestP4AMigrationTakesNoChainBack(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		refused int64
		race    func(t *talk, migrate func(context.Context) error)
	}{
		{"nothing races", 0, func(t *talk, migrate func(context.Context) error) { t.do(migrate) }},
		{"a send holds the phone number's session", 0, func(t *talk, migrate func(context.Context) error) {
			sending := t.begin(aSend, t.send)
			t.do(migrate)
			require.NoError(t, sending.end())
		}},
		{"two sends hold it", 1, func(t *talk, migrate func(context.Context) error) {
			sending, answering := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			t.do(migrate)
			require.NoError(t, answering.end())
			t.refused(sending.end())
		}},
		{"the LID has sent with the key that a send holds", 1, func(t *talk, migrate func(context.Context) error) {
			sending := t.begin(aSend, t.send)
			t.do(migrate, t.send)
			t.refused(sending.end())
		}},
		{"the ratchet is stepped under the LID while two sends hold the phone number's session", 1, func(t *talk, migrate func(context.Context) error) {
			sending, answering := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			t.do(migrate)
			t.do(t.read(t.written()), t.send)
			require.NoError(t, sending.end())
			t.refused(answering.end())
		}},
		{"a decrypt holds it", 0, func(t *talk, migrate func(context.Context) error) {
			reading := t.begin(t.aDecrypt, t.read(t.written()))
			t.do(t.send, migrate, t.send)
			require.NoError(t, reading.end())
		}},
		{"the LID has the session already, and has sent since", 0, func(t *talk, migrate func(context.Context) error) {
			t.copied(migrate, func() { t.do(t.send, t.send) })
		}},
		{"the LID has the session already, from before the last step of the ratchet", 0, func(t *talk, migrate func(context.Context) error) {
			behind, pn := t.session(), t.to
			t.do(t.read(t.written()), t.send)
			t.to = t.theirs.Address()
			t.put(behind)
			t.to = pn
			t.do(migrate)
		}},
		{"the LID has the session already, and has stepped the ratchet since", 0, func(t *talk, migrate func(context.Context) error) {
			t.copied(migrate, func() { t.do(t.read(t.written()), t.send) })
		}},
		{"the LID has another session", 0, func(t *talk, migrate func(context.Context) error) {
			pn := t.to
			t.to = t.theirs.Address()
			t.do(t.meet, t.send)
			t.to = pn
			t.do(migrate)
		}},
		{"in a transaction, while a send goes on", 0, func(t *talk, migrate func(context.Context) error) {
			pn := t.to
			require.NoError(t, t.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				t.do(func(context.Context) error { return migrate(inside) })
				t.to = pn
				t.do(t.send)
				t.to = t.theirs.Address()
				return nil
			}))
		}},
	} {
		for client, newTalk := range map[string]func(*testing.T) *talk{"event buffer": newTalk, "no event buffer": newUnbufferedTalk} {
			t.Run(tc.name+", "+client, func(t *testing.T) {
				t.Parallel()
				talk := newTalk(t)
				pn, lid := *talk.theirs.Device.ID, talk.theirs.Address()
				talk.to = pn
				talk.do(talk.read(talk.writtenAnew()), talk.send, talk.read(talk.written()), talk.send)
				tc.race(talk, func(ctx context.Context) error {
					talk.to = lid
					return talk.ours.Device.Sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD())
				})
				require.Equal(t, tc.refused, talk.c.Stats().Refused, "refused")
				talk.goOn()
				has, err := talk.ours.Device.Sessions.HasSession(ctx, pn.SignalAddress().String())
				require.NoError(t, err)
				require.False(t, has)
			})
		}
	}
}

// copied has the session under the LID as well, lets it live there, and migrates.
func (t *talk) copied(migrate func(context.Context) error, live func()) {
	session, pn := t.session(), t.to
	t.to = t.theirs.Address()
	t.put(session)
	live()
	t.to = pn
	t.do(migrate)
}

// Our own sender key that a send holds under the phone number when it is migrated.
func TestP4AMigrationTakesNoSenderKeyBack(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	keys, group := talk.ours.Device.SenderKeys, talk.group.String()
	pn, lid := *talk.ours.Device.ID, talk.ours.Address()
	at := func(jid types.JID) []byte {
		key, err := keys.GetSenderKey(ctx, group, jid.SignalAddress().String())
		require.NoError(t, err)
		return key
	}
	distribution, err := talk.ours.JoinGroup(ctx, talk.group)
	require.NoError(t, err)
	require.NoError(t, talk.theirs.Welcome(ctx, talk.group, lid, distribution))
	talk.do(talk.sendGroup)
	one := at(lid)
	require.NoError(t, keys.PutSenderKey(ctx, group, pn.SignalAddress().String(), one))
	talk.do(talk.sendGroup)
	two := at(lid)
	require.Equal(t, string(one), string(at(pn)), "a send holds it")
	require.NoError(t, talk.ours.Device.Sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD()))
	require.Equal(t, string(two), string(at(lid)), "the one that has sent more stays")
	talk.refused(keys.PutSenderKey(ctx, group, pn.SignalAddress().String(), two))
	require.Nil(t, at(pn))
	talk.do(talk.sendGroup)
}
