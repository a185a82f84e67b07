package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// pairAnother saves a second device in the subject's container.
func pairAnother(t *testing.T, s *Subject) *store.Device {
	t.Helper()
	d := s.Container.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	return d
}

// checkRefused asserts what every method of a deleted device's old stores answers.
func checkRefused(t *testing.T, s *Subject, old *store.Device) {
	t.Helper()
	for _, m := range slices.Concat(reads, removals, puts) {
		_, err := m.call(ctx, old)
		if s.Differs("old stores of a deleted device") {
			require.ErrorIs(t, err, store.ErrDeviceDeleted, m.name)
		} else {
			require.NotErrorIs(t, err, store.ErrDeviceDeleted, m.name)
		}
	}
}

var deletionCases = []testCase{
	{
		name: "every method of a deleted device",
		check: func(t *testing.T, s *Subject) {
			d := pairAnother(t, s)
			old := *d
			all(t, ctx, d, puts)
			require.NoError(t, d.Delete(ctx))
			checkRefused(t, s, &old)
		},
	},
	{
		name: "stores that were never used before their device was deleted",
		check: func(t *testing.T, s *Subject) {
			d := pairAnother(t, s)
			devices, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			i := slices.IndexFunc(devices, func(other *store.Device) bool { return *other.ID == *d.ID })
			require.NoError(t, d.Delete(ctx))
			checkRefused(t, s, devices[i])
		},
	},
	{
		name: "old stores do not reach the device that is paired again under the JID",
		check: func(t *testing.T, s *Subject) {
			d := pairAnother(t, s)
			unused, err := s.Container.GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			used, empty := *d, snapshot(t, d)
			require.NoError(t, d.Delete(ctx))
			again := s.Container.NewDevice()
			signaltest.FillPairing(again)
			again.ID = used.ID
			require.NoError(t, again.Save(ctx))
			if s.Differs("old stores of a deleted device") {
				checkRefused(t, s, &used)
				checkRefused(t, s, unused)
				require.Equal(t, empty, snapshot(t, again))
			}
			require.NoError(t, again.Delete(ctx))
		},
	},
	{
		name: "a deletion leaves the other device and the LID map alone",
		do: func(t *testing.T, s *Subject) {
			d := pairAnother(t, s)
			all(t, ctx, s.Device, puts)
			all(t, ctx, d, puts)
			require.NoError(t, d.LIDs.PutLIDMapping(ctx, lid("91"), person("1")))
			require.NoError(t, d.Delete(ctx))
			require.NoError(t, d.Delete(ctx), "again")
			never := s.Container.NewDevice()
			signaltest.FillPairing(never)
			require.NoError(t, never.Delete(ctx), "one that was never saved")
			checkPair(t, &Subject{Device: d}, "1", "91")
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "m:0", session(1))
			checkToken(t, s, person("m"), "t", time.Unix(2, 0))
			checkPair(t, s, "1", "91")
		},
	},
	{
		name: "what was deleted is gone for good",
		do: func(t *testing.T, s *Subject) {
			all(t, ctx, s.Device, puts)
			s.Settle(t)
			all(t, ctx, s.Device, removals)
		},
		check: func(t *testing.T, s *Subject) {
			got := snapshot(t, s.Device)
			for name, want := range map[string]any{
				"IsTrustedIdentity": true, "GetSession": []byte(nil), "HasSession": false, "GetSenderKey": []byte(nil),
				"GetManySessions":    map[string][]byte{"m:1": nil, "m:2": nil, "l_1:0": nil},
				"GetAppStateVersion": uint64(0), "GetAppStateMutationMAC": []byte(nil), "GetNCTSalt": []byte(nil),
				"GetPrivacyToken": (*store.PrivacyToken)(nil), "UploadedPreKeyCount": 1,
			} {
				require.Equal(t, want, got[name], name)
			}
			require.Nil(t, got["GetPreKey"])
			require.Nil(t, got["GetBufferedEvent"].(*store.BufferedEvent).Plaintext)
			require.Equal(t, []byte("p"), got["GetOutgoingEvent"], "it is not old")
		},
	},
}
