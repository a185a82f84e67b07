package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// watchedStore is the store, and tells when an instance is about to be let go of.
type watchedStore struct {
	deviceStore
	before func(ctx context.Context)
}

// Release implements deviceStore.
func (s *watchedStore) Release(ctx context.Context, id string) error {
	s.before(ctx)
	return s.deviceStore.Release(ctx, id)
}

// atRelease lets something happen the first time that an instance is let go of.
func atRelease(t *testing.T, what func(ctx context.Context)) seams {
	t.Helper()
	var once sync.Once
	return seams{store: func(cfg config, pool *pgxpool.Pool) (deviceStore, error) {
		s, err := openStore(context.Background(), cfg, pool, cfg.logger(t.Output()))
		return &watchedStore{s, func(ctx context.Context) { once.Do(func() { what(ctx) }) }}, err
	}}
}

// Who asks for a move and goes away leaves no instance behind that nobody runs. The lease is too long to help.
func TestAMoveThatIsCancelledOrphansNoInstance(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	moving, cancel := context.WithCancel(within(t))
	released := make(chan struct{})
	one := b.gatewayWith(atRelease(t, func(ctx context.Context) {
		defer close(released)
		cancel()
		select { // the handler hears of it
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}), "one", "-lease", "5m")
	n := b.linked(one, "support")
	two := b.gateway("two", "-lease", "5m")
	require.Error(t, one.call(moving, http.MethodPost, "/v1/instances/support/move", texting{"to": "two"}, nil))
	<-released
	b.answers(two, n)
}

// A database that is away just when an instance is let go of, by hand or because another process has come, is waited for. The lease is too long to help.
func TestADatabaseThatIsAwayWhenAnInstanceLeavesOrphansNone(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"move", "surplus"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			direct := b.dsn
			network := pgtest.NewProxy(t, direct)
			b.dsn = network.DSN
			away := make(chan struct{})
			one := b.gatewayWith(atRelease(t, func(context.Context) {
				network.Down()
				close(away)
			}), "one", "-lease", "5m")
			numbers := []*number{b.linked(one, "support")}
			if by == "surplus" {
				numbers = append(numbers, b.linked(one, "sales"))
			}
			b.dsn = direct
			two := b.gateway("two", "-lease", "5m")
			if by == "move" {
				require.Error(t, one.call(within(t), http.MethodPost, "/v1/instances/support/move", texting{"to": "two"}, nil))
			}
			select {
			case <-away:
			case <-within(t).Done():
				t.Fatal("nothing was let go of")
			}
			if by == "surplus" { // the move has waited for it
				time.Sleep(leaveTimeout)
			}
			time.Sleep(leaveTimeout / 4) // so that the first attempt has failed, and others after it
			network.Up()
			for _, n := range numbers {
				b.answers(two, n)
			}
		})
	}
}

// answers waits until an instance sends what it is asked to, through any process.
func (b *bench) answers(g *runningGateway, n *number) {
	b.t.Helper()
	ctx := within(b.t)
	var all struct{ Instances []instanceInfo }
	for ctx.Err() == nil {
		if g.call(ctx, http.MethodGet, "/v1/instances", nil, &all) != nil {
			continue
		}
		for _, i := range all.Instances {
			if i.JID != "" && n.account.PN().User != "" && i.JID[:len(n.account.PN().User)] == n.account.PN().User {
				require.NoError(b.t, g.send(ctx, i.ID, "+"+n.contact.PN().User, "still there", "still there"))
				_, err := n.contact.WaitReceived(ctx, waserver.Text("still there"))
				require.NoError(b.t, err)
				return
			}
		}
	}
	b.t.Fatal("there is no such instance")
}

// hanging is a network over which what is uploaded never arrives.
type hanging struct{ begun chan struct{} }

// RoundTrip implements [http.RoundTripper].
func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	h.begun <- struct{}{}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// An attachment whose upload hangs holds no hand-over up: the new owner uploads it.
func TestAnUploadThatHangsIsDoneByTheNewOwner(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	network := hanging{make(chan struct{}, 10)}
	attach := standin.Connect(b.server.Endpoint())
	one := b.gatewayWith(seams{connect: func(client *whatsmeow.Client, ctx context.Context) error {
		err := attach(client, ctx)
		client.SetMediaHTTPClient(&http.Client{Transport: network})
		return err
	}}, "one")
	n := b.linked(one, "support")
	two := b.gateway("two")
	var uploading sync.WaitGroup
	uploading.Go(func() {
		r := one.try(t, http.MethodPost, "/v1/instances/support/media?to=%2B"+n.contact.PN().User, "image/png", []byte("a picture"))
		require.Equal(t, http.StatusOK, r.status, "%s", r.body)
	})
	select {
	case <-network.begun:
	case <-within(t).Done():
		t.Fatal("no upload has begun")
	}
	began := time.Now()
	one.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/move", texting{"to": "two"}, nil)
	require.Less(t, time.Since(began), uploadTimeout/2)
	uploading.Wait()
	require.Equal(t, "two", two.instance(t, "support").Owner)
	_, err := n.contact.WaitReceived(within(t), func(r waserver.Received) bool { return r.Message.GetImageMessage() != nil })
	require.NoError(t, err)
}

func TestNothingIsTakenByAProcessThatLeaves(t *testing.T) {
	t.Parallel()
	g := &gateway{instances: make(map[string]*instance)}
	require.ErrorIs(t, g.take(t.Context(), "support"), errElsewhere, "it is not ready")
	in := &instance{id: "support"}
	_, ok := g.swap(in)
	require.True(t, ok)
	g.ready.Store(true)
	in.leaving.Store(true)
	require.ErrorIs(t, g.take(t.Context(), "support"), errElsewhere, "it has not let go of it yet")
	g.over = true
	_, ok = g.swap(in)
	require.False(t, ok, "the clients have ended")
}

// What has failed is tried again, and nobody forgets it before it has worked; but what another process has taken is that one's.
func TestAnInstanceIsForgottenWhenItWasLetGoOf(t *testing.T) {
	t.Parallel()
	for _, one := range []struct{ fails, tells error }{{nil, nil}, {pgstore.ErrDeviceDeleted, nil}, {pgstore.ErrOwnershipLost, errElsewhere}, {pgstore.ErrUnavailable, pgstore.ErrUnavailable}} {
		again := errors.Is(one.tells, pgstore.ErrUnavailable)
		g := &gateway{log: quiet, instances: make(map[string]*instance), unsaved: make(statuses)}
		fails := one.fails
		in := &instance{id: "support", how: func(context.Context) error { return fails }}
		g.swap(in)
		require.ErrorIs(t, g.tryToLeave(t.Context(), in), one.tells)
		require.Equal(t, again, g.get("support") == in, "%v", fails)
		fails = nil
		g.leaveAgain(t.Context())
		g.tasks.Wait()
		require.Nil(t, g.get("support"))
	}
}

// A surplus that is advised again before it was released is not released twice.
func TestWhatLeavesAlreadyCountsAsSurplus(t *testing.T) {
	t.Parallel()
	g := &gateway{instances: make(map[string]*instance)}
	for i := range 6 {
		in := &instance{id: string(rune('a' + i)), since: time.Unix(int64(i), 0)}
		in.linked.Store(true)
		g.instances[in.id] = in
	}
	first := g.longestHere(2)
	require.Equal(t, []string{"a", "b"}, []string{first[0].id, first[1].id})
	require.Empty(t, g.longestHere(2))
	require.Len(t, g.longestHere(3), 1)
	require.Empty(t, g.longestHere(0))
}

// The URL that webhooks go to may have a secret in its query: it is not in what is kept with a job.
func TestTheURLOfTheWebhookIsInNoError(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	g := b.gateway("one", "-webhook", "http://127.0.0.1:1/?token=hidden")
	n := b.linked(g, "support")
	_, err := n.contact.SendText(n.account.LID(), "hello")
	require.NoError(t, err)
	pool, err := openPool(t.Context(), b.dsn, nil)
	require.NoError(t, err)
	defer pool.Close()
	var failed string
	require.Eventually(t, func() bool {
		return pool.QueryRow(t.Context(), `SELECT errors::text FROM gateway.river_job WHERE array_length(errors, 1) > 0`).Scan(&failed) == nil
	}, atMost, 50*time.Millisecond)
	require.Contains(t, failed, "refused")
	require.NotContains(t, failed, "hidden")
}

// An attachment is in memory while it is sent; there are no more of them than -max-uploads.
func TestTooManyAttachmentsAtOnceAreRefused(t *testing.T) {
	t.Parallel()
	g := newBench(t).gateway("one", "-max-uploads", "1")
	path := "/v1/instances/nobody/media?to=%2B4915112345678"
	body, more := io.Pipe()
	request, err := http.NewRequest(http.MethodPost, g.base+path, body)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+testKey)
	request.Header.Set("Content-Type", "image/png")
	var sending sync.WaitGroup
	sending.Go(func() {
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusNotFound, response.StatusCode)
	})
	defer func() {
		require.NoError(t, more.Close())
		sending.Wait()
	}()
	status := func() int { return g.try(t, http.MethodPost, path, "image/png", []byte("x")).status }
	_, err = more.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return status() == http.StatusTooManyRequests }, atMost, 10*time.Millisecond)
	g.problem(t, errUnknown, http.MethodGet, "/v1/instances/nobody", nil) // others are not concerned
	require.NoError(t, more.Close())
	sending.Wait()
	require.Eventually(t, func() bool { return status() == http.StatusNotFound }, atMost, 10*time.Millisecond)
}
