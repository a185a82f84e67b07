package waserver_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestDirectMessagesBothWays(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	var friends []*waserver.Contact
	for i := range 5 {
		friends = append(friends, b.server.NewContact(waserver.ContactConfig{Devices: 1 + i%3}))
	}
	var want []string
	for i := range 40 {
		friend := friends[i%len(friends)]
		in, out := fmt.Sprintf("in %d", i), fmt.Sprintf("out %d", i)
		if i%2 == 0 {
			b.client.say(ctx, t, friend.LID(), out)
		}
		_, err := friend.Devices()[i%len(friend.Devices())].Send(b.account.LID(), waserver.Conversation(in))
		require.NoError(t, err)
		want = append(want, in)
		if i%2 == 1 {
			b.client.say(ctx, t, friend.PN(), out)
		}
		for _, device := range friend.Devices() {
			_, err = friend.WaitReceived(ctx, func(r waserver.Received) bool { return r.Text == out && r.Device == device.LID() })
			require.NoError(t, err)
		}
	}
	waitFor(ctx, t, b.client, text("in 39"))
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, want, b.client.texts(), "once each and in order")
	own := 0
	for _, r := range b.account.Received() {
		if r.FromMe {
			own++
		}
	}
	require.Equal(t, 40, own, "copies to our own phone")
	require.Zero(t, b.server.Stats().PHashMismatches)
	require.Zero(t, b.server.Stats().RetryReceipts)
	b.requireClean(t)
}

func TestReceiptsReachTheSenders(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	id, err := friend.SendText(b.account.LID(), "hello")
	require.NoError(t, err)
	got := waitFor(ctx, t, b.client, text("hello"))
	require.Equal(t, friend.LID(), got.Info.Chat)
	require.Equal(t, friend.PN(), got.Info.SenderAlt)
	require.NoError(t, b.client.MarkRead(ctx, []types.MessageID{id}, time.Now(), got.Info.Chat, types.EmptyJID))
	var seen []string
	require.NoError(t, b.server.Wait(ctx, func() bool {
		seen = nil
		for _, r := range friend.Receipts() {
			if r.From == b.device.LID() {
				seen = append(seen, r.Type)
			}
		}
		return len(seen) == 2
	}))
	require.ElementsMatch(t, []string{"inactive", "read"}, seen, "in any order: the message is shown before it is acknowledged")

	response := b.client.say(ctx, t, friend.LID(), "hi")
	waitFor(ctx, t, b.client, func(e *events.Receipt) bool {
		return e.Type == types.ReceiptTypeDelivered && e.MessageIDs[0] == response.ID && e.Sender == friend.LID()
	})
	b.requireClean(t)
}

func TestOfflineQueueAndRedelivery(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	// What is acknowledged into the void comes again, and the client has it once.
	lost := b.server.Inject(waserver.Fault{
		Direction: waserver.FromClient, Action: waserver.Lose, Times: 3,
		Match: func(_ *waserver.Device, node *waBinary.Node) bool { return node.Tag == "receipt" },
	})
	for i := range 3 {
		_, err := friend.SendText(b.account.PN(), fmt.Sprint("lost ", i))
		require.NoError(t, err)
	}
	require.NoError(t, b.server.Wait(ctx, func() bool { return lost.Hits() == 3 }))
	b.client.Disconnect()
	require.NoError(t, b.server.Wait(ctx, func() bool { return !b.device.Connected() }))
	for i := range 3 {
		_, err := friend.SendText(b.account.PN(), fmt.Sprint("away ", i))
		require.NoError(t, err)
	}
	_, waiting := b.device.Pending()
	require.Equal(t, 6, waiting)
	require.NoError(t, b.client.Connect())
	preview := waitFor(ctx, t, b.client, func(e *events.OfflineSyncPreview) bool { return e.Messages > 0 })
	require.Equal(t, 6, preview.Messages)
	waitFor(ctx, t, b.client, func(e *events.OfflineSyncCompleted) bool { return e.Count == preview.Total })
	waitFor(ctx, t, b.client, text("away 2"))
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, []string{"lost 0", "lost 1", "lost 2", "away 0", "away 1", "away 2"}, b.client.texts())
	require.Equal(t, 3, b.server.Stats().Redelivered)
	b.requireClean(t)
}

// TestOnlyDeliveryEndsRedelivery loses the receipts that say that messages were delivered. Others of the same messages say
// something else.
func TestOnlyDeliveryEndsRedelivery(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	lost := b.server.Inject(waserver.Fault{
		Direction: waserver.FromClient, Action: waserver.Lose, Times: 2,
		Match: func(_ *waserver.Device, node *waBinary.Node) bool {
			return node.Tag == "receipt" && (node.Attrs["type"] == "inactive" || node.Attrs["type"] == "sender")
		},
	})
	id, err := friend.SendText(b.account.LID(), "hello")
	require.NoError(t, err)
	got := waitFor(ctx, t, b.client, text("hello"))
	require.NoError(t, b.client.MarkRead(ctx, []types.MessageID{id}, time.Now(), got.Info.Chat, types.EmptyJID))
	peer, err := b.account.SendPeer(b.device, &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type: waE2E.ProtocolMessage_APP_STATE_SYNC_KEY_SHARE.Enum(),
	}})
	require.NoError(t, err)
	require.NoError(t, b.server.Wait(ctx, func() bool {
		return lost.Hits() == 2 &&
			slices.Contains(friend.Receipts(), waserver.ReceiptSeen{Device: friend.LID(), From: b.device.LID(), ID: id, Type: "read"}) &&
			slices.Contains(b.account.Receipts(), waserver.ReceiptSeen{Device: b.account.LID(), From: b.device.LID(), ID: peer, Type: "peer_msg"})
	}))
	_, waiting := b.device.Pending()
	require.Equal(t, 2, waiting)

	b.device.Cut()
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, 2, b.server.Stats().Redelivered)
	require.Equal(t, []string{"hello"}, b.client.texts())
	b.requireClean(t)
}

func TestWaitIdleWaitsForAClientThatIsAway(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	require.NoError(t, b.server.WaitIdle(ctx))
	b.client.Disconnect()
	require.NoError(t, b.server.Wait(ctx, func() bool { return !b.device.Connected() }))
	require.NoError(t, b.server.WaitIdle(ctx), "nothing waits for it")
	_, err := b.server.NewContact(waserver.ContactConfig{}).SendText(b.account.LID(), "hello")
	require.NoError(t, err)
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = b.server.WaitIdle(short)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "1 stanzas for "+b.device.LID().String()+", which is not connected")
	require.NoError(t, b.client.Connect())
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, []string{"hello"}, b.client.texts())
}

func TestFaultsOnTheWayIn(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	send := func(what string) {
		_, err := friend.SendText(b.account.LID(), what)
		require.NoError(t, err)
	}
	b.server.Inject(waserver.Fault{Action: waserver.DeliverTwice})
	send("twice")
	waitFor(ctx, t, b.client, text("twice"))

	b.server.Inject(waserver.Fault{Action: waserver.Swap})
	send("second")
	send("first")
	waitFor(ctx, t, b.client, text("second"))

	held := b.server.Inject(waserver.Fault{Action: waserver.Hold})
	send("held")
	send("overtakes")
	waitFor(ctx, t, b.client, text("overtakes"))
	held.Release()
	waitFor(ctx, t, b.client, text("held"))

	b.server.Inject(waserver.Fault{Action: waserver.Late, Delay: 100 * time.Millisecond})
	send("late")
	send("in time")
	waitFor(ctx, t, b.client, text("late"))

	b.server.Inject(waserver.Fault{Action: waserver.CutBefore})
	send("after a cut")
	waitFor(ctx, t, b.client, text("after a cut"))

	b.server.Inject(waserver.Fault{Action: waserver.CutAfter})
	send("before a cut")
	waitFor(ctx, t, b.client, text("before a cut"))

	require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == 3 && b.device.Connected() }))
	send("end")
	waitFor(ctx, t, b.client, text("end"))
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, []string{
		"twice", "first", "second", "overtakes", "held", "in time", "late", "after a cut", "before a cut", "end",
	}, b.client.texts())
	require.Zero(t, b.server.Stats().RetryReceipts)
	b.requireClean(t)
}

func TestFaultsOnTheWayOut(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.client.reconnectByHand(ctx) // the client's own way races with a send that waits for the connection, inside of exsync.Event
	b.acquainted(ctx, t, friend)  // the privacy token that goes out with the first message would wait for the connection too
	want := []string{"you too"}
	for i, action := range []waserver.Action{waserver.CutBefore, waserver.CutAfter, waserver.CutAfterAck} {
		fault := b.server.Inject(waserver.Fault{Direction: waserver.FromClient, Action: action})
		what := fmt.Sprint("message ", i)
		b.client.say(ctx, t, friend.LID(), what)
		want = append(want, what)
		require.Equal(t, 1, fault.Hits())
		require.NoError(t, b.server.Wait(ctx, func() bool { return b.device.Logins() == i+2 && b.device.Connected() }))
	}
	require.Equal(t, 1, b.server.Stats().Resent, "the second message had been handled")

	b.server.Inject(waserver.Fault{Direction: waserver.FromClient, Action: waserver.AnswerError, Code: 479})
	_, err := b.client.SendMessage(ctx, friend.LID(), waserver.Conversation("refused"))
	require.Error(t, err)

	b.server.Inject(waserver.Fault{Direction: waserver.FromClient, Action: waserver.WrongPHash})
	b.client.say(ctx, t, friend.LID(), "odd hash")
	want = append(want, "odd hash")
	_, err = friend.WaitReceived(ctx, waserver.Text("odd hash"))
	require.NoError(t, err)
	var got []string
	for _, r := range friend.Received() {
		got = append(got, r.Text)
	}
	require.Equal(t, want, got)
	b.requireClean(t)
}

func TestClientAsksAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.hear(ctx, t, friend, "one")
	b.client.say(ctx, t, friend.LID(), "two") // the session is no first message any more
	_, err := friend.WaitReceived(ctx, waserver.Text("two"))
	require.NoError(t, err)
	b.client.forget(ctx, t, friend)

	_, err = friend.SendText(b.account.LID(), "three")
	require.NoError(t, err)
	got := waitFor(ctx, t, b.client, text("three"))
	require.Equal(t, 2, got.RetryCount)
	waitFor[*events.UndecryptableMessage](ctx, t, b.client)
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, 2, b.server.Stats().RetryReceipts)
	b.requireClean(t)
}

// forget loses the client's session with a contact's phone.
func (c *testClient) forget(ctx context.Context, t *testing.T, contact *waserver.Contact) {
	t.Helper()
	require.NoError(t, c.Store.Sessions.DeleteSession(ctx, contact.LID().SignalAddress().String()))
}

func TestContactAsksAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.hear(ctx, t, friend, "one")
	friend.Reinstall(friend.Devices()[0], true)

	b.client.say(ctx, t, friend.LID(), "two")
	got, err := friend.WaitReceived(ctx, waserver.Text("two"))
	require.NoError(t, err)
	require.Equal(t, 1, got.Retry)
	failed := friend.Undecryptable()
	require.Len(t, failed, 1)
	require.True(t, failed[0].Recovered)
	require.Empty(t, friend.Lost(), "it came again")
	require.Equal(t, 1, b.server.Stats().RetryAnswers)
	b.tell(ctx, t, friend, "three")
	b.requireClean(t)
}

func TestADeviceAsksForAMessageThatItHas(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{Devices: 2})
	group := b.server.NewGroup(waserver.GroupConfig{}, b.account.Contact, friend)
	for _, d := range friend.Devices() { // so that nothing is a first message
		_, err := d.Send(b.account.LID(), waserver.Conversation("hello"))
		require.NoError(t, err)
	}
	require.NoError(t, b.server.WaitIdle(ctx))
	b.tell(ctx, t, friend, "direct")
	b.client.say(ctx, t, group.JID(), "to all")
	b.tell(ctx, t, friend, "copied")
	for text, who := range map[string]*waserver.Contact{"direct": friend, "to all": friend, "copied": b.account.Contact} {
		first, err := who.WaitReceived(ctx, waserver.Text(text))
		require.NoError(t, err)
		require.NoError(t, who.AskAgain(first))
		again, err := who.WaitReceived(ctx, func(r waserver.Received) bool { return r.Text == text && r.Retry == 1 })
		require.NoError(t, err)
		require.Equal(t, []any{first.ID, first.Device, first.Chat}, []any{again.ID, again.Device, again.Chat})
		require.Equal(t, "msg", again.Type, "on the session that there was")
	}
	require.Error(t, friend.AskAgain(waserver.Received{Device: b.device.LID()}))
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, 3, b.server.Stats().RetryAnswers)
	b.requireClean(t)
}

func TestMessagesToAndFromOurOwnPhone(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	_, err := b.account.SendText(friend.LID(), "from the phone")
	require.NoError(t, err)
	copied := waitFor(ctx, t, b.client, text("from the phone"))
	require.True(t, copied.Info.IsFromMe)
	require.Equal(t, friend.LID(), copied.Info.Chat)

	_, err = b.client.SendPeerMessage(ctx, b.client.BuildHistorySyncRequest(&types.MessageInfo{
		MessageSource: types.MessageSource{Chat: friend.LID()}, ID: "ABC", Timestamp: time.Now(),
	}, 50))
	require.NoError(t, err)
	_, err = b.account.WaitReceived(ctx, func(r waserver.Received) bool { return r.Peer })
	require.NoError(t, err)

	id, err := b.account.SendPeer(b.device, &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type: waE2E.ProtocolMessage_APP_STATE_SYNC_KEY_SHARE.Enum(),
	}})
	require.NoError(t, err)
	waitFor(ctx, t, b.client, func(e *events.Message) bool { return e.Info.Category == "peer" && e.Info.ID == id })
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)
}

func TestOwnPhoneAndClientAskEachOtherAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	phone := b.account.Devices()[0]
	b.client.say(ctx, t, friend.LID(), "one")
	_, err := b.account.SendText(friend.LID(), "two")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("two"))

	phone.ForgetSession(b.device)
	b.client.say(ctx, t, friend.LID(), "three")
	got, err := b.account.WaitReceived(ctx, waserver.Text("three"))
	require.NoError(t, err)
	require.True(t, got.FromMe)
	require.Equal(t, friend.LID(), got.Chat)
	require.NotZero(t, got.Retry)

	b.client.forget(ctx, t, b.account.Contact)
	_, err = b.account.SendText(friend.LID(), "four")
	require.NoError(t, err)
	again := waitFor(ctx, t, b.client, text("four"))
	require.True(t, again.Info.IsFromMe)
	require.Equal(t, friend.LID(), again.Info.Chat)
	require.NotZero(t, again.RetryCount)

	b.client.forget(ctx, t, b.account.Contact)
	_, err = b.account.SendPeer(b.device, waserver.Conversation("five"))
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("five"))
	require.NoError(t, b.server.WaitIdle(ctx))
	// sqlstore counts from the highest id that is left, so the key of the second retry receipt has the id of the first's, which
	// was used meanwhile: the record sees that.
	found := b.server.Record().Reused()
	require.Len(t, found, 1)
	require.Equal(t, waserver.ReusedPreKey, found[0].Kind)
	require.Zero(t, b.server.Stats().BadIdentities)
}

func TestCompanionsComeAndGo(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})
	b.acquainted(ctx, t, friend)
	companion := newClient(t, b.server)
	device := companion.pair(t, b.account)
	require.NoError(t, b.server.WaitIdle(ctx))
	own, err := b.client.GetUserDevices(ctx, []types.JID{b.account.LID()})
	require.NoError(t, err)
	require.Len(t, own, 3)
	b.client.say(ctx, t, friend.LID(), "three of us")
	waitFor(ctx, t, companion, text("three of us"))

	// The client looks at each sender's push name in a goroutine of its own, which races with the deletion unless it took a lock
	// that somebody takes in between. Nothing tells that it did.
	time.Sleep(100 * time.Millisecond)
	_, err = companion.Store.Contacts.GetContact(ctx, b.account.LID())
	require.NoError(t, err)
	device.Unlink()
	waitFor[*events.LoggedOut](ctx, t, companion)
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Eventually(t, func() bool {
		own, err = b.client.GetUserDevices(ctx, []types.JID{b.account.LID()})
		return err == nil && len(own) == 2
	}, eventually, tick)
	b.client.say(ctx, t, friend.LID(), "two of us")
	require.Zero(t, b.server.Stats().PHashMismatches)
	b.requireClean(t)
}

func TestTwoClientsTalk(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	other := newClient(t, b.server)
	account := b.server.NewAccount("")
	other.pair(t, account)
	companion := newClient(t, b.server)
	companion.pair(t, b.account)

	b.client.say(ctx, t, account.PN(), "hello")
	waitFor(ctx, t, other, text("hello"))
	copied := waitFor(ctx, t, companion, text("hello"))
	require.True(t, copied.Info.IsFromMe)
	other.say(ctx, t, b.account.LID(), "hello yourself")
	waitFor(ctx, t, b.client, text("hello yourself"))
	waitFor(ctx, t, companion, text("hello yourself"))
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Zero(t, b.server.Stats().PHashMismatches)
	require.Zero(t, b.server.Stats().RetryReceipts)
	b.requireClean(t)
}
