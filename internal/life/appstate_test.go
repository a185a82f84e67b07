package life

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
)

// synced is a life of an account whose phone has settings, which the client has.
func synced(t *testing.T, b backend, mutations ...appstate.Mutation) *life {
	t.Helper()
	l := newLife(t, b)
	l.pairSynced(mutations...)
	return l
}

// pairSynced pairs a client with the account whose phone has settings, and waits until it has fetched them all.
func (l *life) pairSynced(mutations ...appstate.Mutation) {
	l.t.Helper()
	require.NoError(l.t, l.account.Apply(l.ctx, mutations...))
	require.NoError(l.t, l.account.AppState().TakeSnapshot())
	l.start()
	l.pair()
	for _, name := range client.AllPatchNames {
		l.await(func(e event) bool { return e.Kind == saidSynced && e.Text == string(name) })
	}
	l.do(command{Do: doFlush})
}

// upToDate waits until the client has every collection in its present version, and nothing is on its way.
func (l *life) upToDate() {
	l.t.Helper()
	require.NoError(l.t, l.account.WaitSynced(l.ctx, l.device))
	require.NoError(l.t, l.server.WaitIdle(l.ctx))
}

// change lets the phone change settings, of which it tells the client.
func (l *life) change(mutations ...appstate.Mutation) {
	l.t.Helper()
	require.NoError(l.t, l.account.Apply(l.ctx, mutations...))
}

// ask is the answer to a question to the child's store.
func ask[T any](l *life, cmd command) (value T) {
	l.t.Helper()
	require.NoError(l.t, json.Unmarshal(l.do(cmd).Value, &value))
	return value
}

func (l *life) name(of types.JID) string { return ask[string](l, command{Do: doContact, To: of}) }

func (l *life) chat(with types.JID) types.LocalChatSettings {
	return ask[types.LocalChatSettings](l, command{Do: doChat, To: with})
}

// awaitName waits until the client knows somebody by a name.
func (l *life) awaitName(of types.JID, name string) {
	l.t.Helper()
	require.Eventually(l.t, func() bool { return l.name(of) == name }, patience, tick, "%s is not called %q", of, name)
}

// requireSynced requires that no client and no server has seen a hash that does not fit.
func (l *life) requireSynced() {
	l.t.Helper()
	require.Empty(l.t, l.events(ofKind(saidUnsynced)))
	require.Empty(l.t, l.account.AppState().Problems())
}

// person is somebody whom nobody talks to.
func person(n int) types.JID {
	return types.NewJID(fmt.Sprintf("49301%06d", n), types.DefaultUserServer)
}

func TestP2ContactsMutesAndArchivesArriveAndStay(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		var first []appstate.Mutation
		for i := range 300 {
			first = append(first, appstate.Contact(person(i), "P", fmt.Sprint("Person ", i)))
		}
		first = append(first, appstate.Archive(person(1), true), appstate.Mute(person(2), time.Unix(-1, 0)), appstate.PushName("me"))
		l := synced(t, b, first...)
		until := time.Now().Add(time.Hour).Truncate(time.Second)
		l.change(appstate.Contact(person(7), "Q", "Somebody"), appstate.Mute(person(3), until), appstate.Archive(person(1), false), appstate.Pin(person(4), true))
		l.awaitName(person(7), "Somebody")
		var many, fewer []appstate.Mutation // a patch each
		for i := range 500 {
			many = append(many, appstate.Contact(person(1000+i), "M", fmt.Sprint("Many ", i)))
			if i%2 == 0 {
				fewer = append(fewer, appstate.Remove(many[i]))
			}
		}
		l.change(many...)
		l.awaitName(person(1499), "Many 499")
		l.change(fewer...)
		l.upToDate()
		l.account.AppState().AddKey() // the client does not have it, and asks for it
		l.change(appstate.Contact(person(8), "R", "Under a new key"))
		l.awaitName(person(8), "Under a new key")
		l.do(command{Do: doFlush})
		for _, again := range []string{"before", "after a kill"} {
			if again != "before" {
				l.kill()
				l.change(appstate.Contact(person(9), "S", "While away")) // under the key that it was given
				l.start()
				l.await(ofKind(saidConnected))
				l.awaitName(person(9), "While away")
			}
			require.Equal(t, "Person 299", l.name(person(299)), again)
			require.Equal(t, "Many 1", l.name(person(1001)), again)
			require.Equal(t, "Somebody", l.name(person(7)), again)
			require.Equal(t, "Under a new key", l.name(person(8)), again)
			require.False(t, l.chat(person(1)).Archived, again)
			require.True(t, l.chat(person(2)).MutedUntil.Equal(store.MutedForever), again)
			require.WithinDuration(t, until, l.chat(person(3)).MutedUntil, 0, again)
			require.True(t, l.chat(person(4)).Pinned, again)
		}
		l.upToDate()
		require.Equal(t, 2, l.db.count("app_state_key"))
		l.requireSynced()
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

// What the client sets itself goes out under the version and the MACs that are stored, comes back, and is there in the next process.
func TestP2WhatTheClientSetsIsSetOnThePhone(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		var first []appstate.Mutation
		for i := range 5 {
			first = append(first, appstate.Mute(person(i), time.Time{}), appstate.Archive(person(i), false))
		}
		l := synced(t, b, first...)
		l.warnings = []string{"trying to apply conflicts"} // the phone was quicker
		muted := func(n int) bool {
			return l.account.AppState().Value(client.WAPatchRegularHigh, client.IndexMute, person(n).String()).GetMuteAction().GetMuted()
		}
		archived := func(n int) bool {
			return l.account.AppState().Value(client.WAPatchRegularLow, client.IndexArchive, person(n).String()).GetArchiveChatAction().GetArchived()
		}
		for i := range 4 {
			l.do(command{Do: doMute, To: person(i)})
			require.True(t, muted(i))
			l.do(command{Do: doArchive, To: person(i)})
			require.True(t, archived(i))
			l.change(appstate.Archive(person(4), i%2 == 0)) // and the phone between that
			switch i {
			case 1:
				l.upToDate()
				l.do(command{Do: doFlush})
				l.restart()
			case 2: // at once: what is not stored is fetched again
				l.restart()
			}
		}
		l.upToDate()
		for i := range 4 {
			require.Eventually(t, func() bool { return l.chat(person(i)).Archived }, patience, tick, i)
			require.True(t, l.chat(person(i)).MutedUntil.Equal(store.MutedForever), i)
		}
		require.Eventually(t, func() bool { return !l.chat(person(4)).Archived }, patience, tick)
		l.requireSynced()
		l.requireOnePairing()
		l.requireNothingReused()
	})
}

// A patch is three calls of the store and then the settings themselves. The client acknowledges the notification before it fetches,
// so a process that dies after one of the first two calls fetches the patch together with the next one. One that dies after
// the last has lost the settings of the patch, on any store, until they change again. Sqlstore has the patch with the first call, and
// without its MACs what comes later does not verify.
func TestP2APatchSurvivesADeathBetweenTheCallsThatStoreIt(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"PutAppStateVersion", "DeleteAppStateMutationMACs", "PutAppStateMutationMACs"} {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(method+" on "+b.name, func(t *testing.T) {
				t.Parallel()
				l := synced(t, b, appstate.Contact(person(1), "A", "A"), appstate.Contact(person(2), "B", "B"))
				l.quit()
				l.change(appstate.Contact(person(1), "A", "A changed"), appstate.Remove(appstate.Contact(person(2), "", "")), appstate.Contact(person(3), "C", "C"))
				l.set.DieAfter = method
				l.start()
				require.EqualError(t, l.ended(), killed) // by itself
				l.set.DieAfter = ""
				l.start()
				l.await(ofKind(saidConnected))
				// Each MAC that the next ones take away must be the one that the patch has put.
				l.change(appstate.Remove(appstate.Contact(person(3), "", "")), appstate.Contact(person(2), "B", "B again"))
				if !b.ours {
					require.Eventually(t, func() bool { return l.name(person(2)) == "B again" || len(l.events(ofKind(saidUnsynced))) > 0 }, patience, tick)
					t.Logf("sqlstore: what did not verify afterwards: %v", l.events(ofKind(saidUnsynced)))
					return
				}
				l.awaitName(person(2), "B again")
				if method != "PutAppStateMutationMACs" {
					require.Equal(t, "A changed", l.name(person(1)))
				}
				l.change(appstate.Contact(person(1), "A", "A again"))
				l.awaitName(person(1), "A again")
				l.upToDate()
				l.requireSynced()
				l.requireOnePairing()
			})
		}
	}
}

func TestP2P3AppStateThroughKills(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		rng := random(t)
		const people = 20
		var first []appstate.Mutation
		for i := range people {
			first = append(first, appstate.Contact(person(i), "P", "at first"), appstate.Archive(person(i), false), appstate.Mute(person(i), time.Time{}))
		}
		l := synced(t, b, first...)
		changed := 0
		some := func() (mutations []appstate.Mutation) {
			for _, n := range rng.Perm(people)[:1+rng.IntN(5)] { // one patch names nothing twice: sqlstore cannot store that
				changed++
				who := person(n)
				switch rng.IntN(4) {
				case 0:
					mutations = append(mutations, appstate.Archive(who, rng.IntN(2) == 0))
				case 1:
					mutations = append(mutations, appstate.Mute(who, time.Now().Add(time.Hour)))
				default:
					mutations = append(mutations, appstate.Contact(who, "P", fmt.Sprint("change ", changed)))
				}
			}
			return mutations
		}
		for range *roundsFlag {
			if !b.ours && len(l.events(ofKind(saidUnsynced))) > 0 {
				break // it never gets over it
			}
			for end := time.Now().Add(time.Duration(rng.Int64N(int64(400 * time.Millisecond)))); time.Now().Before(end); {
				before := time.Now()
				l.change(some()...) // returns when the client has been given it
				time.Sleep(min(time.Since(before), tick))
			}
			l.kill()
			l.change(some()...)
			l.start()
			if rng.IntN(3) > 0 {
				l.await(ofKind(saidConnected))
			}
		}
		l.await(ofKind(saidConnected))
		require.NoError(t, l.server.WaitIdle(l.ctx))
		var last []appstate.Mutation // what was lost between its MAC and itself comes now
		for i := range people {
			last = append(last, appstate.Contact(person(i), "P", fmt.Sprint("at last ", i)), appstate.Archive(person(i), true))
		}
		l.change(last...)
		arrived := func() bool {
			for i := range people {
				if l.name(person(i)) != fmt.Sprint("at last ", i) || !l.chat(person(i)).Archived {
					return false
				}
			}
			return true
		}
		// What a kill spoilt on sqlstore may show only now: a MAC is missed when the next patch takes it away.
		unsynced := func() int { return len(l.events(ofKind(saidUnsynced))) }
		require.Eventually(t, func() bool { return arrived() || !b.ours && unsynced() > 0 }, patience, tick)
		if b.ours {
			l.upToDate()
			l.requireSynced()
		}
		t.Logf("%d kills, %d changes, %d fetches did not verify", l.started-1, changed, unsynced())
		l.requireOnePairing()
	})
}

func TestP2AppStateThatDoesNotVerifyIsRecoveredByThePhone(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		const name = client.WAPatchCriticalUnblockLow
		l := synced(t, b, appstate.Contact(person(1), "A", "A"))
		l.kill()
		l.change(appstate.Contact(person(1), "A", "A changed"))
		require.NoError(t, l.account.AppState().Corrupt(name))
		l.start()
		l.await(func(e event) bool { return e.Kind == saidUnsynced && e.Text == string(name) })
		recovered := func(e event) bool { return e.Kind == saidSynced && e.Recovery && e.Text == string(name) }
		l.do(command{Do: doRecover, Text: string(name)})
		l.await(recovered)
		require.Equal(t, "A changed", l.name(person(1)))
		l.do(command{Do: doFlush})
		l.restart()
		require.Equal(t, "A changed", l.name(person(1)))
		l.change(appstate.Contact(person(1), "A", "A again"), appstate.Contact(person(2), "B", "B"))
		l.awaitName(person(1), "A again")
		l.awaitName(person(2), "B")
		l.upToDate()
		require.Len(t, l.events(ofKind(saidUnsynced)), 1)
		l.talk(l.server.NewContact(waserver.ContactConfig{}), "hello")
		l.requireOnePairing()
	})
}
