package pgstore_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// sessionLike is a session as libsignal writes it with so many receiving chains, whose keys do not compress: what it is when its sending chain has got to a counter.
func sessionLike(chains int) func(counter int) []byte {
	key := func() string { return base64.StdEncoding.EncodeToString(random.Bytes(32)) }
	public := func() string { return base64.StdEncoding.EncodeToString(append([]byte{5}, random.Bytes(32)...)) }
	received := make([]string, chains)
	for i := range received {
		received[i] = fmt.Sprintf(`{"SenderRatchetKeyPublic":%q,"SenderRatchetKeyPrivate":null,"ChainKey":{"Key":%q,"Index":%d},"MessageKeys":[]}`, public(), key(), i)
	}
	head := fmt.Sprintf(`{"SessionState":{"LocalIdentityPublic":%q,"LocalRegistrationID":652228549,"NeedsRefresh":false,"PendingKeyExchange":null,"PendingPreKey":null,`+
		`"PreviousCounter":0,"ReceiverChains":[%s],"RemoteIdentityPublic":%q,"RemoteRegistrationID":3439552319,"RootKey":%q,"SenderBaseKey":%q,"SenderChain":{"SenderRatchetKeyPublic":%q,`+
		`"SenderRatchetKeyPrivate":%q,"ChainKey":{"Key":"`, public(), strings.Join(received, ","), public(), key(), public(), public(), key())
	return func(counter int) []byte {
		return fmt.Appendf(nil, `%s%s","Index":%d},"MessageKeys":[]},"SessionVersion":3},"PreviousStates":[]}`, head, key(), counter)
	}
}

// sessionsLike are n of them, and write stores them as they are at a counter.
func sessionsLike(n, chains int) (write func(d *store.Device, counter int) error) {
	all := make(map[string]func(int) []byte, n)
	for i := range n {
		all[fmt.Sprintf("%d:0", i)] = sessionLike(chains)
	}
	return func(d *store.Device, counter int) error {
		sessions := make(map[string][]byte, n)
		for address, at := range all {
			sessions[address] = at(counter)
		}
		return d.Sessions.PutManySessions(ctx, sessions)
	}
}

// plainOrNot is a benchmark's two configurations.
func plainOrNot(b *testing.B) map[string]func(*pgstore.Config) {
	return map[string]func(*pgstore.Config){"plain": func(*pgstore.Config) {}, "encrypted": encrypted(b)}
}

// hotShare is how many of the table's updates were heap-only, in percent. Sessions report it when they end.
func hotShare(t testing.TB, dsn string) float64 {
	t.Helper()
	return scalar[float64](t, dsn, `SELECT 100.0 * n_tup_hot_upd / greatest(n_tup_upd, 1) FROM pg_stat_user_tables WHERE schemaname = 'whatsmeow' AND relname = 'auth_keys'`)
}

// Sessions are no larger when they are encrypted, whatever they have received, and their updates stay heap-only.
func TestEncryptedSessionsAreNoLargerAndTheirUpdatesStayHeapOnly(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	for _, chains := range []int{0, 1, 5, 20, 35} {
		size, hot := make(map[bool]int), make(map[bool]float64)
		for _, sealed := range []bool{false, true} {
			c, dsn := open(t, func(cfg *pgstore.Config) {
				cfg.Sends = pgstore.WriteBehind
				if sealed {
					with(cfg)
				}
			})
			d := pair(t, c.NewDevice())
			const rows, rounds = 100, 20
			write := sessionsLike(rows, chains)
			for round := range rounds {
				require.NoError(t, write(d, round))
				require.NoError(t, c.Flush(ctx))
			}
			size[sealed] = scalar[int](t, dsn, `SELECT avg(pg_column_size(data))::int FROM whatsmeow.auth_keys WHERE key_type = 'session'`)
			require.NoError(t, c.Close())
			if sealed {
				require.Eventually(t, func() bool { return hotShare(t, dsn) > 50 }, time.Minute, 20*time.Millisecond, "%d chains; sessions report when they end", chains)
			}
			hot[sealed] = hotShare(t, dsn)
		}
		t.Logf("%d chains: %d bytes and %.0f %% HOT plain, %d and %.0f %% encrypted", chains, size[false], hot[false], size[true], hot[true])
		require.LessOrEqual(t, size[true], size[false], "%d chains", chains)
	}
}

// usualChains make a session of the usual size.
const usualChains = 9

// BenchmarkEncryptedRow reports the bytes of rows of each type, as they are after a conversation.
func BenchmarkEncryptedRow(b *testing.B) {
	for name, edit := range plainOrNot(b) {
		b.Run(name, func(b *testing.B) {
			c, dsn := open(b, edit)
			d := pair(b, c.NewDevice())
			x, y := signaltest.NewPeer(d), signaltest.NewPeer(signaltest.NewMemoryPhone(new(pgstore.Container).NewDevice()))
			signaltest.Meet(b, y, x)
			for range 20 {
				signaltest.Say(b, x, y, "hello")
				signaltest.Say(b, y, x, "answer")
			}
			group := types.NewJID("123", types.GroupServer)
			_, err := x.JoinGroup(ctx, group)
			require.NoError(b, err)
			everything(b, d)
			require.NoError(b, c.Flush(ctx))
			for _, kind := range []string{
				"creds", "identity", "session", "pre_key", "sender_key", "app_state_key", "app_state_version", "app_state_mac", "contact", "chat_settings",
				"message_secret", "privacy_token", "nct_salt", "buffered_event", "outgoing_event",
			} {
				b.ReportMetric(scalar[float64](b, dsn, `SELECT avg(pg_column_size(data))::float8 FROM whatsmeow.auth_keys WHERE key_type = $1`, kind), kind+"-B")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkEncryptedFlush flushes sessions of the usual size in turns plain and encrypted, and reports how many times as long that takes, how much it adds to the
// write-ahead log, and how many of the updates are heap-only.
func BenchmarkEncryptedFlush(b *testing.B) {
	for _, rows := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("%d rows", rows), func(b *testing.B) {
			edits := []func(*pgstore.Config){func(*pgstore.Config) {}, encrypted(b)}
			rounds, dsns, closes := make([]func(int) error, 2), make([]string, 2), make([]func() error, 2)
			for s, edit := range edits {
				c, dsn := open(b, edit, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
				d := pair(b, c.NewDevice())
				dsns[s], closes[s] = dsn, c.Close
				write := sessionsLike(rows, usualChains)
				rounds[s] = func(round int) error {
					if err := write(d, round); err != nil {
						return err
					}
					return c.Flush(ctx)
				}
			}
			times := inTurns(b, rounds)
			wal := make([]float64, 2)
			for s, round := range rounds {
				const more = 20
				position := func() float64 {
					return scalar[float64](b, dsns[s], `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`)
				}
				before := position()
				for i := range more {
					require.NoError(b, round(b.N+i))
				}
				wal[s] = (position() - before) / float64(more*rows)
				require.NoError(b, closes[s]())
				b.ReportMetric(hotShare(b, dsns[s]), []string{"%HOT-plain", "%HOT-encrypted"}[s])
			}
			b.ReportMetric(times[1]/times[0], "encrypted/plain")
			b.ReportMetric(times[0]/1000, "µs-plain")
			b.ReportMetric(wal[0], "WAL-B/row-plain")
			b.ReportMetric(wal[1], "WAL-B/row-encrypted")
		})
	}
}

// BenchmarkEncryptedOpen opens instances with sessions of the usual size in turns plain and encrypted, and reports how many times as long that takes, and what a read
// from memory takes then.
func BenchmarkEncryptedOpen(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("%d sessions", n), func(b *testing.B) {
			edits := []func(*pgstore.Config){func(*pgstore.Config) {}, encrypted(b)}
			names := []string{"plain", "encrypted"}
			dsns, devices, took := make([]string, 2), make([]*store.Device, 2), make([][]time.Duration, 2)
			for s, edit := range edits {
				c, dsn := open(b, edit)
				devices[s], dsns[s] = pair(b, c.NewDevice()), dsn
				require.NoError(b, sessionsLike(n, usualChains)(devices[s], 1))
				require.NoError(b, c.Close())
			}
			b.ResetTimer()
			for range b.N {
				for s, edit := range edits {
					c := reopen(b, dsns[s], edit)
					start := time.Now()
					_, err := c.GetDevice(ctx, *devices[s].ID)
					took[s] = append(took[s], time.Since(start))
					require.NoError(b, err)
					require.NoError(b, c.Close())
				}
			}
			b.StopTimer()
			hits := make([]func(int) error, 2)
			for s, edit := range edits {
				d := mustDevice(b, reopen(b, dsns[s], edit), *devices[s].ID)
				hits[s] = func(int) error {
					_, err := d.Sessions.GetSession(ctx, "1:0")
					return err
				}
			}
			read := make([][]time.Duration, 2)
			for i := range 20_000 {
				start := time.Now()
				require.NoError(b, hits[i%2](i))
				read[i%2] = append(read[i%2], time.Since(start))
			}
			for s, times := range read {
				b.ReportMetric(median(times), "ns-cache-hit-"+names[s])
			}
			b.ReportMetric(median(took[1])/median(took[0]), "encrypted/plain")
			b.ReportMetric(median(took[0])/1e6, "ms-plain")
		})
	}
}
