package pgstore_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What an unmodified client does when a send is refused. What left is what the server saw.

// clientTalk is a client on pgstore that is logged in, and somebody it talks with.
type clientTalk struct {
	*testing.T
	ctx     context.Context
	c       *pgstore.Container
	server  *waserver.Server
	account *waserver.Account
	device  *waserver.Device
	client  *whatsmeow.Client
	friend  *waserver.Contact
	answers chan *hold // the next Put of a retry answer is held
}

// gated is a SessionStore that also holds calls of the client that the test has not begun itself.
type gated struct {
	held
	next chan *hold
}

func (g gated) PutSession(ctx context.Context, address string, session []byte) error {
	if ctx.Value(holdKey{}) == nil {
		select {
		case h := <-g.next:
			ctx = context.WithValue(ctx, holdKey{}, h)
		default:
		}
	}
	return g.held.PutSession(ctx, address, session)
}

// newClientTalk pairs a client, has it talk a little, and logs it in again with a store whose Puts can be held.
func newClientTalk(t *testing.T, synchronous bool) *clientTalk {
	t.Helper()
	within, cancel := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	talk := &clientTalk{T: t, ctx: within, server: server, account: server.NewAccount(""), answers: make(chan *hold, 1)}
	talk.friend = server.NewContact(waserver.ContactConfig{Devices: 2})

	first, dsn := open(t)
	codes, synced := make(chan string, 1), make(chan struct{}, len(appstate.AllPatchNames))
	client := talk.newClient(first, true, func(e any) {
		switch e := e.(type) {
		case *events.QR:
			codes <- e.Codes[0]
		case *events.AppStateSyncComplete:
			synced <- struct{}{}
		}
	}, func(*whatsmeow.Client) {})
	require.NoError(t, client.Connect())
	talk.device, err = talk.account.Scan(within, <-codes)
	require.NoError(t, err)
	for range appstate.AllPatchNames { // by a goroutine that goes on after a Disconnect
		<-synced
	}
	require.NoError(t, talk.account.WaitSynced(within, talk.device))
	require.NoError(t, server.WaitIdle(within))
	client.Disconnect()
	require.NoError(t, server.Wait(within, func() bool { return !talk.device.Connected() }))
	require.NoError(t, first.Close())

	talk.c = reopen(t, dsn)
	talk.client = talk.newClient(talk.c, synchronous, func(any) {}, func(client *whatsmeow.Client) {
		d := client.Store
		d.Sessions = gated{held{d.Sessions, d.SenderKeys, d.EventBuffer}, talk.answers}
	})
	require.NoError(t, talk.client.Connect())
	require.NoError(t, talk.device.WaitConnected(within))
	talk.say(talk.friend.LID(), "hello")
	_, err = talk.friend.SendText(talk.account.LID(), "hello to you")
	require.NoError(t, err)
	require.NoError(t, server.WaitIdle(within))
	return talk
}

func (t *clientTalk) newClient(c *pgstore.Container, synchronous bool, handle func(any), prepare func(*whatsmeow.Client)) *whatsmeow.Client {
	d, err := c.GetFirstDevice(t.ctx)
	require.NoError(t, err)
	client := whatsmeow.NewClient(d, nil)
	client.EnableDecryptedEventBuffer, client.SynchronousAck, client.EnableAutoReconnect = true, synchronous, false
	client.AddEventHandler(handle)
	prepare(client)
	require.NoError(t, t.server.Attach(client))
	t.Cleanup(client.Disconnect)
	return client
}

// begin starts a send of ours, and holds it before its Put.
func (t *clientTalk) begin(at string, send func(context.Context) (whatsmeow.SendResponse, error)) call {
	return (&talk{T: t.T}).begin(at, func(inside context.Context) error {
		h := inside.Value(holdKey{})
		_, err := send(context.WithValue(t.ctx, holdKey{}, h))
		return err
	})
}

// say sends a text, and waits until all devices that it is for have it.
func (t *clientTalk) say(to types.JID, text string) {
	t.Helper()
	_, err := t.client.SendMessage(t.ctx, to, waserver.Conversation(text))
	require.NoError(t, err)
	for _, d := range t.friend.Devices() {
		t.got(d, text, 0)
	}
}

// got waits until a device of the friend has got a text, as the answer to so many retry receipts.
func (t *clientTalk) got(d *waserver.Device, text string, retry int) waserver.Received {
	t.Helper()
	got, err := t.friend.WaitReceived(t.ctx, func(r waserver.Received) bool {
		return r.Text == text && r.Device == d.LID() && r.Retry == retry
	})
	require.NoError(t, err)
	return got
}

// ciphertexts is how many the client has sent to a device.
func (t *clientTalk) ciphertexts(to *waserver.Device) (n int) {
	for _, sent := range t.server.Record().Sent() {
		if sent.Recipient == to.LID() {
			n++
		}
	}
	return n
}

// requireRefused requires that one send was refused, and that all that left was read.
func (t *clientTalk) requireRefused() {
	t.Helper()
	require.NoError(t, t.server.WaitIdle(t.ctx))
	require.EqualValues(t, 1, t.c.Stats().Refused)
	require.Empty(t, t.server.Record().Reused())
	for _, sent := range t.server.Record().Sent() {
		require.Empty(t, sent.Failures, &sent)
	}
	require.Empty(t, t.friend.Undecryptable())
	require.Zero(t, t.friend.Duplicates())
	require.Empty(t, t.account.Undecryptable())
}

// A retry answer uses the message key that a SendMessage holds. Nobody gets anything of the message, on no device.
func TestP4TheClientReturnsThatASendWasRefused(t *testing.T) {
	t.Parallel()
	for name, toGroup := range map[string]bool{"a direct message": false, "a group message": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk := newClientTalk(t, true)
			to := talk.friend.LID()
			if toGroup {
				to = talk.server.NewGroup(waserver.GroupConfig{}, talk.account.Contact, talk.friend).JID()
				talk.say(to, "to all")
			}
			one, two := talk.friend.Devices()[0], talk.friend.Devices()[1]
			talk.say(to, "once more?")
			sending := talk.begin(aSend, func(ctx context.Context) (whatsmeow.SendResponse, error) {
				return talk.client.SendMessage(ctx, to, waserver.Conversation("refused"))
			})
			before, beforeTwo := talk.ciphertexts(one), talk.ciphertexts(two)
			require.NoError(t, talk.friend.AskAgain(talk.got(one, "once more?", 0)))
			talk.got(one, "once more?", 1)
			require.ErrorIs(t, sending.end(), pgstore.ErrMessageKeyUsed)
			talk.say(to, "sent again")
			require.Equal(t, before+2, talk.ciphertexts(one), "the retry answer and what was sent again")
			require.Equal(t, beforeTwo+1, talk.ciphertexts(two))
			require.False(t, slices.ContainsFunc(talk.friend.Received(), waserver.Text("refused")))
			talk.requireRefused()
		})
	}
}

// A SendMessage uses the message key that a retry answer holds, and the answer is dropped. With SynchronousAck the retry receipt comes again with
// the next connection.
func TestP4TheClientDropsARetryAnswerThatWasRefused(t *testing.T) {
	t.Parallel()
	for name, synchronous := range map[string]bool{"SynchronousAck": true, "acks at once": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk := newClientTalk(t, synchronous)
			asking := talk.friend.Devices()[0]
			message := talk.got(asking, "hello", 0)
			answering := &hold{at: anAnswer, arrived: make(chan struct{}), released: make(chan struct{})}
			talk.answers <- answering
			require.NoError(t, talk.friend.AskAgain(message))
			<-answering.arrived
			before := talk.ciphertexts(asking)
			talk.say(talk.friend.LID(), "overtakes the answer")
			close(answering.released)
			require.Eventually(t, func() bool { return talk.c.Stats().Refused == 1 }, time.Minute, time.Millisecond)
			if synchronous {
				require.NoError(t, talk.server.Wait(talk.ctx, func() bool {
					stanzas, _ := talk.device.Pending()
					return stanzas == 1
				}), "the retry receipt was not acknowledged")
			} else {
				require.NoError(t, talk.server.WaitIdle(talk.ctx), "the retry receipt was acknowledged")
			}
			talk.client.Disconnect()
			require.NoError(t, talk.server.Wait(talk.ctx, func() bool { return !talk.device.Connected() }))
			require.Equal(t, before+1, talk.ciphertexts(asking), "the answer has not left")
			require.NoError(t, talk.client.Connect())
			require.NoError(t, talk.device.WaitConnected(talk.ctx))
			after := 2
			if synchronous {
				talk.got(asking, "hello", 1)
				after++
			}
			talk.say(talk.friend.LID(), "goes on")
			require.Equal(t, before+after, talk.ciphertexts(asking))
			talk.requireRefused()
		})
	}
}

// A retry answer for our own phone uses the message key that a message to it holds. The client returns of the error no more than its text.
func TestP4TheClientSaysThatAMessageToOurPhoneWasRefused(t *testing.T) {
	t.Parallel()
	talk := newClientTalk(t, true)
	phone := talk.account.Devices()[0]
	request := func(ctx context.Context) (whatsmeow.SendResponse, error) {
		return talk.client.SendPeerMessage(ctx, talk.client.BuildUnavailableMessageRequest(talk.friend.LID(), talk.friend.LID(), "A"))
	}
	copied, err := talk.account.WaitReceived(talk.ctx, func(r waserver.Received) bool { return r.Text == "hello" && r.Device == phone.LID() })
	require.NoError(t, err)
	sending := talk.begin(anAnswer, request)
	before := talk.ciphertexts(phone)
	require.NoError(t, talk.account.AskAgain(copied))
	_, err = talk.account.WaitReceived(talk.ctx, func(r waserver.Received) bool { return r.Text == "hello" && r.Retry == 1 })
	require.NoError(t, err)
	require.ErrorContains(t, sending.end(), pgstore.ErrMessageKeyUsed.Error())
	_, err = request(talk.ctx)
	require.NoError(t, err)
	_, err = talk.account.WaitReceived(talk.ctx, func(r waserver.Received) bool { return r.Peer })
	require.NoError(t, err)
	require.Equal(t, before+2, talk.ciphertexts(phone), "the retry answer and what was sent again")
	talk.requireRefused()
}
