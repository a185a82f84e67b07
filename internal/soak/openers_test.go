package soak

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const openers = 10

// pairAside pairs an instance of a fault's own, which lives a little.
func (b *badDays) pairAside(ctx context.Context, t testing.TB, c *pgstore.Container) *resident {
	t.Helper()
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	r := newChildResident(b.rng.Uint64(), d)
	r.live(ctx, t)
	return r
}

// live takes some steps and compares one of everything.
func (r *resident) live(ctx context.Context, t testing.TB) {
	t.Helper()
	for range 20 {
		what, err := r.childStep(ctx)
		require.NoError(t, err, what)
	}
	require.NoError(t, r.check(ctx))
}

// tenOpeners lets ten processes start at once; ten goroutines in one of them open an instance, which is taken once; and then all processes
// open it, and one of them has it.
func tenOpeners(t testing.TB, b *badDays) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	containers := make([]*pgstore.Container, openers)
	atOnce(t, func(i int) (err error) {
		containers[i], err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: b.network.DSN, Sends: pgstore.WriteBehind, Owner: fmt.Sprint("opener ", i)})
		return err
	})
	r := b.pairAside(ctx, t, containers[0])
	id := *r.device.ID
	require.NoError(t, containers[0].Shutdown(ctx))

	atOnce(t, func(i int) error { // a second take would let those lose it that have got it from the first one
		d, err := opensWhole(ctx, containers[1], id, r)
		if err != nil {
			return err
		}
		return d.Identities.PutIdentity(ctx, fmt.Sprint(i, ":0"), [32]byte{1})
	})
	require.NoError(t, containers[1].Flush(ctx))

	owner := -1
	var unsaved [openers]bool
	var mu sync.Mutex
	var opened sync.WaitGroup
	opened.Add(openers - 1)
	atOnce(t, func(i int) error {
		if i == 0 {
			return nil
		}
		d, err := opensWhole(ctx, containers[i], id, r)
		opened.Done()
		opened.Wait()
		if err == nil {
			if err = d.Sessions.PutManySessions(ctx, map[string][]byte{"a:1": []byte(r.model.sessions["a:1"] + "changed")}); err == nil {
				err = containers[i].Flush(ctx)
				unsaved[i] = err != nil
			}
		}
		if errors.Is(err, pgstore.ErrOwnershipLost) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if err == nil && owner >= 0 {
			err = fmt.Errorf("%d and %d both have it", owner, i)
		}
		owner = i
		return err
	})
	require.Positive(t, owner)
	d, err := containers[owner].GetDevice(ctx, id)
	require.NoError(t, err)
	r.device = d
	r.model.sessions["a:1"] += "changed"
	require.NoError(t, r.checkAll(ctx))
	for i, c := range containers[1:] {
		err := c.Shutdown(ctx)
		if unsaved[1+i] || err != nil && 1+i != owner { // a read that is overtaken deletes nothing at all, to learn why
			require.ErrorIs(t, err, pgstore.ErrOwnershipLost, "it says what it did not save")
		} else {
			require.NoError(t, err)
		}
	}
}

// opensWhole opens an instance and compares one of everything with what the model of r says. Whoever is overtaken meanwhile may learn it.
func opensWhole(ctx context.Context, c *pgstore.Container, id types.JID, r *resident) (*store.Device, error) {
	d, err := c.GetDevice(ctx, id)
	if err != nil {
		return nil, err
	}
	held := r.moment()
	held.device = d
	return d, held.check(ctx)
}

// atOnce runs one function in ten goroutines.
func atOnce(t testing.TB, do func(i int) error) {
	t.Helper()
	errs := make([]error, openers)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = do(i) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// newerSchema is one that a later version of the library has migrated: first it says that this one may use it, then that it may not. Whoever
// is running goes on.
func newerSchema(t testing.TB, b *badDays) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	const later = `INSERT INTO whatsmeow.schema_info SELECT max(version) + 1, min(usable_from) FROM whatsmeow.schema_info`
	b.exec(t, later)
	c, err := pgstore.New(ctx, b.network.DSN, nil)
	require.NoError(t, err)
	r := b.pairAside(ctx, t, c)
	b.exec(t, `UPDATE whatsmeow.schema_info SET usable_from = version WHERE version = (SELECT max(version) FROM whatsmeow.schema_info)`)
	_, err = pgstore.New(ctx, b.network.DSN, nil)
	require.ErrorIs(t, err, pgstore.ErrSchemaTooNew)
	r.live(ctx, t)
	require.NoError(t, r.leave(ctx))
	require.NoError(t, c.Shutdown(ctx))
	b.exec(t, `DELETE FROM whatsmeow.schema_info WHERE version = (SELECT max(version) FROM whatsmeow.schema_info)`)
}
