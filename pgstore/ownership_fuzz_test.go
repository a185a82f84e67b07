package pgstore_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Whatever an instance and its device are called, they are refused when they are stored, or handed from process to process by every way that there
// is, and everybody tells of them by that name.
func FuzzP6AnInstanceIsHandedOverWhateverItsName(f *testing.F) {
	c, dsn := open(f)
	stops := make(chan pgstore.Stop, 1)
	other, err := pgstore.NewWithConfig(ctx, pgstore.Config{
		DSN: dsn, OnStop: func(s pgstore.Stop) { stops <- s },
		Lease: time.Hour, // so that it finds out at its flush and not by itself
	})
	require.NoError(f, err)
	f.Cleanup(func() { _ = other.Close() }) // says what of each it could not save
	for _, s := range []string{"shop-42", "", "nul\x00", "broken\xff", `a|b\c`, "\U0001F469\u200d\U0001F52C", "1:2@s", strings.Repeat("n", 1000), strings.Repeat("ä", 501)} {
		f.Add(s, "1", types.DefaultUserServer, uint16(3), s)
		f.Add("", "1", s, uint16(3), "2:0")
		f.Add("", s, types.DefaultUserServer, uint16(0), "2:0")
	}
	f.Fuzz(func(t *testing.T, name, user, server string, device uint16, address string) {
		d := c.NewDevice()
		if name != "" {
			var err error
			if d, err = c.Instance(ctx, name); err != nil {
				require.ErrorIs(t, err, pgstore.ErrInvalidInput)
				require.NoError(t, c.Release(ctx, name), "it has none of that name")
				return
			}
		}
		require.Equal(t, name, pgstore.InstanceID(d))
		signaltest.FillPairing(d)
		d.ID = &types.JID{User: user, Server: server, Device: device}
		if name == "" {
			name = d.ID.String()
		}
		if err := d.Save(ctx); err != nil {
			require.ErrorIs(t, err, pgstore.ErrInvalidInput)
			require.NoError(t, c.Release(ctx, name))
			return
		}
		require.Equal(t, name, pgstore.InstanceID(d))
		require.NoError(t, d.Identities.PutIdentity(ctx, address, [32]byte{1}))

		require.NoError(t, c.Release(ctx, name))
		_, err := d.Sessions.HasSession(ctx, address)
		require.ErrorIs(t, err, pgstore.ErrReleased)
		claimed, err := other.Claim(ctx, 1)
		require.NoError(t, err)
		require.Len(t, claimed, 1)
		require.Equal(t, kept(d), kept(claimed[0]))
		require.Equal(t, name, pgstore.InstanceID(claimed[0]))
		trusted, err := claimed[0].Identities.IsTrustedIdentity(ctx, address, [32]byte{2})
		require.NoError(t, err)
		require.False(t, trusted, "it was saved before it was released")

		all, err := c.GetAllDevices(ctx)
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.ErrorIs(t, c.Take(ctx, claimed[0]), pgstore.ErrInvalidInput, "of another container")
		require.NoError(t, c.Take(ctx, all[0]))
		require.NoError(t, claimed[0].Identities.PutIdentity(ctx, address, [32]byte{3}))
		require.ErrorIs(t, other.Flush(ctx), pgstore.ErrOwnershipLost)
		stop := <-stops
		require.Equal(t, name, stop.Instance)
		require.Len(t, stop.Unsaved, 1)

		again, err := other.GetDevice(ctx, *d.ID)
		require.NoError(t, err)
		require.Equal(t, kept(d), kept(again))
		require.NoError(t, again.Delete(ctx))
		require.NoError(t, other.Flush(ctx))
	})
}
