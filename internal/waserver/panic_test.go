package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// A message handler on pgstore panics on a first message and on one in a group. The client goes on and acknowledges them, as they have been
// handled; what they did to the ratchets is kept, also for the process that comes after one which is not closed.
func TestP1P5AMessageHandlerThatPanicsLeavesTheRatchetsAdvanced(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	dsn := pgtest.Open(t)
	server := newServer(t)
	b := &testBundle{server: server, account: server.NewAccount("")}
	live := func(owner string) {
		c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, DurableAcks: true, Owner: owner})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() }) // the first has lost its instance by then
		device, err := c.GetFirstDevice(ctx)
		require.NoError(t, err)
		b.client = clientOn(t, server, nil, device)
		b.client.AddEventHandler(func(event any) {
			if e, ok := event.(*events.Message); ok && e.Message.GetConversation() == "panic" {
				panic("as told")
			}
		})
	}
	live("the first process")
	b.device = b.client.pair(t, b.account)
	friend := server.NewContact(waserver.ContactConfig{})
	group := server.NewGroup(waserver.GroupConfig{}, b.account.Contact, friend)
	talk := func(texts ...string) {
		for _, what := range texts {
			b.hear(ctx, t, friend, what)
			b.tell(ctx, t, friend, "re: "+what)
			_, err := friend.SendText(group.JID(), what)
			require.NoError(t, err)
			waitFor(ctx, t, b.client, func(e *events.Message) bool { return e.Info.IsGroup && text(what)(e) })
		}
		require.NoError(t, server.WaitIdle(ctx))
		stanzas, messages := b.device.Pending()
		require.Zero(t, stanzas+messages, "not acknowledged")
	}
	talk("panic", "next", "one more")
	b.client.Disconnect()
	live("the next process")
	require.NoError(t, b.client.Connect())
	require.NoError(t, b.device.WaitConnected(ctx))
	talk("after", "all")
	require.Equal(t, []string{"after", "after", "all", "all"}, b.client.texts(), "no other comes again")
	require.Zero(t, server.Stats().RetryReceipts)
	require.Zero(t, server.Stats().RetryAnswers)
	b.requireClean(t)
}
