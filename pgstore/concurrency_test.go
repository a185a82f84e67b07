package pgstore_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

func TestAppStateIsReadWhileAPatchIsStored(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := d.AppState.GetAppStateVersion(ctx, "regular"); err != nil {
					t.Error(err)
				}
				if _, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", make([]byte, 32)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for v := range uint64(200) {
		require.NoError(t, d.AppState.PutAppStateVersion(ctx, "regular", v+1, [128]byte{}))
		require.NoError(t, d.AppState.PutAppStateMutationMACs(ctx, "regular", v+1, []store.AppStateMutationMAC{{IndexMAC: make([]byte, 32), ValueMAC: make([]byte, 32)}}))
	}
	close(stop)
	wg.Wait()
}

func TestP9ATransactionDoesNotBringBackWhatWasDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
	require.NoError(t, d.EventBuffer.DoDecryptionTxn(ctx, func(inner context.Context) error {
		require.NoError(t, d.Sessions.PutSession(inner, "1:0", sessionAt(2)))
		require.NoError(t, d.Sessions.PutSession(inner, "2:0", sessionAt(2)))
		return d.Sessions.DeleteAllSessions(ctx, "1") // the contact's identity changed
	}))
	has, err := d.Sessions.HasSession(ctx, "1:0")
	require.NoError(t, err)
	require.False(t, has)
	has, err = d.Sessions.HasSession(ctx, "2:0")
	require.NoError(t, err)
	require.True(t, has)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session'`))
}

func TestP2OfTwoTransactionsThatDecryptOneMessageOneIsRolledBack(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	hash := [32]byte{1}
	decrypt := func(session int, during func()) error {
		return d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
			if err := d.Sessions.PutSession(ctx, "1:0", sessionAt(session)); err != nil {
				return err
			}
			err := d.EventBuffer.PutBufferedEvent(ctx, hash, []byte("p"), time.Now())
			during()
			return err
		})
	}
	var first []byte
	require.ErrorIs(t, decrypt(1, func() {
		require.NoError(t, decrypt(2, func() {}))
		require.NoError(t, d.EventBuffer.ClearBufferedEventPlaintext(ctx, hash))
		var err error
		first, err = d.Sessions.GetSession(ctx, "1:0")
		require.NoError(t, err)
	}), context.Canceled, "the client must not ask for the message again")
	got, err := d.Sessions.GetSession(ctx, "1:0")
	require.NoError(t, err)
	require.Equal(t, string(first), string(got), "its ratchet too")
	event, err := d.EventBuffer.GetBufferedEvent(ctx, hash)
	require.NoError(t, err)
	require.Nil(t, event.Plaintext, "it stays processed")
}

func TestATransactionThatHasEndedTakesNoWrite(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	var leaked context.Context
	require.Error(t, d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
		leaked = ctx
		require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
		return errors.New("broken")
	}))
	require.Error(t, d.Sessions.PutSession(leaked, "1:0", sessionAt(1)))
	has, err := d.Sessions.HasSession(leaked, "1:0")
	require.NoError(t, err)
	require.False(t, has, "nothing that was rolled back is read")
}

func TestP9DeletingADeviceThatWasNeverStoredHarmsNobody(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	first, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	second, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	pair(t, first)
	require.NoError(t, first.Sessions.PutSession(ctx, "1:0", sessionAt(0)))
	signaltest.FillPairing(second)
	require.ErrorIs(t, second.Save(ctx), pgstore.ErrDeviceConflict)
	require.NoError(t, second.Delete(ctx))
	has, err := first.Sessions.HasSession(ctx, "1:0")
	require.NoError(t, err)
	require.True(t, has)
	require.NoError(t, c.Flush(ctx))
}

func TestP6LookingDoesNotTakeBackWhatWasLost(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, err := pgstore.New(ctx, dsn, nil)
	require.NoError(t, err)
	d := pair(t, a.NewDevice())
	b := reopen(t, dsn)
	owned, err := b.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.ErrorIs(t, a.Flush(ctx), pgstore.ErrOwnershipLost)
	all, err := a.GetAllDevices(ctx)
	require.NoError(t, err)
	_, err = all[0].Contacts.GetContact(ctx, *d.ID)
	require.NoError(t, err)
	_, _, err = all[0].AppState.GetAppStateVersion(ctx, "regular")
	require.NoError(t, err)
	require.NoError(t, owned.Identities.PutIdentity(ctx, "2:0", [32]byte{1}))
	require.NoError(t, b.Flush(ctx), "the new owner still is")
	require.Zero(t, a.Stats().Cache.Bytes, "what was lost is let go of")
	require.Error(t, a.Close())
}

// While a session that was evicted is fetched, another container takes the instance, and this one finds out.
func TestP8AReadInFlightWhenTheInstanceIsLostIsNoAbsence(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	pool, w := watchedPool(t, dsn)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool, MemoryBudget: 1})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
	require.NoError(t, c.Flush(ctx))
	fetch, release := w.hold("AS want (key_type, key_id)")
	defer release()
	type answer struct {
		session []byte
		err     error
	}
	answered := make(chan answer, 1)
	go func() {
		session, err := d.Sessions.GetSession(ctx, "1:0")
		answered <- answer{session, err}
	}()
	require.Eventually(t, func() bool { return fetch.held.Load() == 1 }, 10*time.Second, time.Millisecond)
	_, err = reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, d.Contacts.PutContactName(ctx, *d.ID, "first", "full")) // in memory whole: it is not fetched
	require.ErrorIs(t, c.Flush(ctx), pgstore.ErrOwnershipLost)
	require.Eventually(t, func() bool { return c.Stats().Cache.Instances == 0 }, 10*time.Second, time.Millisecond)
	release()
	got := <-answered
	require.ErrorIs(t, got.err, pgstore.ErrOwnershipLost)
	require.ErrorIs(t, got.err, context.Canceled)
	require.Nil(t, got.session)
	require.Error(t, c.Close(), "what it could not save is told")
}

func TestP8AReadInFlightAtCloseEnds(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	network.Down()
	done := make(chan error, 1)
	go func() {
		_, _, err := d.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, "A")
		done <- err
	}()
	_ = c.Shutdown(within(t, 200*time.Millisecond))
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(20 * time.Second):
		t.Fatal("it is still waiting")
	}
}

// On a connection that hangs nothing ends by itself: neither a read, nor a Shutdown that would wait for it.
func TestP8ShutdownObeysItsContextAndEndsReadsThatHang(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.New(ctx, network.DSN, nil)
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	network.Hang()
	read, first := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := d.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, "A")
		read <- err
	}()
	require.Eventually(t, func() bool { return c.Stats().Cache.Fetches > 0 }, 10*time.Second, time.Millisecond)
	began := time.Now()
	go func() { first <- c.Shutdown(within(t, time.Second)) }()
	require.Eventually(t, func() bool { return errors.Is(d.NCTSalt.DeleteNCTSalt(ctx), pgstore.ErrClosed) }, 10*time.Second, time.Millisecond)
	second := c.Shutdown(within(t, 100*time.Millisecond))
	require.ErrorIs(t, second, context.DeadlineExceeded, "its own context, not that of the first call")
	require.Empty(t, first)
	require.ErrorIs(t, <-first, context.DeadlineExceeded, "the instance could not be marked as cleanly left")
	require.Less(t, time.Since(began), 10*time.Second)
	require.ErrorIs(t, <-read, pgstore.ErrClosed)
	network.Heal()
}

func TestP8ShutdownWaitsOutAFailover(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c, err := pgstore.New(ctx, network.DSN, nil)
	require.NoError(t, err)
	pair(t, c.NewDevice())
	network.Down()
	ended := make(chan error, 1)
	go func() { ended <- c.Shutdown(within(t, 20*time.Second)) }()
	require.Never(t, func() bool { return len(ended) > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	network.Up()
	require.NoError(t, <-ended)
	require.True(t, scalar[bool](t, dsn, `SELECT clean_at_epoch = epoch FROM whatsmeow.instances`))
}

func TestP8AWaitThatTheContextEndsMatchesCanceledWhateverEndedIt(t *testing.T) {
	t.Parallel()
	network := pgtest.NewProxy(t, pgtest.Open(t))
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: network.DSN, PendingLimit: 1, DurableAcks: true})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	network.Down()
	ended, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("a cause of the caller's own"))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	for _, err := range []error{
		d.Sessions.PutManySessions(ended, map[string][]byte{"1:0": sessionAt(1)}),
		d.EventBuffer.DoDecryptionTxn(ended, func(ctx context.Context) error { return d.Sessions.PutSession(ctx, "1:0", sessionAt(1)) }),
		d.NCTSalt.PutNCTSalt(within(t, 50*time.Millisecond), []byte("salt")),
		d.EventBuffer.ClearBufferedEventPlaintext(within(t, 50*time.Millisecond), [32]byte{1}),
		c.LIDMap.PutLIDMapping(within(t, 50*time.Millisecond), types.NewJID("1", types.HiddenUserServer), types.NewJID("1", types.DefaultUserServer)),
	} {
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, pgstore.ErrUnavailable)
	}
	network.Up()
	require.NoError(t, c.Close())
}

func TestSynchronousTypesHoldForEveryWrite(t *testing.T) {
	t.Parallel()
	c, w := openWatched(t, pgtest.Open(t), behind, func(cfg *pgstore.Config) { cfg.SynchronousTypes = []string{"app_state_version", "session"} })
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
	require.False(t, returns(t, w, func() error {
		if err := d.AppState.PutAppStateVersion(ctx, "regular", 1, [128]byte{}); err != nil {
			return err
		}
		return d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, nil)
	}))
	require.False(t, returns(t, w, func() error {
		return d.Sessions.MigratePNToLID(ctx, types.NewJID("1", types.DefaultUserServer), types.NewJID("9", types.HiddenUserServer))
	}))
	require.True(t, returns(t, w, func() error { return d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}) }))
}

// The first Save's connection is cut at every point, also after its commit: it succeeds when it is tried again, and is no conflict.
func TestP5APairingCutAtEveryPointIsSaved(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	c := reopen(t, network.DSN)
	for n := 0; n < 400; n += 20 {
		d := c.NewDevice()
		signaltest.FillPairing(d)
		network.CutAfter(n, true)
		done := make(chan error, 1)
		go func() { done <- d.Save(ctx) }()
		heal := time.AfterFunc(30*time.Millisecond, network.Heal) // by then it was cut, or it is saved
		require.NoError(t, <-done)
		heal.Stop()
		network.Heal()
		require.NoError(t, d.Save(ctx))
		require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances WHERE id = $1`, d.ID.String()))
	}
}
