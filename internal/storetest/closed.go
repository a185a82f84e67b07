package storetest

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// lidCalls are the methods of the LID map.
var lidCalls = []method{
	write("PutLIDMapping", func(ctx context.Context, d *store.Device) error {
		return d.LIDs.PutLIDMapping(ctx, lid("l"), person("m"))
	}),
	write("PutManyLIDMappings", func(ctx context.Context, d *store.Device) error {
		return d.LIDs.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: lid("l"), PN: person("m")}})
	}),
	{"GetLIDForPN", func(ctx context.Context, d *store.Device) (any, error) { return d.LIDs.GetLIDForPN(ctx, person("m")) }},
	{"GetPNForLID", func(ctx context.Context, d *store.Device) (any, error) { return d.LIDs.GetPNForLID(ctx, lid("l")) }},
	{"GetManyLIDsForPNs", func(ctx context.Context, d *store.Device) (any, error) {
		return d.LIDs.GetManyLIDsForPNs(ctx, []types.JID{person("m")})
	}},
}

// Closed makes every call on devices whose container was closed: each fails so that the client acknowledges nothing.
func Closed(t *testing.T, b Backend) {
	s := New(t, b)
	c := s.Container.(*pgstore.Container)
	all(t, ctx, s.Device, slices.Concat(puts, reads[:1], lidCalls))
	unused := pairAnother(t, s)
	looked, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	for _, d := range append(looked, s.Device, unused) {
		for _, m := range slices.Concat(reads, removals, puts, lidCalls) {
			_, err := m.call(ctx, d)
			require.ErrorIs(t, err, pgstore.ErrClosed, m.name)
			require.ErrorIs(t, err, context.Canceled, m.name)
		}
	}
	for name, call := range map[string]func() error{
		"Save":           func() error { return s.Save(ctx) },
		"Delete":         func() error { return s.Delete(ctx) },
		"GetDevice":      func() error { _, err := c.GetDevice(ctx, *s.ID); return err },
		"GetFirstDevice": func() error { _, err := c.GetFirstDevice(ctx); return err },
		"GetAllDevices":  func() error { _, err := c.GetAllDevices(ctx); return err },
		"Instance":       func() error { _, err := c.Instance(ctx, "new"); return err },
		"Instances":      func() error { _, err := c.Instances(ctx); return err },
		"Take":           func() error { return c.Take(ctx, looked[0]) },
		"Claim":          func() error { _, err := c.Claim(ctx, 1); return err },
		"Watch":          func() error { _, err := c.Watch(ctx); return err },
		"Upgrade":        func() error { return c.Upgrade(ctx) },
		"Flush":          func() error { return c.Flush(ctx) },
	} {
		err := call()
		require.ErrorIs(t, err, pgstore.ErrClosed, name)
		require.ErrorIs(t, err, context.Canceled, name)
	}
}
