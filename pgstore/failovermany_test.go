package pgstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// A failover costs an instance some statements, whatever it holds, and a bundle for each chat that it writes to, when it does: to read costs none. The rate
// is one in three hours here, so that a second one is never had.
func TestP4AFailoverOfManyInstancesCostsBundlesOnlyAsChatsAreAnswered(t *testing.T) {
	t.Parallel()
	const instances, chats = 60, 3
	for name, alive := range map[string]bool{"their owner lives": true, "their owner is dead": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, failOver := onTimelines(t)
			count := new(statements)
			rare := func(cfg *pgstore.Config) { cfg.HealRate, cfg.Lease = 0.0001, time.Hour }
			c := counting(t, dsn, 3, count, rare)
			jids, ours, theirs := make([]types.JID, instances), make([]*signaltest.Peer, instances), make([][]*signaltest.Peer, instances)
			for i := range instances {
				d := pair(t, c.NewDevice())
				jids[i], ours[i], theirs[i] = *d.ID, signaltest.NewPeer(d), memoryPeers(chats)
				for _, p := range theirs[i] {
					signaltest.Meet(t, p, ours[i])
				}
			}
			require.NoError(t, c.Flush(ctx))

			if !alive {
				died(c)
				c = counting(t, dsn, 3, count, rare)
			}
			failOver()
			before := count.sent.Load()
			for i, jid := range jids {
				if !alive {
					d, err := c.GetDevice(ctx, jid)
					require.NoError(t, err)
					ours[i] = signaltest.NewPeer(d)
				}
				for _, p := range theirs[i][1:] {
					in, err := p.Send(ctx, []types.JID{ours[i].Address()}, []byte("are you there?"))
					require.NoError(t, err)
					_, err = ours[i].Receive(within(t, time.Minute), p.Address(), in[ours[i].Address()])
					require.NoError(t, err)
				}
			}
			require.NoError(t, c.Flush(ctx))
			t.Logf("%.1f statements an instance", float64(count.sent.Load()-before)/instances)
			require.Less(t, count.sent.Load()-before, int64(instances*(10+2*chats)))

			stats := c.Stats()
			require.EqualValues(t, instances, stats.Healed+stats.Replayed)
			write := func(ctx context.Context, i int) error { // what a send to who is silent begins with
				silent := theirs[i][0].Address().SignalAddress().String()
				found, err := ours[i].Device.Sessions.GetManySessions(ctx, []string{silent})
				require.Nil(t, found[silent])
				return err
			}
			require.NoError(t, write(ctx, 0))
			require.ErrorIs(t, write(within(t, 50*time.Millisecond), 1), pgstore.ErrUnavailable, "the first bundle was asked for just now")
		})
	}
}
