package pgstore_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// A process writes groups from several goroutines until it is killed, and says on its standard output when each begins and ends.
// Group n of a writer is always the same, so the rows that survive say how many groups of each writer they hold. They are a moment
// that was (P3) if they hold each writer's groups up to one of them, whole, and with a group all those that had ended
// when it began; nothing synchronous is lost if no group that waited is missing. In half of the rounds nothing waits, so that nothing is
// flushed for somebody's sake: then what had ended a while before the kill has to be there by the flush interval alone. Where sends do not
// go on without the database (Reserved and Durable), one goroutine sends on one chain after the other: no chain on which something left is missing,
// and none stands before what left on it (P4).

const (
	killDSN   = "PGSTORE_TEST_KILL_DSN"
	killSends = "PGSTORE_TEST_KILL_SENDS"
	killQuiet = "PGSTORE_TEST_KILL_QUIET"
	writers   = 4
)

// killBound is how much a kill may lose of what nobody waited for: the flush interval, a rest of MaxRest, and two commits on a machine
// that is busy with other tests.
const killBound = 500 * time.Millisecond

// killGroup is what writer w does in its n-th group.
type killGroup struct{ w, n int }

func (g killGroup) key(slot string) string { return fmt.Sprintf("%d_%s:0", g.w, slot) }

// record is none of libsignal's, so that it is replaced and not merged.
func (g killGroup) record() []byte { return fmt.Appendf(nil, `{"Index":%d}`, g.n) }

// hash names the event that the writer's n-th group buffers.
func (g killGroup) hash() [32]byte {
	return [32]byte{byte(g.w), byte(g.n), byte(g.n >> 8), byte(g.n >> 16)}
}

// slots is which sessions the group writes; one that it does not write may be deleted.
func (g killGroup) slots() (put []string, gone string) {
	put = []string{"marker", string(rune('a' + g.n%5))}
	if g.n%3 == 0 {
		gone = string(rune('a' + (g.n+1)%5))
	}
	return put, gone
}

// waits says whether the group waits until it is durable: it is a send.
func (g killGroup) waits() bool { return g.n%4 == 0 }

func (g killGroup) run(d *store.Device) error {
	put, gone := g.slots()
	if g.waits() {
		sessions := make(map[string][]byte)
		for _, slot := range put {
			sessions[g.key(slot)] = g.record()
		}
		return d.Sessions.PutManySessions(ctx, sessions)
	}
	return d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
		for _, slot := range put {
			if err := d.Sessions.PutSession(ctx, g.key(slot), g.record()); err != nil {
				return err
			}
		}
		if gone != "" {
			if err := d.Sessions.DeleteSession(ctx, g.key(gone)); err != nil {
				return err
			}
		}
		return d.EventBuffer.PutBufferedEvent(ctx, g.hash(), []byte(strconv.Itoa(g.n)), time.Now())
	})
}

// killModel is the counters of a writer's sessions after n groups.
func killModel(w, n int) map[string]int {
	sessions := make(map[string]int)
	for i := 1; i <= n; i++ {
		g := killGroup{w, i}
		put, gone := g.slots()
		for _, slot := range put {
			sessions[g.key(slot)] = i
		}
		if gone != "" && !g.waits() {
			delete(sessions, g.key(gone))
		}
	}
	return sessions
}

// counters reads the sessions of a writer.
func counters(t testing.TB, d *store.Device, w int) map[string]int {
	t.Helper()
	found := make(map[string]int)
	for _, slot := range []string{"marker", "a", "b", "c", "d", "e"} {
		key := killGroup{w: w}.key(slot)
		session, err := d.Sessions.GetSession(ctx, key)
		require.NoError(t, err)
		if session == nil {
			continue
		}
		_, index, ok := strings.Cut(string(session), `"Index":`)
		require.True(t, ok)
		digits, _, _ := strings.Cut(index, "}")
		found[key], err = strconv.Atoi(digits)
		require.NoError(t, err)
	}
	return found
}

// sendOnChains sends to one peer after the other, to every fourth more than a flush reserves ahead, and says how many have left.
func sendOnChains(d *store.Device, say func(format string, args ...any)) error {
	ours := signaltest.NewPeer(d)
	for n := 0; ; n++ {
		peer := memoryPeers(1)[0]
		if _, err := ours.Meet(ctx, peer, []byte("hello")); err != nil {
			return err
		}
		messages := 2
		if n%4 == 3 {
			messages = 2 * pgstore.DefaultReserve
		}
		for left := 1; left < messages; left++ {
			say("sent %s %d", peer.Address().SignalAddress(), left)
			if _, err := ours.Send(ctx, []types.JID{peer.Address()}, []byte("message")); err != nil {
				return err
			}
		}
	}
}

// TestKilledProcess is the process that is killed; alone it does nothing.
func TestKilledProcess(t *testing.T) {
	dsn := os.Getenv(killDSN)
	if dsn == "" {
		return
	}
	mode, err := strconv.Atoi(os.Getenv(killSends))
	require.NoError(t, err)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Sends: pgstore.SendMode(mode)})
	require.NoError(t, err)
	quiet := os.Getenv(killQuiet) != ""
	d, err := c.GetFirstDevice(ctx)
	require.NoError(t, err)
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("%s\n", fmt.Appendf(nil, format, args...))
	}
	for w := range writers {
		n := counters(t, d, w)[killGroup{w: w}.key("marker")]
		go func() {
			for {
				n++
				g := killGroup{w, n}
				say("begin %d %d", w, n)
				if err := g.run(d); err != nil {
					say("failed %v", err)
					return
				}
				say("end %d %d %d", w, n, time.Now().UnixMilli())
				if quiet {
					time.Sleep(2 * time.Millisecond) // a load that the database keeps up with
				}
			}
		}()
	}
	if !quiet && pgstore.SendMode(mode) != pgstore.WriteBehind {
		go func() { say("failed %v", sendOnChains(d, say)) }()
	}
	for i := 0; !quiet; i++ { // what always waits
		pre, err := d.PreKeys.GenOnePreKey(ctx)
		require.NoError(t, err)
		say("prekey %d", pre.KeyID)
		d.PushName = fmt.Sprint(os.Getpid(), " ", i)
		require.NoError(t, d.Save(ctx))
		say("name %s", d.PushName)
	}
	select {}
}

// killOnce kills a process at a random moment, and returns what it had said and when it was killed.
func killOnce(t testing.TB, dsn string, mode pgstore.SendMode, quiet bool) (said []string, killed time.Time) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.timeout=2m")
	child.Env = append(os.Environ(), killDSN+"="+dsn, killSends+"="+strconv.Itoa(int(mode)))
	after := rand.N(150 * time.Millisecond)
	if quiet {
		child.Env = append(child.Env, killQuiet+"=1")
		after += killBound
	}
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	child.Stderr = os.Stderr
	require.NoError(t, child.Start())
	kills := make(chan time.Time, 1)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if said = append(said, lines.Text()); len(said) == 1 {
			time.AfterFunc(after, func() {
				kills <- time.Now()
				_ = child.Process.Kill()
			})
		}
	}
	require.Error(t, child.Wait(), "killed")
	require.NotEmpty(t, said)
	require.Equal(t, syscall.SIGKILL, child.ProcessState.Sys().(syscall.WaitStatus).Signal())
	return said, <-kills
}

func TestP3P5AfterAnyKillTheDatabaseHoldsAMomentThatWas(t *testing.T) {
	t.Parallel()
	rounds := 50
	if testing.Short() {
		rounds = 5
	}
	dsn := pgtest.Open(t)
	first := reopen(t, dsn)
	jid := *pair(t, first.NewDevice()).ID
	require.NoError(t, first.Close())
	var start [writers]int // groups that the database held before the round
	lost, done, chains, oldest := 0, 0, 0, time.Duration(0)
	late := make(map[int]time.Duration) // how far a round exceeded the bound; now and then the machine itself stands still
	for round := range rounds {
		quiet := round%2 == 1
		mode := []pgstore.SendMode{pgstore.Reserved, pgstore.Durable, pgstore.WriteBehind}[round/2%3]
		if quiet && mode == pgstore.Durable {
			mode = pgstore.Reserved // in which groups do not wait, since their sessions have no sending chain
		}
		said, killed := killOnce(t, dsn, mode, quiet)

		c := reopen(t, dsn)
		d, err := c.GetDevice(ctx, jid)
		require.NoError(t, err)
		var held [writers]int
		for w := range writers {
			found := counters(t, d, w)
			held[w] = found[killGroup{w: w}.key("marker")]
			require.Equal(t, killModel(w, held[w]), found, "round %d: groups of writer %d are whole", round, w)
			for n := start[w] + 1; n <= held[w]+1; n++ { // and so are their events
				g := killGroup{w, n}
				event, err := d.EventBuffer.GetBufferedEvent(ctx, g.hash())
				require.NoError(t, err)
				require.Equal(t, n <= held[w] && !g.waits(), event != nil, "round %d: event of group %d of writer %d", round, n, w)
			}
		}
		ended := start
		sent := make(map[string]int) // counters of chains
		for _, line := range said {
			var g killGroup
			switch what, rest, _ := strings.Cut(line, " "); what {
			case "begin":
				_, err := fmt.Sscan(rest, &g.w, &g.n)
				require.NoError(t, err)
				if g.n <= held[g.w] {
					for w := range writers {
						require.GreaterOrEqual(t, held[w], ended[w], "round %d: group %d of writer %d is there, and one that ended before it began is not", round, g.n, g.w)
					}
				}
			case "end":
				var at int64
				_, err := fmt.Sscan(rest, &g.w, &g.n, &at)
				require.NoError(t, err)
				ended[g.w] = g.n
				done++
				if g.n > held[g.w] {
					lost++
					age := killed.Sub(time.UnixMilli(at))
					oldest = max(oldest, age)
					if quiet && age > killBound {
						late[round] = age
					}
					require.False(t, g.waits() && mode == pgstore.Durable, "round %d: a send that returned is missing", round)
				}
			case "sent":
				var address string
				var n int
				_, err := fmt.Sscan(rest, &address, &n)
				require.NoError(t, err)
				sent[address] = n
			case "prekey":
				id, err := strconv.ParseUint(rest, 10, 32)
				require.NoError(t, err)
				pre, err := d.PreKeys.GetPreKey(ctx, uint32(id))
				require.NoError(t, err)
				require.NotNil(t, pre, "round %d: a pre-key that was handed out is missing", round)
			case "name":
				// the last that was said, or the one after it
				pid, n, _ := strings.Cut(rest, " ")
				gotPID, gotN, _ := strings.Cut(d.PushName, " ")
				require.Equal(t, pid, gotPID)
				want, err := strconv.Atoi(n)
				require.NoError(t, err)
				got, err := strconv.Atoi(gotN)
				require.NoError(t, err)
				require.GreaterOrEqual(t, got, want, "round %d: credentials that were saved are missing", round)
			case "failed":
				require.Fail(t, "a group failed", line)
			}
		}
		for address, n := range sent {
			session, err := d.Sessions.GetSession(ctx, address)
			require.NoError(t, err)
			require.NotNil(t, session, "round %d: a chain on which something left is missing", round)
			require.GreaterOrEqual(t, rowJSON{Record: string(session)}.counter(t), uint64(n), "round %d: a message key comes back", round)
		}
		chains += len(sent)
		require.NoError(t, c.Close())
		start = held
	}
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances`), "one pairing")
	require.LessOrEqual(t, len(late), rounds/10, "groups that ended so long before the kill are missing: %v", late)
	require.Positive(t, chains)
	t.Logf("%d kills, %d groups, %d lost to the flush interval, the oldest %v before the kill, %d chains", rounds, done, lost, oldest, chains)
}
