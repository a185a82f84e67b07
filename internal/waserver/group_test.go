package waserver_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// crowd is the account and so many contacts.
func (b *testBundle) crowd(n int, cfg waserver.ContactConfig) []*waserver.Contact {
	members := []*waserver.Contact{b.account.Contact}
	for range n {
		members = append(members, b.server.NewContact(cfg))
	}
	return members
}

func TestGroupMessagesBothWays(t *testing.T) {
	t.Parallel()
	for _, mode := range []types.AddressingMode{types.AddressingModeLID, types.AddressingModePN} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			b := setup(t)
			members := b.crowd(3, waserver.ContactConfig{Devices: 2})
			group := b.server.NewGroup(waserver.GroupConfig{Subject: "Three", Addressing: mode}, members...)
			waitFor(ctx, t, b.client, func(e *events.JoinedGroup) bool { return e.JID == group.JID() })
			for i := range 5 {
				out := fmt.Sprint("out ", i)
				b.client.say(ctx, t, group.JID(), out)
				for _, m := range members[1:] {
					in := fmt.Sprint("in ", i, " of ", m.LID().User)
					_, err := m.SendText(group.JID(), in)
					require.NoError(t, err)
					got := waitFor(ctx, t, b.client, text(in))
					require.Equal(t, group.JID(), got.Info.Chat)
					for _, d := range m.Devices() {
						_, err = m.WaitReceived(ctx, func(r waserver.Received) bool { return r.Text == out && r.Device == d.LID() && r.Chat == group.JID() })
						require.NoError(t, err)
					}
				}
			}
			require.NoError(t, b.server.WaitIdle(ctx))
			for _, m := range members {
				require.Empty(t, m.Undecryptable())
			}
			require.Zero(t, b.server.Stats().PHashMismatches)
			require.Zero(t, b.server.Stats().RetryReceipts)
			b.requireClean(t)
		})
	}
}

func TestGroupOf512Devices(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	members := b.crowd(255, waserver.ContactConfig{Devices: 2}) // 510 and the account's two
	group := b.server.NewGroup(waserver.GroupConfig{Subject: "All"}, members...)
	for i := range 2 {
		start := time.Now()
		what := fmt.Sprint("everybody ", i)
		b.client.say(ctx, t, group.JID(), what)
		sent := time.Since(start)
		for _, m := range members[1:] {
			for _, d := range m.Devices() {
				_, err := m.WaitReceived(ctx, func(r waserver.Received) bool { return r.Text == what && r.Device == d.LID() })
				require.NoError(t, err)
			}
		}
		t.Logf("message %d: sent in %v, read by 510 devices in %v", i, sent, time.Since(start))
	}
	_, err := members[7].SendText(group.JID(), "thanks")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("thanks"))
	require.NoError(t, b.server.WaitIdle(ctx))
	stats := b.server.Stats()
	require.Zero(t, stats.PHashMismatches)
	require.Zero(t, stats.RetryReceipts)
	require.Equal(t, 2*(511+1), stats.Ciphertexts)
	b.requireClean(t)
}

func TestGroupRetries(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	members := b.crowd(2, waserver.ContactConfig{})
	friend := members[1]
	group := b.server.NewGroup(waserver.GroupConfig{}, members...)
	b.client.say(ctx, t, group.JID(), "one")
	_, err := friend.WaitReceived(ctx, waserver.Text("one"))
	require.NoError(t, err)
	_, err = friend.SendText(group.JID(), "two")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("two"))

	friend.Reinstall(friend.Devices()[0], true)
	b.client.say(ctx, t, group.JID(), "three")
	got, err := friend.WaitReceived(ctx, waserver.Text("three"))
	require.NoError(t, err)
	require.Equal(t, 1, got.Retry)

	_, err = friend.SendText(group.JID(), "four") // with a new sender key
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("four"))
	_, err = b.client.container.db.ExecContext(ctx, "DELETE FROM whatsmeow_sender_keys WHERE sender_id=$1", friend.LID().SignalAddress().String())
	require.NoError(t, err)
	_, err = friend.SendText(group.JID(), "five")
	require.NoError(t, err)
	again := waitFor(ctx, t, b.client, text("five"))
	require.Equal(t, 1, again.RetryCount)
	_, err = friend.SendText(group.JID(), "six")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("six"))
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)
}

func TestGroupsChange(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	ann, ben := b.server.NewContact(waserver.ContactConfig{}), b.server.NewContact(waserver.ContactConfig{})
	info, err := b.client.CreateGroup(ctx, whatsmeow.ReqCreateGroup{Name: "Ours", Participants: []types.JID{ann.LID()}})
	require.NoError(t, err)
	b.client.say(ctx, t, info.JID, "to ann")
	_, err = ann.WaitReceived(ctx, waserver.Text("to ann"))
	require.NoError(t, err)

	_, err = b.client.UpdateGroupParticipants(ctx, info.JID, []types.JID{ben.LID()}, whatsmeow.ParticipantChangeAdd)
	require.NoError(t, err)
	b.client.say(ctx, t, info.JID, "stale") // the client's list is not refreshed: the server's hash tells it
	require.NoError(t, b.server.WaitIdle(ctx))
	require.Equal(t, 1, b.server.Stats().PHashMismatches)
	b.client.say(ctx, t, info.JID, "to both")
	_, err = ben.WaitReceived(ctx, waserver.Text("to both"))
	require.NoError(t, err)

	_, err = ben.SendText(info.JID, "hello")
	require.NoError(t, err)
	waitFor(ctx, t, b.client, text("hello"))
	groups, err := b.client.GetJoinedGroups(ctx)
	require.NoError(t, err)
	require.Len(t, groups, 1)
	require.Len(t, groups[0].Participants, 3)
	require.NoError(t, b.client.LeaveGroup(ctx, info.JID))
	_, err = b.client.GetGroupInfo(ctx, info.JID)
	require.ErrorIs(t, err, whatsmeow.ErrNotInGroup)
	b.requireClean(t)
}
