package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Cancelled makes every call that writes with a context that has ended or ends in the middle. The call may fail, with an error that
// says so; a ratchet that it advanced in memory stays advanced, and what is in memory is what becomes durable.
func Cancelled(t *testing.T, b Backend) {
	for _, limit := range []time.Duration{0, 20 * time.Microsecond, 200 * time.Microsecond, time.Millisecond} {
		t.Run(limit.String(), func(t *testing.T) {
			t.Parallel()
			for _, methods := range [][]method{puts, slices.Concat(puts, removals)} {
				cancelled, whole := New(t, b), New(t, b)
				all(t, ctx, whole.Device, methods)
				for _, m := range methods {
					ending, cancel := context.WithTimeout(ctx, limit)
					if _, err := m.call(ending, cancelled.Device); err != nil {
						require.Error(t, ending.Err(), m.name)
						require.ErrorIs(t, err, ending.Err(), m.name)
					}
					cancel()
				}
				got := snapshot(t, cancelled.Device)
				want := snapshot(t, whole.Device)
				for _, ratchet := range []string{"IsTrustedIdentity", "GetSession", "HasSession", "GetManySessions", "GetSenderKey"} {
					require.Equal(t, want[ratchet], got[ratchet], ratchet)
				}
				cancelled.Settle(t)
				require.Equal(t, got, snapshot(t, cancelled.Device))
				cancelled.Reopen(t)
				again := snapshot(t, cancelled.Device)
				if mac, ok := got["GetAppStateMutationMAC"].([]byte); ok && mac == nil {
					again["GetAppStateVersion"] = got["GetAppStateVersion"] // a patch whose last call failed is dropped as a whole
				}
				require.Equal(t, got, again)
			}
		})
	}
}
