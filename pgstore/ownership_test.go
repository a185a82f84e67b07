package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// process is a container that may die, or end whenever the test says.
func process(t testing.TB, dsn string, edit ...func(*pgstore.Config)) *pgstore.Container {
	t.Helper()
	cfg := pgstore.Config{DSN: dsn, Lease: time.Second}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// died ends a process that cannot tell the database: its lease has to expire.
func died(c *pgstore.Container) {
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_ = c.Shutdown(gone)
}

func TestP6AReleasedInstanceGoesOnWithNothingBurned(t *testing.T) {
	t.Parallel()
	s := newSender(t, func(cfg *pgstore.Config) { cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour })
	s.send()
	trust(t, "1:0", s.d)
	require.NoError(t, s.c.Release(ctx, s.d.ID.String()))
	require.Equal(t, 1, trusted(t, s.dsn, "1:0"), "all is saved")
	err := s.d.Identities.PutIdentity(ctx, "2:0", [32]byte{1})
	require.ErrorIs(t, err, pgstore.ErrReleased)
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.ours.Send(ctx, []types.JID{s.peer.Address()}, []byte("late"))
	require.ErrorIs(t, err, pgstore.ErrReleased)
	before := s.row()

	first := s.c
	s.c = reopen(t, s.dsn)
	s.d = mustDevice(t, s.c, *s.d.ID)
	s.ours = signaltest.NewPeer(s.d)
	s.send()
	require.Equal(t, before.counter(t)+1, s.row().counter(t), "no counter was skipped")
	signaltest.Say(t, s.peer, s.ours, "and an answer")
	require.Zero(t, scalar[int](t, s.dsn, `SELECT step_through + abandon_through FROM whatsmeow.instances`))
	require.NoError(t, first.Release(ctx, s.d.ID.String()), "it has it no more")
	require.NoError(t, first.Release(ctx, "nobody"))

	// The one who released may take it again.
	require.NoError(t, s.c.Release(ctx, s.d.ID.String()))
	trust(t, "3:0", mustDevice(t, first, *s.d.ID))
	require.NoError(t, first.Flush(ctx))
}

// What is written while an instance is released is either saved or refused.
func TestP7WhatIsWrittenDuringAReleaseIsSavedOrRefused(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	var saved int
	var writer sync.WaitGroup
	writing := make(chan struct{})
	writer.Go(func() {
		for i := 0; ; i++ {
			err := d.Identities.PutIdentity(ctx, fmt.Sprintf("%d:0", i), [32]byte{1})
			if i == 50 {
				close(writing)
			}
			if err != nil {
				if !errors.Is(err, pgstore.ErrReleased) {
					t.Error(err)
				}
				saved = i
				return
			}
		}
	})
	<-writing
	require.NoError(t, c.Release(ctx, d.ID.String()))
	writer.Wait()
	require.Equal(t, saved, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity'`))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE clean_at_epoch = epoch AND process IS NULL`))
}

// A release that the database keeps from ending says so, loses nothing, and may be repeated.
func TestP7AReleaseInAnOutageMayBeRepeated(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN)
	d := pair(t, c.NewDevice())
	network.Down()
	trust(t, "1:0", d)
	err := c.Release(within(t, 100*time.Millisecond), d.ID.String())
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	require.ErrorIs(t, d.Identities.PutIdentity(ctx, "2:0", [32]byte{1}), pgstore.ErrReleased)
	network.Up()
	require.NoError(t, c.Release(ctx, d.ID.String()))
	require.Equal(t, 1, trusted(t, dsn, "1:0"))
}

// Who takes an instance again that a release has not let go of yet, does not lose what that had still to save.
func TestP7ATakeAfterAReleaseThatDidNotEndSavesFirst(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN)
	d := pair(t, c.NewDevice())
	network.Down()
	trust(t, "1:0", d)
	require.ErrorIs(t, c.Release(within(t, 500*time.Millisecond), d.ID.String()), pgstore.ErrUnavailable)
	_, err := c.GetDevice(within(t, 100*time.Millisecond), *d.ID)
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	network.Up()
	again := mustDevice(t, c, *d.ID)
	trust(t, "2:0", again)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, []int{1, 1}, []int{trusted(t, dsn, "1:0"), trusted(t, dsn, "2:0")})
	require.Zero(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "nothing is burned")
}

func TestP6ATakeWaitsForARelease(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	old := process(t, dsn)
	jid := *pair(t, old.NewDevice()).ID
	patient := process(t, dsn, func(cfg *pgstore.Config) { cfg.TakeWait = time.Hour })
	taken := make(chan error, 1)
	go func() {
		_, err := patient.GetDevice(ctx, jid)
		taken <- err
	}()
	select {
	case err := <-taken:
		require.Fail(t, "it did not wait", err)
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, old.Release(ctx, jid.String()))
	require.NoError(t, <-taken)
	require.Zero(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "nothing is burned")

	// One that is too slow is not waited for.
	hasty := process(t, dsn, func(cfg *pgstore.Config) { cfg.TakeWait = 50 * time.Millisecond })
	_, err := hasty.GetDevice(ctx, jid)
	require.NoError(t, err)
	require.Positive(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE clean_at_epoch <> epoch`))
}

// Who loses an instance is told, with what was pending.
func TestP6TheLoserIsTold(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	stops := make(chan pgstore.Stop, 1)
	loser := process(t, dsn, func(cfg *pgstore.Config) {
		cfg.OnStop = func(s pgstore.Stop) { stops <- s }
		cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour
	})
	events, err := loser.Watch(within(t, time.Minute))
	require.NoError(t, err)
	d := pair(t, loser.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, d.Identities.DeleteIdentity(ctx, "1:0"))
	trust(t, "2:0", d)
	winner := process(t, dsn)
	_, err = winner.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.ErrorIs(t, loser.Flush(ctx), pgstore.ErrOwnershipLost)
	stop := <-stops
	require.Equal(t, d.ID.String(), stop.Instance)
	require.ErrorIs(t, stop.Err, pgstore.ErrOwnershipLost)
	require.ElementsMatch(t, []pgstore.UnsavedWrite{{KeyType: "identity", KeyID: "1:0", Deleted: true}, {KeyType: "identity", KeyID: "2:0"}}, stop.Unsaved)
	for e := range events {
		if e.Kind == pgstore.Stopped {
			require.Equal(t, d.ID.String(), e.Instance)
			require.ErrorIs(t, e.Err, pgstore.ErrOwnershipLost)
			return
		}
	}
	require.Fail(t, "the watch ended")
}

// A send that waits for its commit when its instance is lost does not wait on.
func TestP6ASendThatWaitsReturnsWhenItsInstanceIsLost(t *testing.T) {
	t.Parallel()
	for name, sends := range map[string]pgstore.SendMode{"durable": pgstore.Durable, "on a new chain": pgstore.Reserved} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Sends, cfg.NewChainWait, cfg.Lease = sends, time.Minute, time.Hour })
			ours, peer := signaltest.NewPeer(pair(t, c.NewDevice())), memoryPeers(1)[0]
			signaltest.Meet(t, peer, ours)
			require.NoError(t, c.Flush(ctx))
			conn, err := pgx.Connect(ctx, dsn)
			require.NoError(t, err)
			defer func() { require.NoError(t, conn.Close(ctx)) }()
			tx, err := conn.Begin(ctx)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, `UPDATE whatsmeow.instances SET epoch = epoch + 1, process = NULL`) // somebody takes it, and has not committed
			require.NoError(t, err)
			in, err := peer.Send(ctx, []types.JID{ours.Address()}, []byte("in"))
			require.NoError(t, err)
			_, err = ours.Receive(ctx, peer.Address(), in[ours.Address()])
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() {
				_, err := ours.Send(ctx, []types.JID{peer.Address()}, []byte("out"))
				done <- err
			}()
			select {
			case err = <-done:
				require.Fail(t, "it did not wait", "%v", err)
			case <-time.After(200 * time.Millisecond):
			}
			require.NoError(t, tx.Commit(ctx))
			require.ErrorIs(t, <-done, pgstore.ErrOwnershipLost)
		})
	}
}

// Who writes nothing is told, too: its client must not connect again.
func TestP6AnIdleLoserIsTold(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	stops := make(chan pgstore.Stop, 2)
	idle := process(t, dsn, func(cfg *pgstore.Config) { cfg.OnStop = func(s pgstore.Stop) { stops <- s } })
	lost, kept := pair(t, idle.NewDevice()), pair(t, idle.NewDevice())
	winner := process(t, dsn)
	taken := mustDevice(t, winner, *lost.ID)
	require.NoError(t, winner.Release(ctx, pgstore.InstanceID(taken)))
	stop := <-stops
	require.Equal(t, lost.ID.String(), stop.Instance)
	require.ErrorIs(t, stop.Err, pgstore.ErrOwnershipLost)
	require.Empty(t, stop.Unsaved)
	trust(t, "1:0", kept)
	require.NoError(t, idle.Flush(ctx))
	require.Empty(t, stops)
}

// Who notices by a read has lost nothing, and is told nothing else.
func TestP7WhoFindsOutByReadingHasNothingUnsaved(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	stops := make(chan pgstore.Stop, 1)
	loser := process(t, dsn, func(cfg *pgstore.Config) {
		cfg.OnStop, cfg.MemoryBudget, cfg.Lease = func(s pgstore.Stop) { stops <- s }, 1, time.Hour // no heartbeat tells it
	})
	d := pair(t, loser.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, loser.Flush(ctx))
	mustDevice(t, process(t, dsn), *d.ID)
	_, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{1})
	require.ErrorIs(t, err, pgstore.ErrOwnershipLost)
	stop := <-stops
	require.ErrorIs(t, stop.Err, pgstore.ErrOwnershipLost)
	require.Empty(t, stop.Unsaved)
	require.NoError(t, loser.Close())
}

func TestADeviceKnowsItsInstance(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	require.Empty(t, pgstore.InstanceID(c.NewDevice()))
	d := pair(t, c.NewDevice())
	require.Equal(t, d.ID.String(), pgstore.InstanceID(d))
	named, err := c.Instance(ctx, "shop 1")
	require.NoError(t, err)
	require.Equal(t, "shop 1", pgstore.InstanceID(named))
	named = pair(t, named)
	require.Equal(t, "shop 1", pgstore.InstanceID(named))
	again := mustDevice(t, c, *named.ID)
	require.Equal(t, "shop 1", pgstore.InstanceID(again))
}

func TestP6LookingTakesNothingAndTakeDoes(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	owner := process(t, dsn)
	jid := *pair(t, owner.NewDevice()).ID
	epoch := func() int { return scalar[int](t, dsn, `SELECT epoch FROM whatsmeow.instances`) }
	before := epoch()
	looker := process(t, dsn)
	all, err := looker.GetAllDevices(ctx)
	require.NoError(t, err)
	_, err = looker.Instances(ctx)
	require.NoError(t, err)
	_, err = all[0].Contacts.GetAllContacts(ctx)
	require.NoError(t, err)
	require.Equal(t, before, epoch())
	require.NoError(t, looker.Take(ctx, all[0]))
	require.Greater(t, epoch(), before)
	require.NoError(t, looker.Take(ctx, all[0]), "it has it")
	require.ErrorIs(t, owner.Take(ctx, all[0]), pgstore.ErrInvalidInput, "a device of another container")
	require.ErrorIs(t, looker.Take(ctx, looker.NewDevice()), pgstore.ErrInvalidInput)
	require.NoError(t, mustDevice(t, owner, jid).Delete(ctx))
	gone, err := looker.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Empty(t, gone)
}

// A staging process that is pointed at a copy of production takes nothing, nor does one of production at a copy of staging.
func TestP6ACopyOfTheDatabaseIsOfTheSameRealm(t *testing.T) {
	t.Parallel()
	for here, there := range map[string]string{"production": "staging", "staging": "production"} {
		t.Run(here, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			of := func(realm string) func(*pgstore.Config) { return func(cfg *pgstore.Config) { cfg.Realm = realm } }
			c := process(t, dsn, of(here))
			d := pair(t, c.NewDevice())
			require.NoError(t, c.Close())
			u, err := url.Parse(dsn)
			require.NoError(t, err)
			name := strings.TrimPrefix(u.Path, "/")
			admin := *u
			admin.Path = "/postgres"
			require.NoError(t, execSQL(t, admin.String(), `CREATE DATABASE `+name+`_copy TEMPLATE `+name))
			t.Cleanup(func() { require.NoError(t, execSQL(t, admin.String(), `DROP DATABASE `+name+`_copy`)) })
			u.Path += "_copy"
			owners := `SELECT string_agg(id || epoch, ',') FROM whatsmeow.instances`
			before := scalar[string](t, u.String(), owners)
			_, err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: u.String(), Realm: there})
			require.ErrorIs(t, err, pgstore.ErrRealm)
			require.Equal(t, before, scalar[string](t, u.String(), owners))
			c = process(t, u.String(), of(here))
			mustDevice(t, c, *d.ID)
			require.NoError(t, c.Close())
		})
	}
}

// While the database is away nobody can take over, so that the owner goes on, lease or no lease.
func TestP6AnOutageThatOutlastsTheLeaseStopsNobody(t *testing.T) {
	t.Parallel()
	for name, takes := range map[string]pgstore.Takes{"forced": pgstore.Forced, "leased": pgstore.RespectLease} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			network := pgtest.NewProxy(t, pgtest.Open(t))
			c := process(t, network.DSN, func(cfg *pgstore.Config) { cfg.Takes, cfg.NewChainWait = takes, 10*time.Millisecond })
			ours, peer := signaltest.NewPeer(pair(t, c.NewDevice())), memoryPeers(1)[0]
			signaltest.Meet(t, peer, ours)
			require.NoError(t, c.Flush(ctx))
			network.Down()
			for began := time.Now(); time.Since(began) < 3*time.Second; time.Sleep(100 * time.Millisecond) { // the lease is one
				signaltest.Say(t, peer, ours, "are you there?")
				signaltest.Say(t, ours, peer, "I am")
			}
			network.Up()
			require.NoError(t, c.Flush(ctx))
			signaltest.Say(t, ours, peer, "and still")
			require.Zero(t, c.Stats().Batcher.Stopped)
			require.NoError(t, c.Close())
		})
	}
}

func TestP6AnotherRealmIsRefused(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	of := func(realm string) error {
		c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Realm: realm})
		if err == nil {
			require.NoError(t, c.Close())
		}
		return err
	}
	require.NoError(t, of("production"))
	for _, other := range []string{"staging", ""} {
		err := of(other)
		require.ErrorIs(t, err, pgstore.ErrRealm)
		require.ErrorContains(t, err, `"production"`)
	}
	require.NoError(t, of("production"))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.processes`))
}

// fleet is processes that share instances as a worker does: each claims what it is told of and releases what it has too much.
type fleet struct {
	testing.TB
	dsn     string
	workers []*fleetWorker
	done    sync.WaitGroup
}

type fleetWorker struct {
	c    *pgstore.Container
	stop context.CancelFunc
	mu   sync.Mutex
	has  []string
}

func newFleet(t testing.TB, instances int) *fleet {
	f := &fleet{TB: t, dsn: pgtest.Open(t)}
	c := process(t, f.dsn)
	for range instances {
		pair(t, c.NewDevice())
	}
	require.NoError(t, c.Close())
	t.Cleanup(func() {
		for _, w := range f.workers {
			w.stop()
		}
		f.done.Wait()
	})
	return f
}

func (f *fleet) start() *fleetWorker {
	f.Helper()
	w := &fleetWorker{c: process(f, f.dsn)}
	watching, stop := context.WithCancel(ctx)
	w.stop = stop
	events, err := w.c.Watch(watching)
	require.NoError(f, err)
	f.workers = append(f.workers, w)
	f.done.Go(func() {
		for e := range events {
			w.mu.Lock()
			switch e.Kind {
			case pgstore.Claimable:
				devices, err := w.c.Claim(watching, e.Count)
				if err != nil && watching.Err() == nil && !errors.Is(err, pgstore.ErrClosed) {
					f.Error(err)
				}
				for _, d := range devices {
					w.has = append(w.has, d.ID.String())
				}
			case pgstore.Surplus:
				for range e.Count {
					if len(w.has) > 0 && w.c.Release(watching, w.has[0]) == nil {
						w.has = w.has[1:]
					}
				}
			case pgstore.Stopped:
				w.has = slices.DeleteFunc(w.has, func(id string) bool { return id == e.Instance })
			}
			w.mu.Unlock()
		}
	})
	return w
}

// settles waits until the shares are as given, most first.
func (f *fleet) settles(shares ...int64) {
	f.Helper()
	const query = `SELECT array_agg(n ORDER BY n DESC) FROM (SELECT count(i.id) AS n FROM whatsmeow.processes p
		LEFT JOIN whatsmeow.instances i ON i.process = p.id AND i.epoch > 0 WHERE p.expires > clock_timestamp() AND p.claims GROUP BY p.id) AS shares`
	require.Eventually(f, func() bool {
		return slices.Equal(shares, scalar[[]int64](f, f.dsn, query))
	}, 30*time.Second, 20*time.Millisecond)
}

func TestP6ProcessesShareTheInstancesAsTheyComeAndGo(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 20)
	f.start()
	f.settles(20)
	second := f.start()
	f.settles(10, 10)
	f.start()
	f.settles(7, 7, 6)
	require.Zero(t, scalar[int](t, f.dsn, `SELECT count(*) FROM whatsmeow.instances WHERE step_through > 0`), "what moves is released first")
	second.stop()
	died(second.c)
	f.settles(10, 10)
	fourth := f.start()
	f.settles(7, 7, 6)
	fourth.stop()
	require.NoError(t, fourth.c.Close())
	f.settles(10, 10)
}

// A device that this process took and has not used yet is no reason to take its instance back when another process has it, or it was released.
func TestP6ADeviceThatWasNeverUsedTakesNothingBack(t *testing.T) {
	t.Parallel()
	for name, get := range map[string]func(c *pgstore.Container, jid types.JID) (*store.Device, error){
		"GetDevice": func(c *pgstore.Container, jid types.JID) (*store.Device, error) { return c.GetDevice(ctx, jid) },
		"Instance":  func(c *pgstore.Container, jid types.JID) (*store.Device, error) { return c.Instance(ctx, jid.String()) },
		"Claim": func(c *pgstore.Container, _ types.JID) (*store.Device, error) {
			claimed, err := c.Claim(ctx, 1)
			if err != nil || len(claimed) != 1 {
				return nil, fmt.Errorf("claimed %d: %w", len(claimed), err)
			}
			return claimed[0], nil
		},
		"pairing": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stopped := make(chan pgstore.Stop, 1)
			c, dsn := open(t, func(cfg *pgstore.Config) { cfg.Lease, cfg.OnStop = time.Second, func(s pgstore.Stop) { stopped <- s } })
			d := pair(t, c.NewDevice())
			take := func() {
				if get == nil {
					d = pair(t, c.NewDevice())
					return
				}
				require.NoError(t, c.Release(ctx, d.ID.String()))
				var err error
				d, err = get(c, *d.ID)
				require.NoError(t, err)
			}
			write := func(d *store.Device) error { return d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}) }

			take()
			require.NoError(t, c.Release(ctx, d.ID.String()))
			require.ErrorIs(t, write(d), pgstore.ErrReleased)

			take()
			other := reopen(t, dsn)
			its, err := other.GetDevice(ctx, *d.ID)
			require.NoError(t, err)
			require.Equal(t, d.ID.String(), (<-stopped).Instance)
			require.ErrorIs(t, write(d), pgstore.ErrOwnershipLost)
			require.ErrorIs(t, d.Save(ctx), pgstore.ErrOwnershipLost)
			require.NoError(t, write(its))
			require.NoError(t, other.Flush(ctx))
		})
	}
}

// What is released after a failover is free, whether there was something to save or not, and is not taken for cleanly left (P4).
func TestP4WhatIsReleasedAfterAFailoverIsFreeAndNotClean(t *testing.T) {
	t.Parallel()
	for name, busy := range map[string]bool{"idle": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, failOver := onTimelines(t)
			c := process(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Hour })
			d := pair(t, c.NewDevice())
			require.NoError(t, c.Flush(ctx))
			failOver()
			if busy {
				trust(t, "1:0", d)
			}
			err := c.Release(ctx, d.ID.String())
			if busy {
				require.ErrorIs(t, err, pgstore.ErrDatabaseRewound)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE process IS NULL AND clean_at_epoch <> epoch`))
			claimAll(t, process(t, dsn), 1)
			require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE abandon_through > 0`), "its chains are not trusted")
		})
	}
}

// That an instance has stopped may be told when it was taken anew: it is of the device that is not owned any more.
func TestP6WhoIsToldOfAStopKnowsWhoseItIs(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	c, other := process(t, dsn), process(t, dsn)
	require.False(t, pgstore.Owned(nil))
	require.False(t, pgstore.Owned(c.NewDevice()))
	events, err := c.Watch(within(t, time.Minute))
	require.NoError(t, err)
	before := pair(t, c.NewDevice())
	require.True(t, pgstore.Owned(before))
	require.False(t, pgstore.Owned(looked(t, other)))
	its := mustDevice(t, other, *before.ID)
	require.True(t, pgstore.Owned(its))
	require.NoError(t, other.Release(ctx, before.ID.String()))
	require.False(t, pgstore.Owned(its))
	again := mustDevice(t, c, *before.ID)
	for e := range events {
		if e.Kind == pgstore.Stopped {
			require.Equal(t, before.ID.String(), e.Instance)
			require.False(t, pgstore.Owned(before))
			require.True(t, pgstore.Owned(again))
			return
		}
	}
	require.Fail(t, "the watch ended")
}
