package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// killable is a gateway in a process of its own that a test kills.
func (b *bench) killable(c *cluster) (g *runningGateway, kill func()) {
	b.t.Helper()
	c.flags = append(c.flags, "-lease", demoLease) // what it has is free soon after it was killed
	p, err := c.start()
	require.NoError(b.t, err)
	return b.begun(p.address, p.name, p.kill), p.kill
}

// A webhook whose process was killed while it was delivered is delivered by another one, under the same id.
func TestAWebhookWhoseProcessWasKilledIsDeliveredByAnother(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var mu sync.Mutex
	var ids []string
	begun := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		ids = append(ids, r.Header.Get("Webhook-Id"))
		first := len(ids) == 1
		mu.Unlock()
		if first { // it is on its way until the process is killed
			close(begun)
			<-r.Context().Done()
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(slow.Close)
	c := b.cluster()
	c.flags = append(c.flags, "-webhook", slow.URL)
	one, kill := b.killable(c)
	n := b.linked(one, "support")
	_, err := n.contact.SendText(n.account.LID(), "hello")
	require.NoError(t, err)
	select {
	case <-begun:
	case <-within(t).Done():
		t.Fatal("no webhook was sent")
	}
	kill()

	// As if it had been killed so long ago that its job counts as abandoned, and as the one that looks for such jobs.
	pool, err := openPool(t.Context(), b.dsn, nil)
	require.NoError(t, err)
	defer pool.Close()
	tag, err := pool.Exec(t.Context(), `UPDATE gateway.river_job SET attempted_at = attempted_at - $1::interval WHERE state = 'running'`, jobRescue)
	require.NoError(t, err)
	require.EqualValues(t, 1, tag.RowsAffected())
	_, err = pool.Exec(t.Context(), `DELETE FROM gateway.river_leader`)
	require.NoError(t, err)
	b.process(c)
	require.Eventually(t, func() bool {
		var state string
		err := pool.QueryRow(t.Context(), `SELECT state FROM gateway.river_job`).Scan(&state)
		return err == nil && state == "completed"
	}, atMost, 50*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	require.GreaterOrEqual(t, len(ids), 2)
	require.Len(t, slices.Compact(ids), 1)
}

// An instance whose process was killed while it sent and received is taken by another one as what it is, in an unknown state, and goes on: no message
// key comes twice, all that was acknowledged is there, and nobody scans a code.
func TestP4AnInstanceWhoseProcessWasKilledGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.cluster()
	one, kill := b.killable(c)
	n := b.linked(one, "support")
	pool, err := openPool(t.Context(), b.dsn, nil)
	require.NoError(t, err)
	defer pool.Close()
	taken := func() (epoch, stepThrough int64) {
		require.NoError(t, pool.QueryRow(t.Context(), `SELECT epoch, step_through FROM whatsmeow.instances`).Scan(&epoch, &stepThrough))
		return epoch, stepThrough
	}
	epoch, stepThrough := taken()
	require.Zero(t, stepThrough)
	two := b.process(c)

	// It is killed in the middle: what is sent under a key is sent again at the other one.
	ctx := within(t)
	var talking sync.WaitGroup
	const messages = 40
	half := make(chan struct{})
	talking.Go(func() {
		for i := range messages {
			if i == messages/2 {
				close(half)
			}
			text := fmt.Sprint("out ", i)
			require.NoError(t, two.send(ctx, "support", "+"+n.contact.PN().User, text, text))
		}
	})
	talking.Go(func() {
		for i := range messages {
			_, err := n.contact.SendText(n.account.LID(), fmt.Sprint("in ", i))
			require.NoError(t, err)
			wait(ctx, 5*time.Millisecond)
		}
	})
	<-half
	kill()
	talking.Wait()
	b.connected(two, "support")
	require.Equal(t, two.name, two.instance(t, "support").Owner)
	for i := range messages {
		_, err := n.contact.WaitReceived(ctx, waserver.Text(fmt.Sprint("out ", i)))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return b.hooks.told("support", "in ") == messages }, atMost, 20*time.Millisecond)
	later, stepThrough := taken()
	require.Greater(t, later, epoch)
	require.Positive(t, stepThrough, "it was taken as after an unclean end")
	require.Empty(t, n.contact.Lost())
	require.Empty(t, b.server.Record().Reused())
	require.Equal(t, 1, b.server.Stats().QRCodes)

	// A clean end leaves that as it is, and a process that comes later takes it as it was left.
	three := b.process(c)
	two.stop()
	b.connected(three, "support")
	_, after := taken()
	require.Equal(t, stepThrough, after)
	require.NoError(t, three.send(context.Background(), "support", "+"+n.contact.PN().User, "last", "last"))
	_, err = n.contact.WaitReceived(ctx, waserver.Text("last"))
	require.NoError(t, err)
	require.Empty(t, b.server.Record().Reused())
}
