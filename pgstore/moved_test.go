package pgstore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

// moving is a sender whose database can be put back to an earlier moment, on another timeline or on the same.
type moving struct {
	*sender
	seen map[place][]byte
}

func newMoving(t testing.TB, edit ...func(*pgstore.Config)) *moving {
	dsn, _ := onTimelines(t)
	s := newSender(t, append(edit, func(cfg *pgstore.Config) { cfg.DSN = dsn })...)
	s.dsn = dsn
	return &moving{sender: s, seen: make(map[place][]byte)}
}

// remember keeps the rows as they are now.
func (m *moving) remember() {
	m.Helper()
	require.NoError(m, m.c.Flush(ctx))
	require.NoError(m, execSQL(m, m.dsn,
		`CREATE SCHEMA saved`,
		`CREATE TABLE saved.instances AS TABLE whatsmeow.instances`,
		`CREATE TABLE saved.auth_keys AS TABLE whatsmeow.auth_keys`))
}

// goBack puts them back.
func (m *moving) goBack(promoted bool) {
	m.Helper()
	next := `NULL`
	if promoted {
		next = `UPDATE fake.timeline SET n = n + 1`
	}
	require.NoError(m, execSQL(m, m.dsn, `DO $$ BEGIN
		DELETE FROM whatsmeow.instances;
		INSERT INTO whatsmeow.instances SELECT * FROM saved.instances;
		INSERT INTO whatsmeow.auth_keys SELECT * FROM saved.auth_keys;
		`+next+`;
	END $$`))
}

// send is a message that the peer reads: on the session, or on a new one if there is none that may be used.
func (m *moving) send(text string) (anew bool) {
	m.Helper()
	sent, err := m.ours.Send(ctx, []types.JID{m.peer.Address()}, []byte(text))
	node := sent[m.peer.Address()]
	if err != nil {
		anew = true
		node, err = m.ours.SendAnew(ctx, m.peer, []byte(text))
	}
	require.NoError(m, err)
	at, body := placeOf(m, 0, node)
	_, used := m.seen[at]
	require.False(m, used, "a message key was used twice")
	m.seen[at] = body
	got, err := m.peer.Receive(ctx, m.ours.Address(), node)
	require.NoError(m, err)
	require.Equal(m, text, string(got))
	return anew
}

// die ends the process with nothing saved.
func (m *moving) die() {
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_ = m.c.Shutdown(gone) // what it says is not the point
}

// open is the next process.
func (m *moving) open(edit ...func(*pgstore.Config)) {
	m.Helper()
	cfg := pgstore.Config{DSN: m.dsn}
	for _, f := range edit {
		f(&cfg)
	}
	c, err := pgstore.NewWithConfig(ctx, cfg)
	require.NoError(m, err)
	m.Cleanup(func() { _ = c.Close() }) // or it has died
	m.c = c
	m.d, err = m.c.GetDevice(ctx, *m.d.ID)
	require.NoError(m, err)
	m.ours = signaltest.NewPeer(m.d)
}

func (m *moving) abandonThrough() int {
	return scalar[int](m, m.dsn, `SELECT abandon_through FROM whatsmeow.instances`)
}

func witnessedBy(t testing.TB) func(*pgstore.Config) {
	path := filepath.Join(t.TempDir(), "marks")
	return func(cfg *pgstore.Config) {
		w, err := filewitness.Open(path)
		require.NoError(t, err)
		cfg.Witness = w
	}
}

func respectful(cfg *pgstore.Config) { cfg.Takes = pgstore.RespectLease }

func TestP4ALivingOwnerWritesAgainWhatADatabaseHasLost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		promoted, keeps bool
		edit            func(*pgstore.Config)
	}{
		"promoted":                    {promoted: true},
		"promoted, with a lease":      {promoted: true, keeps: true, edit: respectful},
		"put back, with its timeline": {},
		"put back, with a lease":      {keeps: true, edit: respectful},
		"promoted, though trusted":    {promoted: true, edit: func(cfg *pgstore.Config) { cfg.OnTimelineChange = pgstore.Trust }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var edit []func(*pgstore.Config)
			if c.edit != nil {
				edit = append(edit, c.edit)
			}
			m := newMoving(t, edit...)
			trust(t, "before:0", m.d)
			made, err := m.d.PreKeys.GetOrGenPreKeys(ctx, 5)
			require.NoError(t, err)
			require.NoError(t, m.d.PreKeys.MarkPreKeysAsUploaded(ctx, made[4].KeyID))
			require.NoError(t, m.d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte{1}))
			require.NoError(t, m.d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, []store.AppStateMutationMAC{{IndexMAC: make([]byte, 32), ValueMAC: make([]byte, 32)}}))
			m.send("one")
			m.remember()
			for i := range 100 { // further than the ceilings that come back
				m.send(fmt.Sprint("lost ", i))
			}
			trust(t, "lost:0", m.d)
			require.NoError(t, m.d.Identities.DeleteIdentity(ctx, "before:0"))
			require.NoError(t, m.d.PreKeys.RemovePreKey(ctx, made[0].KeyID))
			require.NoError(t, m.c.Flush(ctx))

			version, _, err := m.d.AppState.GetAppStateVersion(ctx, "regular")
			require.NoError(t, err)
			require.EqualValues(t, 3, version)
			require.NoError(t, m.d.AppState.PutAppStateVersion(ctx, "critical_block", 8, [128]byte{1}))
			m.goBack(c.promoted)
			trust(t, "after:0", m.d)
			require.NoError(t, m.c.Flush(within(t, 30*time.Second)))
			require.Equal(t, int64(1), m.c.Stats().Replayed)
			require.Zero(t, m.c.Stats().Batcher.Stopped)
			for i := range 3 {
				require.Equal(t, !c.keeps && i == 0, m.send(fmt.Sprint("after ", i)))
			}
			one := []store.AppStateMutationMAC{{IndexMAC: random.Bytes(32), ValueMAC: random.Bytes(32)}}
			require.ErrorIs(t, m.d.AppState.PutAppStateVersion(ctx, "regular", 4, [128]byte{1}), pgstore.ErrDatabaseRewound, "it builds on version 3, which was dropped")
			require.ErrorIs(t, m.d.AppState.PutAppStateMutationMACs(ctx, "critical_block", 8, one), pgstore.ErrDatabaseRewound)
			version, _, err = m.d.AppState.GetAppStateVersion(ctx, "critical_block")
			require.NoError(t, err)
			require.Zero(t, version, "a patch that was begun before")
			require.NoError(t, m.d.AppState.PutAppStateVersion(ctx, "critical_block", 9, [128]byte{1}), "the client has seen that there is none")
			require.NoError(t, m.d.AppState.PutAppStateMutationMACs(ctx, "critical_block", 9, one))
			signaltest.Say(t, m.peer, m.ours, "do you read me?")
			m.send("I do")
			require.NoError(t, m.c.Close())

			m.open(edit...)
			require.Zero(t, m.c.Stats().Healed, "it is whole")
			require.Zero(t, trusted(t, m.dsn, "before:0"), "deleted stays deleted")
			require.Equal(t, 1, trusted(t, m.dsn, "lost:0"))
			require.Equal(t, 1, trusted(t, m.dsn, "after:0"))
			require.False(t, m.send("the next process"), "on the session that was made since")
			gone, err := m.d.PreKeys.GetPreKey(ctx, made[0].KeyID)
			require.NoError(t, err)
			require.Nil(t, gone)
			count, err := m.d.PreKeys.UploadedPreKeyCount(ctx)
			require.NoError(t, err)
			next, err := m.d.PreKeys.GenOnePreKey(ctx)
			require.NoError(t, err)
			if c.keeps {
				require.Equal(t, 4, count)
				require.Equal(t, made[4].KeyID+1, next.KeyID)
			} else {
				require.Zero(t, count)
				require.Greater(t, next.KeyID, made[4].KeyID+100_000)
			}
			version, _, err = m.d.AppState.GetAppStateVersion(ctx, "regular")
			require.NoError(t, err)
			require.Zero(t, version, "its MACs were not in memory")
			require.Equal(t, 1, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'app_state_mac'`), "what came afterwards")
		})
	}
}

// Who takes an instance from a database that went back makes anew what had been published, once, whatever dies on the way.
func TestP4WhoTakesAnInstanceFromADatabaseThatWentBackHeals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		promoted bool
		edit     func(testing.TB) func(*pgstore.Config)
		before   []string // what becomes of the database besides
		healed   bool
	}{
		"promoted": {promoted: true, healed: true},
		"trusted": {promoted: true, edit: func(testing.TB) func(*pgstore.Config) {
			return func(cfg *pgstore.Config) { cfg.OnTimelineChange = pgstore.Trust }
		}},
		"put back":       {}, // on the same timeline nobody sees it
		"with a witness": {edit: witnessedBy, healed: true},
		"another system": {before: []string{`CREATE FUNCTION fake.pg_control_system(OUT system_identifier bigint) LANGUAGE sql AS 'SELECT 1::bigint'`}, healed: true},
		"another, trusted": {
			before: []string{`CREATE FUNCTION fake.pg_control_system(OUT system_identifier bigint) LANGUAGE sql AS 'SELECT 1::bigint'`},
			edit: func(testing.TB) func(*pgstore.Config) {
				return func(cfg *pgstore.Config) { cfg.OnNewSystem = pgstore.Trust }
			},
		},
		"a dump that was restored": {before: []string{ // its tables are new ones
			`ALTER TABLE whatsmeow.instances RENAME TO dumped`,
			`CREATE TABLE whatsmeow.instances (LIKE whatsmeow.dumped INCLUDING ALL)`,
			`INSERT INTO whatsmeow.instances SELECT * FROM whatsmeow.dumped`,
			`ALTER TABLE whatsmeow.auth_keys DROP CONSTRAINT auth_keys_instance_id_fkey`,
		}, healed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var edit []func(*pgstore.Config)
			if c.edit != nil {
				edit = append(edit, c.edit(t))
			}
			m := newMoving(t, edit...)
			made, err := m.d.PreKeys.GetOrGenPreKeys(ctx, 5)
			require.NoError(t, err)
			require.NoError(t, m.d.PreKeys.MarkPreKeysAsUploaded(ctx, made[4].KeyID))
			require.NoError(t, m.d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte{1}))
			require.NoError(t, m.d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, []store.AppStateMutationMAC{{IndexMAC: make([]byte, 32), ValueMAC: make([]byte, 32)}}))
			trust(t, "1:0", m.d)
			m.send("one")
			m.remember()
			for i := range 100 {
				m.send(fmt.Sprint("lost ", i))
			}
			require.NoError(t, m.c.Close())
			m.goBack(c.promoted)
			require.NoError(t, execSQL(t, m.dsn, c.before...))

			m.open(edit...)
			if !c.healed {
				require.Zero(t, m.c.Stats().Healed)
				require.Zero(t, m.abandonThrough())
				return
			}
			require.Equal(t, int64(1), m.c.Stats().Healed)
			m.die() // before any of it was saved, or after

			m.open(edit...)
			m.die()
			m.open(edit...)
			require.NoError(t, m.c.Flush(ctx))
			require.True(t, m.send("anew"))
			require.False(t, m.send("and on"))
			signaltest.Say(t, m.peer, m.ours, "do you read me?")
			m.send("I do")
			require.NoError(t, m.c.Close())

			m.open(edit...)
			require.Zero(t, m.c.Stats().Healed, "once")
			require.False(t, m.send("the next process"))
			count, err := m.d.PreKeys.UploadedPreKeyCount(ctx)
			require.NoError(t, err)
			require.Zero(t, count)
			still, err := m.d.PreKeys.GetPreKey(ctx, made[1].KeyID)
			require.NoError(t, err)
			require.NotNil(t, still, "a peer may have fetched it")
			fresh, err := m.d.PreKeys.GetOrGenPreKeys(ctx, 1)
			require.NoError(t, err)
			require.Greater(t, fresh[0].KeyID, uint32(100_000))
			version, _, err := m.d.AppState.GetAppStateVersion(ctx, "regular")
			require.NoError(t, err)
			require.Zero(t, version)
			require.Equal(t, 1, trusted(t, m.dsn, "1:0"), "identities stay")
		})
	}
}

// What is read from a database that went back is older than what has left, also before any flush has noticed.
func TestP4WhatWasEvictedIsNotReadFromADatabaseThatWentBack(t *testing.T) {
	t.Parallel()
	for _, promoted := range []bool{false, true} {
		t.Run(fmt.Sprint("promoted=", promoted), func(t *testing.T) {
			t.Parallel()
			m := newMoving(t, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 })
			m.send("one")
			m.remember()
			for i := range 100 {
				m.send(fmt.Sprint("lost ", i))
			}
			require.NoError(t, m.c.Flush(ctx))
			m.goBack(promoted)
			require.True(t, m.send("after"))
			require.Equal(t, int64(1), m.c.Stats().Replayed)
			require.False(t, m.send("and on"))
		})
	}
}

// A send that holds a session while its chains are given up, or waits for its flush, does not leave.
func TestP4ASendAcrossADatabaseThatWentBackDoesNotLeave(t *testing.T) {
	t.Parallel()
	m := newMoving(t, func(cfg *pgstore.Config) { cfg.Sends = pgstore.Durable })
	address := m.peer.Address().SignalAddress().String()
	m.remember()
	held, err := m.d.Sessions.GetManySessions(ctx, []string{address})
	require.NoError(t, err)
	m.send("before")
	m.goBack(true)
	_, err = m.ours.Send(ctx, []types.JID{m.peer.Address()}, []byte("waits")) // its own flush is what notices
	require.ErrorIs(t, err, pgstore.ErrMessageKeyUsed)
	require.Equal(t, int64(1), m.c.Stats().Replayed)
	require.ErrorIs(t, m.d.Sessions.PutManySessions(ctx, map[string][]byte{address: sentOnce(t, held[address])}), pgstore.ErrMessageKeyUsed)
	require.True(t, m.send("anew"))
	require.Equal(t, int64(2), m.c.Stats().Refused)
}

// Nor does one whose message key nobody has used here: somebody else may have, in the tail that was lost.
func TestP4ASendThatHeldASessionWhenItsChainsWereGivenUpDoesNotLeave(t *testing.T) {
	t.Parallel()
	m := newMoving(t)
	address := m.peer.Address().SignalAddress().String()
	m.send("before")
	m.remember()
	held, err := m.d.Sessions.GetManySessions(ctx, []string{address})
	require.NoError(t, err)
	m.goBack(true)
	trust(t, "1:0", m.d)
	require.NoError(t, m.c.Flush(ctx))
	require.Equal(t, int64(1), m.c.Stats().Replayed)
	require.ErrorIs(t, m.d.Sessions.PutManySessions(ctx, map[string][]byte{address: sentOnce(t, held[address])}), pgstore.ErrMessageKeyUsed)
	require.True(t, m.send("anew"))
}

// Who is closing does not come back for an instance: what he could not save is told.
func TestP7AShutdownTellsOfADatabaseThatWentBack(t *testing.T) {
	t.Parallel()
	dsn, failOver := onTimelines(t)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, FlushInterval: time.Hour, MaxRest: time.Hour})
	require.NoError(t, err)
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	failOver()
	var unsaved *batcher.UnsavedError
	require.ErrorAs(t, c.Close(), &unsaved)
	require.ErrorIs(t, unsaved, pgstore.ErrDatabaseRewound)
	require.Equal(t, map[string]int{d.ID.String(): 1}, unsaved.Pending)
	require.Zero(t, trusted(t, dsn, "1:0"))
}

func TestP6ALeaseIsRespected(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	with := func(lease time.Duration) *pgstore.Container {
		c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Takes: pgstore.RespectLease, Lease: lease})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() }) // or it has died
		return c
	}
	first, second := with(time.Second), with(time.Hour)
	d := pair(t, first.NewDevice())
	_, err := second.GetDevice(within(t, 1500*time.Millisecond), *d.ID) // longer than a lease that is not renewed
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	require.ErrorIs(t, err, pgstore.ErrLeased)
	require.ErrorIs(t, err, context.Canceled)
	trust(t, "1:0", d)
	require.NoError(t, first.Close())
	trust(t, "2:0", mustDevice(t, second, *d.ID))
	require.NoError(t, second.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "it was let go of")
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.processes`))

	third := with(time.Second)
	_, err = third.GetDevice(within(t, 100*time.Millisecond), *d.ID)
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.processes SET expires = clock_timestamp() WHERE id = (SELECT process FROM whatsmeow.instances)`))
	trust(t, "3:0", mustDevice(t, third, *d.ID)) // of one that died
	require.NoError(t, third.Flush(ctx))
	require.Positive(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`))
}

func mustDevice(t testing.TB, c *pgstore.Container, jid types.JID) *store.Device {
	t.Helper()
	d, err := c.GetDevice(ctx, jid)
	require.NoError(t, err)
	return d
}

func TestP6AllProcessesAgreeOnTakes(t *testing.T) {
	t.Parallel()
	dsn, _ := onTimelines(t)
	reopen(t, dsn)
	_, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Takes: pgstore.RespectLease})
	require.ErrorIs(t, err, pgstore.ErrInvalidInput)
	require.ErrorContains(t, err, "forced")
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.settings SET takes = 'respect_lease'`))
	reopen(t, dsn, respectful)
}

// A failover makes all clients ask for bundles; they do not do so at once.
func TestP4BundlesOfAbandonedSessionsAreFetchedAtARate(t *testing.T) {
	t.Parallel()
	slow := func(cfg *pgstore.Config) { cfg.HealRate = 0.001 }
	m := newMoving(t)
	m.send("one")
	require.NoError(t, m.c.Close())
	require.NoError(t, execSQL(t, m.dsn, `UPDATE fake.timeline SET n = n + 1`))
	m.open(slow)
	address := m.peer.Address().SignalAddress().String()
	for range 2 {
		got, err := m.d.Sessions.GetManySessions(ctx, []string{"999:0"})
		require.NoError(t, err)
		require.Nil(t, got["999:0"], "of one that never was, nobody waits")
	}
	got, err := m.d.Sessions.GetManySessions(ctx, []string{address})
	require.NoError(t, err)
	require.Nil(t, got[address])
	_, err = m.d.Sessions.GetManySessions(within(t, 50*time.Millisecond), []string{address})
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
}

var sendingIndex = regexp.MustCompile(`("SenderChain":\{.*?"Index":)(\d+)`)

// sentOnce is a session as a send puts it.
func sentOnce(t testing.TB, session []byte) []byte {
	t.Helper()
	at := sendingIndex.FindSubmatchIndex(session)
	require.NotNil(t, at)
	counter, err := strconv.Atoi(string(session[at[4]:at[5]]))
	require.NoError(t, err)
	return slices.Concat(session[:at[4]], []byte(strconv.Itoa(counter+1)), session[at[5]:])
}
