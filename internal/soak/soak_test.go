package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	length = flag.Duration("soak.for", time.Minute, "how long the soak goes on")
	many   = flag.Int("soak.instances", 50, "how many instances there are, the long form is 200 for 30m")
	seed   = flag.Uint64("soak.seed", rand.Uint64(), "what the soak draws from")
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childDSN); dsn != "" {
		fmt.Println("failed", beChild(dsn))
		os.Exit(1)
	}
	os.Exit(pgtest.Main(m.Run))
}

const (
	processes = 5 // containers, each as if in a process of its own
	posted    = 3 // the one whose flushes can be held back
	limited   = 4 // the one whose role may only read and write
	rests     = 4

	flushTimeout = time.Second
	patience     = time.Minute // every fault is over within seconds; whoever waits longer hangs
)

// process is a container that is closed and opened again under its instances.
type process struct {
	mu        sync.RWMutex // held for reading by a step, for writing while the container changes
	container *pgstore.Container
	residents []*resident
	config    pgstore.Config
}

// Many instances talk, store, read, are deleted and paired anew, while one fault follows another and containers are closed and opened.
// Now and then everything rests: then nothing may be pending, every answer is compared, and memory and goroutines are
// counted. They are no more at the end than they were at the second rest.
func TestSoak(t *testing.T) {
	t.Logf("seed %d", *seed)
	bad := &badDays{server: pgtest.NewServer(t), rng: rand.New(rand.NewPCG(*seed, 0)), post: new(post), happened: make(map[string]int), spoilt: make(map[string]int)}
	if bad.server != nil {
		bad.dsn = bad.server.DSN
	} else {
		bad.dsn = pgtest.Open(t)
	}
	bad.network = pgtest.NewProxy(t, bad.dsn)
	keys := newKeys(t)
	var all []*process
	for i := range processes {
		p := &process{config: pgstore.Config{DSN: bad.network.DSN, FlushTimeout: flushTimeout, Owner: fmt.Sprint("process ", i)}}
		if i%2 == 0 {
			p.config.Sends = pgstore.WriteBehind
			p.config.MemoryBudget = 300_000 // less than its instances want
		}
		if i == 1 {
			p.config.PendingLimit = 100 // reached in every outage
		}
		p.config.DurableAcks = i >= posted
		p.config.Encryption = keys
		if i != encrypts && i != limited { // these write plain rows, and read what the others encrypt, as when encryption is switched off
			p.config.EncryptionMode = pgstore.Decrypting
		}
		if i == limited {
			p.config.DSN = bad.limit(t, bad.network.DSN)
		}
		if i == posted {
			p.config.DSN, p.config.Pool = "", bad.post.pool(t, bad.network.DSN)
		}
		all = append(all, p)
		require.NoError(t, p.open())
		for n := range *many / processes {
			r := &resident{rng: rand.New(rand.NewPCG(*seed, uint64(1+i**many+n)))}
			require.NoError(t, r.pairAnew(context.Background(), p.container))
			p.residents = append(p.residents, r)
			bad.instances = append(bad.instances, r.device.ID.String())
		}
	}
	bad.processes = all
	var early usage
	for rest := range rests {
		work(t, bad, *length/rests, rest == rests-1)
		now := check(t, all)
		t.Logf("%d steps, %v", done.Load(), now)
		if rest < 2 { // by the second there is something of everything
			early = now
			continue
		}
		require.LessOrEqual(t, now.goroutines, early.goroutines, "goroutines")
		require.LessOrEqual(t, now.heap, early.heap+early.heap/2, "memory")
	}
	t.Logf("faults: %v; spoilt rows: %v", bad.happened, bad.spoilt)
	require.Empty(t, bad.missing(), "every fault has happened")
	if bad.child != nil {
		bad.child.kill(t, bad.dsn)
	}
	for _, p := range all {
		require.NoError(t, p.container.Close())
		require.NoError(t, p.open())
		for _, r := range p.residents {
			require.NoError(t, r.comeBack(context.Background(), p.container))
			require.NoError(t, r.checkAll(context.Background()))
		}
		require.NoError(t, p.container.Close())
	}
}

func (p *process) open() (err error) {
	p.container, err = pgstore.NewWithConfig(context.Background(), p.config)
	return err
}

var done atomic.Int64 // steps

// work lets all instances live and faults happen, and then the database be well. The last time it goes on until each fault has happened.
func work(t *testing.T, bad *badDays, d time.Duration, last bool) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, p := range bad.processes {
		for i, r := range p.residents {
			wg.Go(func() {
				for ctx.Err() == nil && !t.Failed() {
					if what, err := p.step(r); err != nil {
						t.Errorf("%s, instance %d: %s: %v", p.config.Owner, i, what, err)
					}
					done.Add(1)
					time.Sleep(rand.N(10 * time.Millisecond)) // not from r.rng, which a fault may be using
				}
			})
		}
	}
	for end := time.Now().Add(d); (time.Now().Before(end) || last && len(bad.missing()) > 0) && !t.Failed(); {
		if bad.child == nil {
			bad.child = startChild(t, bad.network.DSN, bad.rng.Uint64())
		}
		bad.next().happen(t, bad)
	}
}

// step lets an instance do one thing.
func (p *process) step(r *resident) (what string, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if r.rng.IntN(2000) == 0 {
		if err = r.leave(ctx); err != nil {
			return "delete", err
		}
		return "pair", r.pairAnew(ctx, p.container)
	}
	s := steps[r.rng.IntN(len(steps))]
	return s.name, s.do(ctx, p.container, r)
}

// reopen closes the container and opens it again, or forgets it after a flush, as one that is killed then would.
func (p *process) reopen(orderly bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	old := p.container
	if err := old.Flush(ctx); err != nil {
		return err
	}
	if orderly {
		if err := old.Shutdown(ctx); err != nil {
			return err
		}
	}
	if err := p.open(); err != nil {
		return err
	}
	for _, r := range p.residents {
		if err := r.comeBack(ctx, p.container); err != nil {
			return err
		}
	}
	if !orderly {
		return old.Shutdown(ctx) // has lost its instances, and has nothing to save
	}
	return nil
}

// usage is what the process needs at rest.
type usage struct {
	heap       uint64
	goroutines int
}

func (u usage) String() string {
	return fmt.Sprintf("%d KB, %d goroutines of the store", u.heap/1000, u.goroutines)
}

var ofTheStore = regexp.MustCompile(`whatsmeow-pgstore/(pgstore|cache|batcher)\.`)

// check flushes all, compares all and measures what is left.
func check(t *testing.T, all []*process) (u usage) {
	for _, p := range all {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(len(p.residents))*patience/10)
		defer cancel()
		require.NoError(t, p.container.Flush(ctx))
		require.Zero(t, p.container.Stats().Batcher.Pending)
		for i, r := range p.residents {
			require.NoError(t, r.checkAll(ctx), "%s, instance %d", p.config.Owner, i)
		}
	}
	for range 2 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, s := range strings.Split(string(stacks), "\n\n") {
		if ofTheStore.MatchString(s) && !strings.Contains(s, "TestSoak") {
			u.goroutines++
		}
	}
	u.heap = m.HeapAlloc
	return u
}
