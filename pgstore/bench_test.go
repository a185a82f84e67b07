package pgstore_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// benchStores are the stores that the paths of the client are measured on: ours, what people use today, and the floor.
func benchStores() []struct {
	name string
	open func(testing.TB) *store.Device
} {
	on := func(b storetest.Backend) func(testing.TB) *store.Device {
		return func(t testing.TB) *store.Device { return storetest.New(t, b).Device }
	}
	return []struct {
		name string
		open func(testing.TB) *store.Device
	}{
		{"pgstore", on(storetest.Pgstore("", func(*pgstore.Config) {}))},
		{"pgstore-WriteBehind", on(storetest.Pgstore("", func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind }))},
		{"pgstore-DurableAcks", on(storetest.Pgstore("", func(cfg *pgstore.Config) { cfg.DurableAcks = true }))},
		{"sqlstore", on(storetest.SqlstorePostgres())},
		{"maps", func(testing.TB) *store.Device { return signaltest.NewMemoryDevice(new(pgstore.Container).NewDevice()) }},
	}
}

func memoryPeers(n int) []*signaltest.Peer {
	peers := make([]*signaltest.Peer, n)
	for i := range peers {
		peers[i] = signaltest.NewPeer(signaltest.NewMemoryDevice(new(pgstore.Container).NewDevice()))
	}
	return peers
}

// BenchmarkPaths measures each path of the client on each store, with the client's own code and real encryption.
func BenchmarkPaths(b *testing.B) {
	group := types.NewJID("12345", types.GroupServer)
	paths := []struct {
		name string
		run  func(b *testing.B, ours *signaltest.Peer)
	}{
		{"receive", func(b *testing.B, ours *signaltest.Peer) {
			theirs := memoryPeers(1)[0]
			meet(b, theirs, ours)
			messages := make([]*waBinary.Node, b.N)
			for i := range messages {
				sent, err := theirs.Send(ctx, []types.JID{ours.Address()}, []byte("message"))
				require.NoError(b, err)
				messages[i] = sent[ours.Address()]
			}
			b.ResetTimer()
			for _, m := range messages {
				if _, err := ours.Receive(ctx, theirs.Address(), m); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"send", func(b *testing.B, ours *signaltest.Peer) {
			theirs := memoryPeers(1)[0]
			meet(b, theirs, ours)
			b.ResetTimer()
			for range b.N {
				if _, err := ours.Send(ctx, []types.JID{theirs.Address()}, []byte("message")); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"send-64", func(b *testing.B, ours *signaltest.Peer) {
			var to []types.JID
			for _, p := range memoryPeers(64) {
				meet(b, p, ours)
				to = append(to, p.Address())
			}
			b.ResetTimer()
			for range b.N {
				if _, err := ours.Send(ctx, to, []byte("message")); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"group-receive", func(b *testing.B, ours *signaltest.Peer) {
			theirs := memoryPeers(1)[0]
			distribution, err := theirs.JoinGroup(ctx, group)
			require.NoError(b, err)
			require.NoError(b, ours.Welcome(ctx, group, theirs.Address(), distribution))
			messages := make([]*waBinary.Node, b.N)
			for i := range messages {
				messages[i], err = theirs.SendGroup(ctx, group, []byte("message"))
				require.NoError(b, err)
			}
			b.ResetTimer()
			for _, m := range messages {
				if _, err := ours.ReceiveGroup(ctx, group, theirs.Address(), m); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"group-send", func(b *testing.B, ours *signaltest.Peer) {
			_, err := ours.JoinGroup(ctx, group)
			require.NoError(b, err)
			b.ResetTimer()
			for range b.N {
				if _, err := ours.SendGroup(ctx, group, []byte("message")); err != nil {
					b.Fatal(err)
				}
			}
		}},
	}
	for _, path := range paths {
		for _, s := range benchStores() {
			b.Run(path.name+"/"+s.name, func(b *testing.B) {
				path.run(b, signaltest.NewPeer(s.open(b)))
			})
		}
	}
}

// BenchmarkOpen compares opening an instance with 10,000 sessions with reading its rows into a map.
func BenchmarkOpen(b *testing.B) {
	c, dsn := open(b)
	d := pair(b, c.NewDevice())
	sessions := make(map[string][]byte)
	for i := range 10_000 {
		sessions[fmt.Sprintf("%d:0", i)] = recordOf(2600, i)
	}
	require.NoError(b, d.Sessions.PutManySessions(ctx, sessions))
	require.NoError(b, c.Close())
	b.Run("rows", func(b *testing.B) {
		conn, err := pgx.Connect(ctx, dsn)
		require.NoError(b, err)
		defer func() { require.NoError(b, conn.Close(ctx)) }()
		for range b.N {
			rows, err := conn.Query(ctx, `SELECT key_type, key_id, data::text FROM whatsmeow.auth_keys WHERE instance_id = $1`, d.ID.String())
			require.NoError(b, err)
			read := make(map[string][]byte)
			for rows.Next() {
				raw := rows.RawValues()
				read[string(raw[0])+string(raw[1])] = bytes.Clone(raw[2])
			}
			require.NoError(b, rows.Err())
		}
	})
	b.Run("GetDevice", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			c := reopen(b, dsn)
			b.StartTimer()
			_, err := c.GetDevice(ctx, *d.ID)
			require.NoError(b, err)
			b.StopTimer()
			require.NoError(b, c.Close())
			b.StartTimer()
		}
	})
}

// recordOf is a session of about n bytes; keys do not compress.
func recordOf(n, counter int) []byte {
	head := fmt.Sprintf(`{"SessionState":{"ReceiverChains":null,"SenderChain":{"SenderRatchetKeyPublic":"a","ChainKey":{"Key":"b","Index":%d}},"RootKey":"`, counter)
	return []byte(head + base64.StdEncoding.EncodeToString(random.Bytes((n-len(head)-3)/4*3)) + `"}}`)
}

// BenchmarkTable flushes updates of 1,000 sessions again and again, with the table as it is shipped and with PostgreSQL's defaults,
// and reports rows per second, the share of heap-only updates, and how much the table and its TOAST have grown in the end.
func BenchmarkTable(b *testing.B) {
	settings := map[string][]string{
		"shipped":  nil,
		"defaults": {"ALTER TABLE whatsmeow.auth_keys ALTER COLUMN data SET STORAGE EXTENDED", "ALTER TABLE whatsmeow.auth_keys RESET (fillfactor, toast_tuple_target)"},
	}
	for _, size := range []int{1000, 2600, 5000} {
		for _, name := range []string{"shipped", "defaults"} {
			b.Run(fmt.Sprintf("%dB/%s", size, name), func(b *testing.B) {
				c, dsn := open(b, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
				require.NoError(b, execSQL(b, dsn, settings[name]...))
				d := pair(b, c.NewDevice())
				const rows = 1000
				sessions := make(map[string][]byte, rows)
				write := func(round int) {
					for i := range rows {
						sessions[fmt.Sprintf("%d:0", i)] = recordOf(size, round)
					}
					require.NoError(b, d.Sessions.PutManySessions(ctx, sessions))
					require.NoError(b, c.Flush(ctx))
				}
				write(0)
				before := scalar[int](b, dsn, `SELECT pg_table_size('whatsmeow.auth_keys')`)
				b.ResetTimer()
				for round := range b.N {
					write(round + 1)
				}
				b.StopTimer()
				b.ReportMetric(float64(rows*b.N)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(scalar[int](b, dsn, `SELECT pg_table_size('whatsmeow.auth_keys')`)-before)/1e6, "grown-MB")
				hot := func() float64 {
					return scalar[float64](b, dsn, `SELECT 100.0 * n_tup_hot_upd / greatest(n_tup_upd, 1) FROM pg_stat_user_tables WHERE schemaname = 'whatsmeow' AND relname = 'auth_keys'`)
				}
				require.NoError(b, c.Close()) // a session reports its statistics when it ends
				b.ReportMetric(hot(), "%HOT")
			})
		}
	}
}
