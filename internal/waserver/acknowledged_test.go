package waserver_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// TestAcknowledgedIsWhatTheEventBufferHas has the client read every kind of ciphertext from every kind of sender.
func TestAcknowledgedIsWhatTheEventBufferHas(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{Devices: 2})
	_, err := b.server.NewContact(waserver.ContactConfig{HideLID: true}).SendText(b.account.PN(), "you know my number")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("you know my number"))
	for _, from := range friend.Devices() {
		for i := range 2 { // the second is no first message any more
			what := fmt.Sprint(from.LID(), " ", i)
			_, err := from.Send(b.account.PN(), waserver.Conversation(what))
			require.NoError(t, err)
			waitFor(ctx, t, b.client, text(what))
			b.client.say(ctx, t, from.PN().ToNonAD(), "re: "+what)
			require.NoError(t, b.server.WaitIdle(ctx))
		}
	}
	_, err = b.account.SendText(friend.LID(), "from the phone")
	require.NoError(t, err)
	group := b.server.NewGroup(waserver.GroupConfig{}, b.account.Contact, friend)
	_, err = friend.SendText(group.JID(), "in the group")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("in the group"))
	require.NoError(t, b.server.WaitIdle(ctx))

	kinds := map[string]int{}
	for _, a := range b.device.Acknowledged() {
		require.True(t, a.Read, "%+v", a)
		kinds[a.Type]++
		event, err := b.client.Store.EventBuffer.GetBufferedEvent(ctx, a.EventKey)
		require.NoError(t, err)
		require.NotNil(t, event, "%s of message %s", a.Type, a.MessageID)
		require.Nil(t, event.Plaintext, "it was handled")
	}
	require.Len(t, kinds, 3)

	b.client.forget(ctx, t, friend)
	id, err := friend.SendText(b.account.LID(), "not at once")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("not at once"))
	require.NoError(t, b.server.WaitIdle(ctx))
	var read []bool
	for _, a := range b.device.Acknowledged() {
		if a.MessageID == id {
			read = append(read, a.Read)
		}
	}
	require.Equal(t, []bool{false, false, true}, read, "two attempts fail")
	b.requireClean(t)
}
