package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

func checkDevice(t *testing.T, want, got *store.Device) {
	t.Helper()
	require.NotNil(t, got)
	require.Equal(t, want.ID, got.ID)
	require.Equal(t, want.LID, got.LID)
	require.Equal(t, want.NoiseKey, got.NoiseKey)
	require.Equal(t, want.IdentityKey, got.IdentityKey)
	require.Equal(t, want.SignedPreKey, got.SignedPreKey)
	require.Equal(t, want.RegistrationID, got.RegistrationID)
	require.Equal(t, want.AdvSecretKey, got.AdvSecretKey)
	require.Equal(t, want.Account.Details, got.Account.Details)
	require.Equal(t, want.Account.AccountSignature, got.Account.AccountSignature)
	require.Equal(t, want.Account.AccountSignatureKey, got.Account.AccountSignatureKey)
	require.Equal(t, want.Account.DeviceSignature, got.Account.DeviceSignature)
	require.Equal(t, []any{want.Platform, want.BusinessName, want.PushName, want.FacebookUUID, want.LIDMigrationTimestamp, want.CompanionMetaNonce},
		[]any{got.Platform, got.BusinessName, got.PushName, got.FacebookUUID, got.LIDMigrationTimestamp, got.CompanionMetaNonce})
	require.True(t, got.Initialized)
	require.NotNil(t, got.LIDs)
	require.NotNil(t, got.Container)
}

var deviceCases = []testCase{
	{
		name: "devices are found",
		check: func(t *testing.T, s *Subject) {
			got, err := s.Container.GetDevice(ctx, *s.ID)
			require.NoError(t, err)
			checkDevice(t, s.Device, got)
			got, err = s.Container.GetFirstDevice(ctx)
			require.NoError(t, err)
			checkDevice(t, s.Device, got)
			all, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			require.Len(t, all, 1)
			checkDevice(t, s.Device, all[0])
			got, err = s.Container.GetDevice(ctx, s.ID.ToNonAD())
			require.NoError(t, err)
			require.Nil(t, got, "the JID has to name the device")
			require.NoError(t, s.Container.Upgrade(ctx))
		},
	},
	{
		name: "two devices of one container share nothing",
		do: func(t *testing.T, s *Subject) {
			other := s.Container.NewDevice()
			signaltest.FillPairing(other)
			require.NoError(t, other.Save(ctx))
			require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(1)))
			has, err := other.Sessions.HasSession(ctx, "1:0")
			require.NoError(t, err)
			require.False(t, has)
		},
		check: func(t *testing.T, s *Subject) {
			all, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			require.Len(t, all, 2)
			checkSession(t, s, "1:0", session(1))
		},
	},
	{
		name: "a Save changes what it may",
		do: func(t *testing.T, s *Subject) {
			s.PushName, s.BusinessName, s.Platform = "name", "business", "android"
			s.LID = types.JID{User: "777", Device: 7, Server: types.HiddenUserServer}
			s.LIDMigrationTimestamp, s.CompanionMetaNonce = 5, "nonce"
			require.NoError(t, s.Save(ctx))
			require.NoError(t, s.Save(ctx))
			s.AdvSecretKey = nil // not among it
		},
		check: func(t *testing.T, s *Subject) {
			got, err := s.Container.GetDevice(ctx, *s.ID)
			require.NoError(t, err)
			require.NotNil(t, got.AdvSecretKey)
			s.AdvSecretKey = got.AdvSecretKey
			checkDevice(t, s.Device, got)
		},
	},
	{
		name: "other keys under a known JID",
		check: func(t *testing.T, s *Subject) {
			other := s.Container.NewDevice()
			signaltest.FillPairing(other)
			other.ID = s.ID
			err := other.Save(ctx)
			require.Equal(t, s.Differs("other keys under a JID"), err != nil)
			got, err := s.Container.GetDevice(ctx, *s.ID)
			require.NoError(t, err)
			require.Equal(t, s.NoiseKey, got.NoiseKey)
		},
	},
	{
		name: "devices that cannot be saved",
		check: func(t *testing.T, s *Subject) {
			unpaired := s.Container.NewDevice()
			require.Error(t, s.Container.PutDevice(ctx, unpaired))
			require.Error(t, s.Container.DeleteDevice(ctx, unpaired))
			for _, spoil := range []func(*store.Device){
				func(d *store.Device) { d.Account.DeviceSignature = []byte{1} },
				func(d *store.Device) { d.Account.AccountSignatureKey = nil },
				func(d *store.Device) { d.SignedPreKey.KeyID = 1 << 24 },
			} {
				d := s.Container.NewDevice()
				signaltest.FillPairing(d)
				spoil(d)
				require.Error(t, d.Save(ctx))
			}
			all, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			require.Len(t, all, 1)
		},
	},
	{
		name: "new devices",
		check: func(t *testing.T, s *Subject) {
			a, b := s.Container.NewDevice(), s.Container.NewDevice()
			require.Nil(t, a.ID)
			require.NotEqual(t, a.NoiseKey, b.NoiseKey)
			require.NotEqual(t, a.IdentityKey, b.IdentityKey)
			require.EqualValues(t, 1, a.SignedPreKey.KeyID)
			require.Len(t, a.AdvSecretKey, 32)
			require.False(t, a.Initialized)
			require.Equal(t, keys.NewKeyPairFromPrivateKey(*a.NoiseKey.Priv), a.NoiseKey)
		},
	},
	{
		name: "a deleted device",
		do: func(t *testing.T, s *Subject) {
			d := s.Container.NewDevice()
			signaltest.FillPairing(d)
			require.NoError(t, d.Save(ctx))
			jid, old := *d.ID, *d
			require.NoError(t, d.Sessions.PutSession(ctx, "1:0", session(1)))
			require.NoError(t, d.PrivacyTokens.PutPrivacyTokens(ctx, token(person("1"), "t", 1, time.Time{})))
			require.NoError(t, d.Delete(ctx))
			require.ErrorIs(t, d.Save(ctx), store.ErrDeviceDeleted)
			require.ErrorIs(t, d.Sessions.PutSession(ctx, "1:0", session(1)), store.ErrDeviceDeleted)
			require.NotNil(t, d.LIDs, "the LID map lives on")
			_, err := old.Sessions.GetSession(ctx, "1:0")
			if s.Differs("old stores of a deleted device") {
				require.ErrorIs(t, err, store.ErrDeviceDeleted)
				require.ErrorIs(t, old.Identities.PutIdentity(ctx, "1:0", [32]byte(random.Bytes(32))), store.ErrDeviceDeleted)
			}
			gone, err := s.Container.GetDevice(ctx, jid)
			require.NoError(t, err)
			require.Nil(t, gone)
			// The same phone links again.
			again := s.Container.NewDevice()
			signaltest.FillPairing(again)
			again.ID = &jid
			require.NoError(t, again.Save(ctx))
			has, err := again.Sessions.HasSession(ctx, "1:0")
			require.NoError(t, err)
			require.False(t, has)
			left, err := again.PrivacyTokens.GetPrivacyToken(ctx, person("1"))
			require.NoError(t, err)
			require.Equal(t, s.Differs("privacy tokens after deletion"), left == nil)
			require.NoError(t, again.Delete(ctx))
		},
		check: func(t *testing.T, s *Subject) {
			all, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			require.Len(t, all, 1)
		},
	},
}
