package waserver_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/util/keys"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// impostures are what a store can get wrong of who its client is.
var impostures = map[string]func(*store.Device){
	"registration id": func(d *store.Device) { d.RegistrationID++ },
	"identity":        func(d *store.Device) { d.IdentityKey = keys.NewKeyPair() },
	"signature of the account": func(d *store.Device) {
		d.Account = proto.CloneOf(d.Account)
		d.Account.AccountSignature[0]++
	},
	"signature of the device": func(d *store.Device) {
		d.Account = proto.CloneOf(d.Account)
		d.Account.DeviceSignature[0]++
	},
	"no signatures": func(d *store.Device) { d.Account = &waAdv.ADVSignedDeviceIdentity{} },
}

// eachImposture runs a test for those that have it notice something.
func eachImposture(t *testing.T, test func(t *testing.T, b *testBundle, begin func()), names ...string) {
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			test(t, b, func() { impostures[name](b.client.Store) })
		})
	}
}

func TestKeysOfAnotherIdentityAreRefused(t *testing.T) {
	t.Parallel()
	eachImposture(t, func(t *testing.T, b *testBundle, begin func()) {
		ctx := testContext(t)
		begin()
		b.device.SpendPreKeys(3)
		require.NoError(t, b.server.Wait(ctx, func() bool { return b.server.Stats().RefusedLogins == 1 }))
		require.Equal(t, 3, b.device.PreKeys())
	}, "registration id", "identity")
}

func TestFirstMessagesOfAnotherIdentityAreRefused(t *testing.T) {
	t.Parallel()
	eachImposture(t, func(t *testing.T, b *testBundle, begin func()) {
		ctx := testContext(t)
		friend := b.server.NewContact(waserver.ContactConfig{})
		begin()
		_, err := b.client.SendMessage(ctx, friend.LID(), waserver.Conversation("it is me"))
		require.ErrorIs(t, err, whatsmeow.ErrServerReturnedError)
		require.ErrorContains(t, err, "401")
		require.Equal(t, 1, b.server.Stats().BadIdentities)
		require.NoError(t, b.server.WaitIdle(ctx))
		require.Empty(t, friend.Received())
		require.Empty(t, friend.Undecryptable(), "nothing of it reaches anybody")
		require.True(t, slices.ContainsFunc(b.server.Record().Sent(), func(sent waserver.Sent) bool {
			return sent.Recipient == friend.LID()
		}), "it is in the record all the same")
	}, "registration id", "identity", "signature of the account", "signature of the device", "no signatures")
}

func TestRetryReceiptsOfAnotherIdentityAreRefused(t *testing.T) {
	t.Parallel()
	eachImposture(t, func(t *testing.T, b *testBundle, begin func()) {
		ctx := testContext(t)
		friend := b.server.NewContact(waserver.ContactConfig{})
		b.acquainted(ctx, t, friend)
		begin()
		b.client.forget(ctx, t, friend)
		_, err := friend.SendText(b.account.LID(), "read me")
		require.NoError(t, err)
		require.NoError(t, b.server.Wait(ctx, func() bool { return b.server.Stats().BadIdentities == 1 }))
		require.NoError(t, b.server.WaitIdle(ctx))
		refused := 0
		for _, receipt := range friend.Receipts() {
			if receipt.Type == "retry" {
				refused++
			}
		}
		require.Equal(t, b.server.Stats().RetryReceipts-1, refused, "one is not passed on")
	}, "registration id", "identity")
}
