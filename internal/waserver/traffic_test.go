package waserver_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// answering makes the client answer each text of others, until the answer is out.
func (b *testBundle) answering(t *testing.T) {
	b.client.AddEventHandler(func(event any) {
		message, ok := event.(*events.Message)
		if !ok || message.Info.IsFromMe || message.Message.GetConversation() == "" {
			return
		}
		ctx := testContext(t)
		for ctx.Err() == nil {
			_, err := b.client.SendMessage(ctx, message.Info.Chat, waserver.Conversation("re: "+message.Message.GetConversation()))
			if err == nil {
				return
			}
			b.client.WaitForConnection(time.Second)
		}
	})
}

// TestTrafficThroughFaults has the client answer many contacts while connections break at every point, acknowledgements are
// lost and messages come twice.
func TestTrafficThroughFaults(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	ctx := testContext(t)
	b := setup(t)
	b.client.reconnectByHand(ctx)
	b.acquainted(ctx, t, b.server.NewContact(waserver.ContactConfig{}))
	b.answering(t)
	var friends []*waserver.Contact
	for range 8 {
		friend := b.server.NewContact(waserver.ContactConfig{})
		friends = append(friends, friend)
		// Else the client issues a token, in a goroutine that races with sends that wait for the connection, too.
		require.NoError(t, b.client.Store.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{
			User: friend.LID(), Token: []byte("token"), Timestamp: time.Now(), SenderTimestamp: time.Now(),
		}))
	}
	receipts := func(_ *waserver.Device, node *waBinary.Node) bool { return node.Tag == "receipt" }
	faults := []waserver.Fault{
		{Direction: waserver.ToClient, Action: waserver.DeliverTwice},
		{Direction: waserver.ToClient, Action: waserver.CutBefore},
		{Direction: waserver.ToClient, Action: waserver.CutAfter},
		{Direction: waserver.ToClient, Action: waserver.Swap},
		{Direction: waserver.FromClient, Action: waserver.CutBefore},
		{Direction: waserver.FromClient, Action: waserver.CutAfter},
		{Direction: waserver.FromClient, Action: waserver.CutAfterAck},
		{Direction: waserver.FromClient, Action: waserver.Lose, Match: receipts},
		{Direction: waserver.FromClient, Action: waserver.CutBefore, Match: receipts},
	}
	for i := range 30 {
		b.server.Inject(faults[random.IntN(len(faults))])
		friend := friends[random.IntN(len(friends))]
		what := fmt.Sprint("message ", i)
		_, err := friend.SendText(b.account.LID(), what)
		require.NoError(t, err)
		if i%3 == 0 {
			_, err = friend.WaitReceived(ctx, waserver.Text("re: "+what))
			require.NoError(t, err)
		}
	}
	require.Eventually(t, func() bool {
		answered := map[string]bool{}
		for _, friend := range friends {
			for _, r := range friend.Received() {
				answered[r.Text] = true
			}
		}
		return len(answered) == 30
	}, eventually, tick)
	b.device.Cut() // what was lost comes again
	require.NoError(t, b.server.Wait(ctx, func() bool { _, left := b.device.Pending(); return left == 0 && b.device.Connected() }))
	for _, friend := range friends {
		require.Empty(t, friend.Undecryptable())
	}
	require.Zero(t, b.server.Stats().RetryReceipts)
	require.Equal(t, 1, b.server.Stats().QRCodes)
	b.requireClean(t)
}

// TestCapacity has a client answer some hundreds of contacts and says how fast that was.
func TestCapacity(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	b.answering(t)
	const people, each = 200, 3
	var friends []*waserver.Contact
	for range people {
		friends = append(friends, b.server.NewContact(waserver.ContactConfig{}))
	}
	start := time.Now()
	for i := range each {
		for _, friend := range friends {
			_, err := friend.SendText(b.account.LID(), fmt.Sprint(i))
			require.NoError(t, err)
		}
	}
	for _, friend := range friends {
		_, err := friend.WaitReceived(ctx, waserver.Text(fmt.Sprint("re: ", each-1)))
		require.NoError(t, err)
	}
	took := time.Since(start)
	t.Logf("%d messages in and as many out in %v: %.0f a minute", people*each, took, 2*people*each/took.Minutes())
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)
}
