package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	waLog "go.mau.fi/whatsmeow/util/log"
	"golang.org/x/sync/errgroup"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	scale    = flag.Int("gateway.scale", 10, "how many instances one gateway is measured with")
	scaleFor = flag.Duration("gateway.scale-for", 4*time.Second, "for how long")
	scalePer = flag.Int("gateway.scale-rate", 25, "messages a second each way, over all instances")
)

// measuredEnv makes the test's binary a gateway that is measured, in a process of its own and without the race detector.
const measuredEnv = "GATEWAY_MEASURED"

// measured says which gateway that is, and on what.
type measured struct {
	Sqlstore bool
	DSN      string
	Endpoint waserver.Endpoint
	Flags    []string
	Answer   time.Duration // config.answer, if it is another one
}

// statements counts statements.
type statements struct{ atomic.Int64 }

// TraceQueryStart implements [pgx.QueryTracer].
func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.Add(1)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// usage is what a measured gateway says of itself.
type usage struct {
	Memory     uint64 // heap and stacks
	Goroutines int
	Statements int64
	CPU        time.Duration
}

// measuredProcess is such a gateway. It prints its address, and for each line that it is sent what it has used.
func measuredProcess() int {
	var how measured
	if err := json.Unmarshal([]byte(os.Getenv(measuredEnv)), &how); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var counted statements
	cfg, err := parse(append([]string{"-database-url", how.DSN, "-listen", "127.0.0.1:0", "-rate", "100000"}, how.Flags...))
	if err != nil {
		return 2
	}
	cfg.answer = cmp.Or(how.Answer, cfg.answer)
	other := seams{connect: standin.Connect(how.Endpoint), announce: os.Stdout, tracer: &counted}
	if how.Sqlstore {
		other.store = func(cfg config, _ *pgxpool.Pool) (deviceStore, error) { return openSQLStore(cfg.databaseURL, &counted) }
	}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			var r syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
			_ = json.NewEncoder(os.Stdout).Encode(usage{m.HeapAlloc + m.StackInuse, runtime.NumGoroutine(), counted.Load(), time.Duration(r.Utime.Nano() + r.Stime.Nano())})
		}
		stop()
	}()
	if err = serve(ctx, cfg, other); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// sqlDevices is sqlstore as one process can use it: all devices are its own.
type sqlDevices struct{ *sqlstore.Container }

func openSQLStore(dsn string, tracer pgx.QueryTracer) (*sqlDevices, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Tracer = tracer
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(50) // with as few as the other one has it waits for itself: a decryption holds one while it asks for another
	db.SetMaxIdleConns(50)
	c := sqlstore.NewWithDB(db, "postgres", waLog.Noop)
	return &sqlDevices{c}, c.Upgrade(context.Background())
}

func (d *sqlDevices) Watch(ctx context.Context) (<-chan pgstore.Event, error) {
	changes := make(chan pgstore.Event, 1)
	changes <- pgstore.Event{Kind: pgstore.Claimable, Count: 1}
	context.AfterFunc(ctx, func() { close(changes) })
	return changes, nil
}

func (d *sqlDevices) Claim(ctx context.Context, _ int) ([]*store.Device, error) {
	return d.GetAllDevices(ctx)
}

func (d *sqlDevices) Instance(context.Context, string) (*store.Device, error) {
	return nil, errors.New("nothing is linked or moved here")
}

func (d *sqlDevices) Leave(context.Context) error { return nil }

func (d *sqlDevices) Release(context.Context, string) error { return nil }

func (d *sqlDevices) Health(context.Context) pgstore.Health { return d.Liveness() }

func (d *sqlDevices) Liveness() pgstore.Health { return pgstore.Health{Live: true, Ready: true} }

// linkDevice links a device of a new account, and returns the account.
func linkDevice(ctx context.Context, server *waserver.Server, device *store.Device) (*number, error) {
	n := &number{account: server.NewAccount(""), contact: server.NewContact(waserver.ContactConfig{})}
	client := whatsmeow.NewClient(device, waLog.Noop)
	client.SynchronousAck = true
	codes, err := client.GetQRChannel(ctx)
	if err != nil {
		return nil, err
	}
	if err = standin.Connect(server.Endpoint())(client, ctx); err != nil {
		return nil, err
	}
	defer client.Disconnect()
	var scanning errgroup.Group
	for item := range codes {
		if item.Event == whatsmeow.QRChannelEventCode {
			scanning.Go(func() (err error) {
				n.linked, err = n.account.Scan(ctx, item.Code)
				return err
			})
		}
	}
	if err = scanning.Wait(); err != nil {
		return nil, err
	}
	return n, n.linked.WaitConnected(ctx)
}

// linkDevices links all of them in the test's own process, and lets go of them.
func linkDevices(t *testing.T, server *waserver.Server, how measured) []*number {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var newDevice func() *store.Device
	if how.Sqlstore {
		c, err := openSQLStore(how.DSN, nil)
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		newDevice = c.NewDevice
	} else {
		c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: how.DSN, Takes: pgstore.RespectLease})
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		newDevice = c.NewDevice
	}
	numbers := make([]*number, *scale)
	var linking errgroup.Group
	linking.SetLimit(4)
	for i := range numbers {
		linking.Go(func() (err error) {
			numbers[i], err = linkDevice(ctx, server, newDevice())
			return err
		})
	}
	require.NoError(t, linking.Wait())
	return numbers
}

// latencies are how long something took, each time.
type latencies struct {
	mu    sync.Mutex
	times []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times = append(l.times, d)
}

func (l *latencies) String() string {
	slices.Sort(l.times)
	at := func(part float64) time.Duration {
		return l.times[int(part*float64(len(l.times)-1))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("%v (99 %%: %v)", at(0.5), at(0.99))
}

// start starts such a gateway, which ends with the test. Ask asks it what it has used.
func (how measured) start(t *testing.T) (address string, ask func() usage) {
	t.Helper()
	_ = program(t)
	encoded, err := json.Marshal(how)
	require.NoError(t, err)
	cmd := exec.Command(built + "/gateway.test")
	cmd.Env = append(os.Environ(), measuredEnv+"="+string(encoded))
	cmd.Stderr = io.Discard
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, in.Close()) // ends it
		require.NoError(t, cmd.Wait())
	})
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	return lines.Text(), func() (u usage) {
		_, err := io.WriteString(in, "\n")
		require.NoError(t, err)
		require.True(t, lines.Scan())
		require.NoError(t, json.Unmarshal(lines.Bytes(), &u))
		return u
	}
}

// measure runs one gateway with all instances under traffic, and reports what it has cost.
func measure(t *testing.T, sqlstore bool) (perMessage float64, said string) {
	t.Helper()
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Close()) }()
	how := measured{Sqlstore: sqlstore, DSN: pgtest.Open(t), Endpoint: server.Endpoint()}
	numbers := linkDevices(t, server, how)

	address, ask := how.start(t)
	api := &caller{base: address}
	empty := ask()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	began := time.Now()
	require.NoError(t, (&stage{server: server, numbers: byJID(numbers)}).settled(ctx))
	connecting := time.Since(began)

	// Everybody writes once, so that what is measured is not the first message of a session.
	send := func(n *number, text string) error {
		return api.call(ctx, http.MethodPost, "/v1/instances/"+n.linked.PN().String()+"/messages", texting{"to": n.contact.PN().String(), "text": text}, nil)
	}
	var once errgroup.Group
	once.SetLimit(8)
	for _, n := range numbers {
		once.Go(func() error {
			_, err := n.contact.SendText(n.account.LID(), "first")
			for range 3 { // so many first messages at once may take longer than a send may
				if sendErr := send(n, "first"); sendErr == nil {
					break
				}
			}
			return err
		})
	}
	require.NoError(t, once.Wait())
	require.NoError(t, server.WaitIdle(ctx))

	before := ask()
	var sending, receiving latencies
	var failed atomic.Int64
	var talking errgroup.Group
	talking.SetLimit(256)
	count := 0
	tick := time.NewTicker(time.Second / time.Duration(*scalePer))
	defer tick.Stop()
	for end := time.After(*scaleFor); ; count++ {
		select {
		case <-tick.C:
			n, i := numbers[count%len(numbers)], count
			talking.Go(func() error {
				began := time.Now()
				if send(n, fmt.Sprint("out ", i)) != nil {
					failed.Add(1)
				}
				sending.add(time.Since(began))
				return nil
			})
			talking.Go(func() error {
				began := time.Now()
				id, err := n.contact.SendText(n.account.LID(), fmt.Sprint("in ", i))
				if err != nil {
					return err
				}
				err = server.Wait(ctx, func() bool {
					return slices.ContainsFunc(n.contact.Receipts(), func(r waserver.ReceiptSeen) bool { return r.ID == id })
				})
				receiving.add(time.Since(began))
				return err
			})
			continue
		case <-end:
		}
		break
	}
	require.NoError(t, talking.Wait())
	require.NoError(t, server.WaitIdle(ctx))
	after := ask()
	reused := server.Record().Reused()
	if !sqlstore { // which lets sends and decrypts of one session overwrite each other
		require.Empty(t, reused)
		require.Zero(t, failed.Load(), "sends that failed")
	}
	require.Equal(t, len(numbers), server.Stats().QRCodes)
	perMessage = float64(after.Statements-before.Statements) / float64(2*count)
	return perMessage, fmt.Sprintf("%d instances, %d messages each way: %d KB an instance, connected within %v, %.2f statements and %v of CPU a message, a send took %v, a message in was acknowledged after %v, %d sends failed, %d message keys came twice",
		len(numbers), count, int64(after.Memory-empty.Memory)/int64(len(numbers))/1024, connecting.Round(time.Millisecond), perMessage,
		((after.CPU - before.CPU) / time.Duration(2*count)).Round(10*time.Microsecond), &sending, &receiving, failed.Load(), len(reused))
}

func byJID(numbers []*number) map[string]*number {
	all := make(map[string]*number)
	for _, n := range numbers {
		all[n.linked.PN().String()] = n
	}
	return all
}

func TestOneGatewayWithManyInstancesNextToSqlstore(t *testing.T) {
	t.Parallel()
	theirs, said := measure(t, true)
	t.Log("on sqlstore: ", said)
	ours, said := measure(t, false)
	t.Log("on pgstore:  ", said)
	require.Less(t, ours, theirs, "statements a message")
}
