package pgstore_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/libsignal/keys/prekey"
	"go.mau.fi/util/random"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// benchStores are the stores that are measured: ours in its modes, what people use today, and the floor, which is the last.
var benchStores = []storetest.Backend{
	storetest.Pgstore("Reserved", func(*pgstore.Config) {}),
	storetest.Pgstore("Durable", func(cfg *pgstore.Config) { cfg.Sends = pgstore.Durable }),
	storetest.Pgstore("WriteBehind", func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind }),
	storetest.Pgstore("DurableAcks", func(cfg *pgstore.Config) { cfg.DurableAcks = true }),
	sqlstoreNamed("sqlstore"),
	{Name: "maps"},
}

func sqlstoreNamed(name string) storetest.Backend {
	b := storetest.SqlstorePostgres()
	b.Name = name
	return b
}

// subjects opens n devices of a store on one database.
func subjects(b *testing.B, s storetest.Backend, n int) []*storetest.Subject {
	if s.Open == nil {
		maps := make([]*storetest.Subject, n)
		for i := range maps {
			maps[i] = &storetest.Subject{Device: signaltest.NewMemoryDevice(new(pgstore.Container).NewDevice())}
		}
		return maps
	}
	all := []*storetest.Subject{storetest.New(b, s)}
	for len(all) < n {
		another := *all[0]
		another.Device = pair(b, all[0].Container.NewDevice())
		all = append(all, &another)
	}
	return all
}

func memoryPeers(n int) []*signaltest.Peer {
	peers := make([]*signaltest.Peer, n)
	for i := range peers {
		peers[i] = signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice()))
	}
	return peers
}

// benchPaths are the paths of the client: each prepares n rounds and returns what one of them does.
var benchPaths = []struct {
	name    string
	prepare func(b *testing.B, ours *signaltest.Peer, n int) func(round int) error
}{
	{"receive", func(b *testing.B, ours *signaltest.Peer, n int) func(int) error {
		theirs := memoryPeers(1)[0]
		signaltest.Meet(b, theirs, ours)
		messages := make([]*waBinary.Node, n)
		for i := range messages {
			sent, err := theirs.Send(ctx, []types.JID{ours.Address()}, []byte("message"))
			require.NoError(b, err)
			messages[i] = sent[ours.Address()]
		}
		return func(i int) error {
			_, err := ours.Receive(ctx, theirs.Address(), messages[i])
			return err
		}
	}},
	{"receive-first", func(b *testing.B, ours *signaltest.Peer, n int) func(int) error { // with one of our pre-keys
		theirs, messages := memoryPeers(n), make([]*waBinary.Node, n)
		for i, p := range theirs {
			var err error
			messages[i], err = p.Meet(ctx, ours, []byte("hello"))
			require.NoError(b, err)
		}
		return func(i int) error {
			_, err := ours.Receive(ctx, theirs[i].Address(), messages[i])
			return err
		}
	}},
	{"send", func(b *testing.B, ours *signaltest.Peer, _ int) func(int) error { return sendTo(b, ours, 1) }},
	{"send-first", func(b *testing.B, ours *signaltest.Peer, n int) func(int) error { // with one of theirs
		theirs, bundles := memoryPeers(n), make([]*prekey.Bundle, n)
		for i, p := range theirs {
			var err error
			bundles[i], err = p.Bundle(ctx)
			require.NoError(b, err)
		}
		return func(i int) error {
			fetch := func(context.Context) (*prekey.Bundle, error) { return bundles[i], nil }
			_, err := ours.SendAnewTo(ctx, theirs[i].Address(), fetch, []byte("hello"))
			return err
		}
	}},
	{"retry-answer", func(b *testing.B, ours *signaltest.Peer, _ int) func(int) error {
		theirs := memoryPeers(1)[0]
		signaltest.Meet(b, theirs, ours)
		return func(int) error {
			_, err := ours.Answer(ctx, theirs.Address(), []byte("again"))
			return err
		}
	}},
	{"receive-and-answer", func(b *testing.B, ours *signaltest.Peer, n int) func(int) error { // at once, each time on a new chain
		theirs, messages := memoryPeers(n), make([]*waBinary.Node, n)
		for i, p := range theirs {
			signaltest.Meet(b, p, ours)
			sent, err := p.Send(ctx, []types.JID{ours.Address()}, []byte("question"))
			require.NoError(b, err)
			messages[i] = sent[ours.Address()]
		}
		return func(i int) error {
			if _, err := ours.Receive(ctx, theirs[i].Address(), messages[i]); err != nil {
				return err
			}
			_, err := ours.Send(ctx, []types.JID{theirs[i].Address()}, []byte("answer"))
			return err
		}
	}},
	{"send-64", func(b *testing.B, ours *signaltest.Peer, _ int) func(int) error { return sendTo(b, ours, 64) }},
	{"group-receive", func(b *testing.B, ours *signaltest.Peer, n int) func(int) error {
		theirs := memoryPeers(1)[0]
		distribution, err := theirs.JoinGroup(ctx, benchGroup)
		require.NoError(b, err)
		require.NoError(b, ours.Welcome(ctx, benchGroup, theirs.Address(), distribution))
		messages := make([]*waBinary.Node, n)
		for i := range messages {
			messages[i], err = theirs.SendGroup(ctx, benchGroup, []byte("message"))
			require.NoError(b, err)
		}
		return func(i int) error {
			_, err := ours.ReceiveGroup(ctx, benchGroup, theirs.Address(), messages[i])
			return err
		}
	}},
	{"group-send", func(b *testing.B, ours *signaltest.Peer, _ int) func(int) error {
		_, err := ours.JoinGroup(ctx, benchGroup)
		require.NoError(b, err)
		return func(int) error {
			_, err := ours.SendGroup(ctx, benchGroup, []byte("message"))
			return err
		}
	}},
	{"group-send-512-new", func(b *testing.B, ours *signaltest.Peer, _ int) func(int) error { // with the sender key to each of 512 devices
		_, err := ours.JoinGroup(ctx, benchGroup)
		require.NoError(b, err)
		distribute := sendTo(b, ours, 512)
		return func(i int) error {
			if _, err := ours.SendGroup(ctx, benchGroup, []byte("message")); err != nil {
				return err
			}
			return distribute(i)
		}
	}},
}

var benchGroup = types.NewJID("12345", types.GroupServer)

// sendTo prepares messages to so many devices.
func sendTo(b *testing.B, ours *signaltest.Peer, devices int) func(int) error {
	var to []types.JID
	for _, p := range memoryPeers(devices) {
		signaltest.Meet(b, p, ours)
		to = append(to, p.Address())
	}
	return func(int) error {
		_, err := ours.Send(ctx, to, []byte("message"))
		return err
	}
}

// benchBlock is how many rounds a store has before it is the next one's turn.
const benchBlock = 200

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2])
}

// BenchmarkPaths measures each path of the client on all stores in turns, with the client's own code and real encryption, and
// reports the medians: for maps in µs, for the others how many times as long they take.
func BenchmarkPaths(b *testing.B) {
	for _, path := range benchPaths {
		b.Run(path.name, func(b *testing.B) {
			rounds := make([]func(int) error, len(benchStores))
			for s, backend := range benchStores {
				rounds[s] = path.prepare(b, signaltest.NewPeer(subjects(b, backend, 1)[0].Device), b.N)
			}
			times := inTurns(b, rounds)
			last := len(benchStores) - 1
			for s, backend := range benchStores[:last] {
				b.ReportMetric(times[s]/times[last], backend.Name+"/maps")
			}
			b.ReportMetric(times[last]/1000, "µs-maps")
		})
	}
}

// inTurns runs the rounds of several stores in turns and returns their medians in ns.
func inTurns(b *testing.B, rounds []func(int) error) []float64 {
	times := make([][]time.Duration, len(rounds))
	b.ResetTimer()
	for from := 0; from < b.N; from += benchBlock {
		for _, s := range rand.Perm(len(rounds)) { // nobody always has the same one before him
			for i := from; i < min(from+benchBlock, b.N); i++ {
				start := time.Now()
				if err := rounds[s](i); err != nil {
					b.Fatal(err)
				}
				times[s] = append(times[s], time.Since(start))
			}
		}
	}
	b.StopTimer()
	medians := make([]float64, len(rounds))
	for s := range medians {
		medians[s] = median(times[s])
	}
	return medians
}

// BenchmarkUnraced measures what it costs to look for races where there are none, on each path of the client: how many times as long it
// takes as where nobody looks. Two of each are measured, so that what two of one kind differ by is seen, too.
func BenchmarkUnraced(b *testing.B) {
	for _, path := range benchPaths {
		b.Run(path.name, func(b *testing.B) {
			const looking, same, blind, blindSame = 0, 1, 2, 3
			rounds := make([]func(int) error, 4)
			for s := range rounds {
				c, _ := open(b)
				if s >= blind {
					c.IgnoreRaces()
				}
				rounds[s] = path.prepare(b, signaltest.NewPeer(pair(b, c.NewDevice())), b.N)
			}
			times := inTurns(b, rounds)
			b.ReportMetric((times[looking]+times[same])/(times[blind]+times[blindSame]), "looking/blind")
			b.ReportMetric(times[looking]/times[same], "looking/same")
			b.ReportMetric(times[blind]/times[blindSame], "blind/same")
			b.ReportMetric((times[looking]+times[same]-times[blind]-times[blindSame])/2000, "µs-more")
		})
	}
}

// BenchmarkEightInstances measures eight instances of one container at once, each of which reads a message and answers it,
// until all is durable, and reports each store's throughput in parts of that of maps.
func BenchmarkEightInstances(b *testing.B) {
	const instances, exchanges = 8, 500
	type chat struct{ ours, theirs *signaltest.Peer }
	chats := make([][]chat, len(benchStores))
	settle := make([]func(), len(benchStores))
	for s, backend := range benchStores {
		all := subjects(b, backend, instances)
		settle[s] = func() { all[0].Settle(b) }
		for i, subject := range all {
			chats[s] = append(chats[s], chat{signaltest.NewPeer(subject.Device), memoryPeers(1)[0]})
			signaltest.Meet(b, chats[s][i].theirs, chats[s][i].ours)
		}
	}
	took := make([]time.Duration, len(benchStores))
	b.ResetTimer()
	for range b.N {
		for s := range benchStores {
			in, out := make([][]*waBinary.Node, instances), make([][]*waBinary.Node, instances)
			for i, c := range chats[s] {
				for range exchanges {
					sent, err := c.theirs.Send(ctx, []types.JID{c.ours.Address()}, []byte("message"))
					require.NoError(b, err)
					in[i] = append(in[i], sent[c.ours.Address()])
				}
			}
			start := time.Now()
			var wg sync.WaitGroup
			for i, c := range chats[s] {
				wg.Go(func() {
					for _, message := range in[i] {
						if _, err := c.ours.Receive(ctx, c.theirs.Address(), message); err != nil {
							b.Error(err)
						}
						sent, err := c.ours.Send(ctx, []types.JID{c.theirs.Address()}, []byte("answer"))
						if err != nil {
							b.Error(err)
						}
						out[i] = append(out[i], sent[c.theirs.Address()])
					}
				})
			}
			wg.Wait()
			settle[s]()
			took[s] += time.Since(start)
			for i, c := range chats[s] {
				for _, message := range out[i] {
					_, err := c.theirs.Receive(ctx, c.ours.Address(), message)
					require.NoError(b, err)
				}
			}
		}
	}
	last := len(benchStores) - 1
	for s, backend := range benchStores[:last] {
		b.ReportMetric(float64(took[last])/float64(took[s]), backend.Name+"/maps")
	}
}

// BenchmarkWAL counts what each message adds to the database's write-ahead log.
func BenchmarkWAL(b *testing.B) {
	for _, path := range benchPaths {
		for _, backend := range benchStores[:len(benchStores)-1] {
			b.Run(path.name+"/"+backend.Name, func(b *testing.B) {
				subject := subjects(b, backend, 1)[0]
				round := path.prepare(b, signaltest.NewPeer(subject.Device), b.N)
				position := func() float64 {
					subject.Settle(b)
					return scalar[float64](b, subject.Address, `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`)
				}
				before := position()
				b.ResetTimer()
				for i := range b.N {
					if err := round(i); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				b.ReportMetric((position()-before)/float64(b.N), "WAL-B/op")
			})
		}
	}
}

// withSessions makes an instance with so many sessions of 2.6 KB and returns where it is and how many bytes they have.
func withSessions(b *testing.B, n int) (dsn string, jid types.JID, raw int) {
	c, dsn := open(b)
	d := pair(b, c.NewDevice())
	sessions := make(map[string][]byte)
	for i := range n {
		address := fmt.Sprintf("%d:0", i)
		sessions[address] = recordOf(2600, i)
		raw += len(address) + len(sessions[address])
	}
	require.NoError(b, d.Sessions.PutManySessions(ctx, sessions))
	require.NoError(b, c.Close())
	return dsn, *d.ID, raw
}

// BenchmarkOpen compares opening an instance with reading its rows into a map, in turns, and reports how much memory it then
// holds in parts of its keys' bytes.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dsn, jid, raw := withSessions(b, n)
			conn, err := pgx.Connect(ctx, dsn)
			require.NoError(b, err)
			defer func() { require.NoError(b, conn.Close(ctx)) }()
			var floor, ours []time.Duration
			var held []float64
			b.ResetTimer()
			for range b.N {
				start := time.Now()
				rows, err := conn.Query(ctx, `SELECT key_type, key_id, data::text FROM whatsmeow.auth_keys WHERE instance_id = $1`, jid.String())
				require.NoError(b, err)
				read := make(map[string][]byte)
				for rows.Next() {
					raw := rows.RawValues()
					read[string(raw[0])+string(raw[1])] = bytes.Clone(raw[2])
				}
				require.NoError(b, rows.Err())
				floor = append(floor, time.Since(start))

				c := reopen(b, dsn)
				before := heap()
				start = time.Now()
				d, err := c.GetDevice(ctx, jid)
				ours = append(ours, time.Since(start))
				require.NoError(b, err)
				held = append(held, float64(heap()-before)/float64(raw))
				runtime.KeepAlive(d)
				require.NoError(b, c.Close())
			}
			b.StopTimer()
			b.ReportMetric(median(ours)/median(floor), "GetDevice/rows")
			b.ReportMetric(median(ours)/1e6, "ms")
			b.ReportMetric(slices.MinFunc(held, cmp.Compare[float64]), "held/raw")
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// recordOf is a session of about n bytes whose sending chain has got to a counter; keys do not compress.
func recordOf(n, counter int) []byte {
	const head, tail = `{"SessionState":{"ReceiverChains":null,"SenderChain":{"SenderRatchetKeyPublic":"YQ==","ChainKey":{"Key":"`, `","Index":%d}}},"PreviousStates":[]}`
	key := base64.StdEncoding.EncodeToString(random.Bytes((n - len(head) - len(tail)) / 4 * 3))
	return []byte(head + key + fmt.Sprintf(tail, counter))
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
