package pgstore_test

import (
	"bytes"
	"context"
	"fmt"
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

func sessionAt(counter int) []byte { return recordOf(300, counter) }

// returns says whether fn returns while the database hangs. If it waits, it has to return when the database is back.
func returns(t *testing.T, w *watch, fn func() error) bool {
	t.Helper()
	release := w.hang()
	defer release()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		require.NoError(t, err)
		return true
	case <-time.After(300 * time.Millisecond):
		release()
		require.NoError(t, <-done)
		return false
	}
}

func TestP5WhatWaitsUntilItIsDurable(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	for _, sends := range []pgstore.SendMode{pgstore.Reserved, pgstore.Durable, pgstore.WriteBehind} {
		c, w := openWatched(t, dsn, func(cfg *pgstore.Config) {
			cfg.Sends, cfg.OutageWait, cfg.SynchronousTypes = sends, time.Minute, []string{"chat_settings"}
		})
		d := pair(t, c.NewDevice())
		own, ownPN := d.LID.SignalAddress().String(), d.ID.SignalAddress().String()
		require.NoError(t, d.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": sessionAt(5), "2:0": sessionAt(5), "3:0": sessionAt(5)}))
		require.NoError(t, c.Flush(ctx))
		key := func(id, iteration int) []byte {
			return fmt.Appendf(nil, `{"SenderKeyStates":[{"Keys":null,"KeyID":%d,"SenderChainKey":{"Iteration":%d,"ChainKey":"eA=="},"SigningKeyPrivate":"cHJpdmF0ZQ=="}]}`, id, iteration)
		}
		durable, fresh := sends == pgstore.Durable, sends != pgstore.WriteBehind
		for _, step := range []struct {
			what  string
			waits bool
			do    func() error
		}{
			{"a send", durable, func() error { return d.Sessions.PutManySessions(ctx, map[string][]byte{"1:0": sessionAt(6)}) }},
			{"a retry answer", durable, func() error { return d.Sessions.PutSession(ctx, "2:0", sessionAt(6)) }},
			{"a decryption", false, func() error {
				return d.Sessions.PutSession(ctx, "3:0", bytes.Replace(sessionAt(5), []byte(`"ReceiverChains":null`), []byte(`"ReceiverChains":[]`), 1))
			}},
			{"a decryption in a transaction", false, func() error {
				return d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error { return d.Sessions.PutSession(ctx, "3:0", sessionAt(9)) })
			}},
			{"our sender key", fresh, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", own, key(1, 1)) }},
			{"a message under it", durable, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", own, key(1, 2)) }},
			{"our sender key under the phone number", fresh, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", ownPN, key(1, 1)) }},
			{"a new sender key of somebody else", true, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", "1:0", key(7, 1)) }},
			{"a message under it", false, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", "1:0", key(7, 2)) }},
			{"the same with that again", false, func() error { return d.SenderKeys.PutSenderKey(ctx, "g", "1:0", key(7, 2)) }},
			{"the NCT salt", true, func() error { return d.NCTSalt.PutNCTSalt(ctx, []byte("salt")) }},
			{"an app state key", true, func() error {
				return d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte{1}, Fingerprint: []byte{}, Timestamp: 1})
			}},
			{"pre-keys", true, func() error { _, err := d.PreKeys.GetOrGenPreKeys(ctx, 3); return err }},
			{"one pre-key", true, func() error { _, err := d.PreKeys.GenOnePreKey(ctx); return err }},
			{"the device", true, func() error { d.PushName += "x"; return d.Save(ctx) }},
			{"the device without a change", false, func() error { return d.Save(ctx) }},
			{"a LID", true, func() error {
				return c.LIDMap.PutLIDMapping(ctx, types.NewJID(signaltest.Number(), types.HiddenUserServer), types.NewJID(signaltest.Number(), types.DefaultUserServer))
			}},
			{"what the user asked for", true, func() error { return d.ChatSettings.PutPinned(ctx, *d.ID, true) }},
			{"what nobody waits for", false, func() error { _, _, err := d.Contacts.PutPushName(ctx, *d.ID, "name"); return err }},
			{"the deletion of the device", true, func() error { return d.Delete(ctx) }},
		} {
			require.Equal(t, step.waits, !returns(t, w, step.do), "sends %d: %s", sends, step.what)
			require.NoError(t, c.Flush(ctx))
		}
	}
}

func TestP5DurableAcksWaitForAllThatCameBefore(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	var logged lockedBuffer
	c, w := openWatched(t, dsn, func(cfg *pgstore.Config) {
		cfg.DurableAcks, cfg.Logger = true, textLogger(&logged)
	})
	d := pair(t, c.NewDevice())
	handled := func() error {
		hash := [32]byte(bytes.Repeat([]byte{byte(time.Now().UnixNano())}, 32))
		err := d.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
			return d.EventBuffer.PutBufferedEvent(ctx, hash, []byte("p"), time.Now())
		})
		if err != nil {
			return err
		}
		return d.EventBuffer.ClearBufferedEventPlaintext(ctx, hash)
	}
	require.False(t, returns(t, w, handled))
	require.NotContains(t, logged.String(), "EnableDecryptedEventBuffer")
	// A decryption outside of a transaction shows that the client does not use the event buffer.
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(5)))
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", bytes.Replace(sessionAt(5), []byte(`null`), []byte(`[]`), 1)))
	require.Contains(t, logged.String(), "EnableDecryptedEventBuffer")
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestP7WhatIsSentOnlyOnceGoesOnFromMemoryAfterAWhile(t *testing.T) {
	t.Parallel()
	c, w := openWatched(t, pgtest.Open(t), func(cfg *pgstore.Config) { cfg.OutageWait = 50 * time.Millisecond })
	d := pair(t, c.NewDevice())
	pn, lid := types.NewJID("1", types.DefaultUserServer), types.NewJID("9", types.HiddenUserServer)
	release := w.hang()
	defer release()
	require.NoError(t, d.NCTSalt.PutNCTSalt(ctx, []byte("salt")))
	require.NoError(t, c.LIDMap.PutLIDMapping(ctx, lid, pn))
	salt, err := d.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.Equal(t, "salt", string(salt))
	got, err := c.LIDMap.GetLIDForPN(ctx, pn)
	require.NoError(t, err)
	require.Equal(t, lid, got)
	release()
}

func TestP7ACancelledContextLosesNoAdvance(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	session := sessionAt(6)
	require.ErrorIs(t, d.Sessions.PutManySessions(cancelled, map[string][]byte{"1:0": session}), context.Canceled)
	got, err := d.Sessions.GetSession(cancelled, "1:0")
	require.NoError(t, err)
	require.Equal(t, string(session), string(got))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 6, scalar[int](t, dsn, `SELECT sending_counter FROM whatsmeow.session_counters WHERE address = '1:0'`))
}

func TestP6LookingTakesNothingAndUsingSignalStateTakes(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, err := pgstore.New(ctx, dsn, nil)
	require.NoError(t, err)
	d := pair(t, a.NewDevice())
	_, _, err = d.Contacts.PutPushName(ctx, *d.ID, "Ada")
	require.NoError(t, err)
	require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, "A", []byte("secret")))
	require.NoError(t, d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1}, store.AppStateSyncKey{Data: []byte{1}, Fingerprint: []byte{}, Timestamp: 1}))
	require.NoError(t, d.AppState.PutAppStateVersion(ctx, "regular", 1, [128]byte{}))
	require.NoError(t, d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, nil))
	require.NoError(t, a.Flush(ctx))
	epoch := func() int64 { return scalar[int64](t, dsn, `SELECT epoch FROM whatsmeow.instances`) }
	before := epoch()

	b := reopen(t, dsn)
	_, err = b.Instances(ctx)
	require.NoError(t, err)
	all, err := b.GetAllDevices(ctx)
	require.NoError(t, err)
	looked := all[0]
	contact, err := looked.Contacts.GetContact(ctx, *d.ID)
	require.NoError(t, err)
	require.Equal(t, "Ada", contact.PushName)
	contacts, err := looked.Contacts.GetAllContacts(ctx)
	require.NoError(t, err)
	require.Len(t, contacts, 1)
	secret, _, err := looked.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, "A")
	require.NoError(t, err)
	require.Equal(t, "secret", string(secret))
	keys, err := looked.AppStateKeys.GetAllAppStateSyncKeys(ctx)
	require.NoError(t, err)
	require.Len(t, keys, 1)
	require.Equal(t, before, epoch(), "looking is not taking")
	// What was only looked at must not be trusted later.
	_, _, err = d.Contacts.PutPushName(ctx, *d.ID, "Ada L.")
	require.NoError(t, err)
	require.NoError(t, a.Flush(ctx))

	_, err = looked.Sessions.HasSession(ctx, "1:0")
	require.NoError(t, err)
	require.Greater(t, epoch(), before, "the first use of Signal state takes")
	contact, err = looked.Contacts.GetContact(ctx, *d.ID)
	require.NoError(t, err)
	require.Equal(t, "Ada L.", contact.PushName)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.ErrorIs(t, a.Flush(ctx), pgstore.ErrOwnershipLost)
	d.PushName = "x"
	require.ErrorIs(t, d.Save(ctx), pgstore.ErrOwnershipLost, "a Save does not take it back")
	require.ErrorIs(t, d.Delete(ctx), pgstore.ErrOwnershipLost)
	require.NoError(t, b.Flush(ctx))

	again, err := a.GetDevice(ctx, *d.ID)
	require.NoError(t, err, "but GetDevice does")
	require.NoError(t, again.Identities.PutIdentity(ctx, "1:0", [32]byte{2}))
	require.NoError(t, a.Flush(ctx), "what its first life lost is no longer in the way")
	require.NoError(t, b.Close(), "it had nothing to save")
	require.Error(t, a.Close(), "what its first life could not save is told")
}

func TestDevicesOfOneInstanceShareOneCache(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	other, err := c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	ok, err := other.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{2})
	require.NoError(t, err)
	require.False(t, ok)
	require.Equal(t, 1, c.Stats().Cache.Instances)
}

func TestRowsThatCannotBeReadAreSetAsideAndAnswerAbsent(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	for _, address := range []string{"1:0", "2:0", "3:0", "4:0"} {
		require.NoError(t, d.Sessions.PutSession(ctx, address, sessionAt(1)))
		require.NoError(t, d.Identities.PutIdentity(ctx, address, [32]byte{1}))
	}
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn,
		`UPDATE whatsmeow.auth_keys SET data = '{}' WHERE key_type = 'session' AND key_id = '1:0'`,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_build_object('record', left(data->>'record', 100)) WHERE key_type = 'session' AND key_id = '2:0'`,
		`UPDATE whatsmeow.auth_keys SET data = '{"record": "{}"}' WHERE key_type = 'session' AND key_id = '3:0'`,
		`UPDATE whatsmeow.auth_keys SET data = '{"value": 7}' WHERE key_type = 'identity' AND key_id = '4:0'`))
	c = reopen(t, dsn)
	d, err := c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	for address, readable := range map[string]bool{"1:0": false, "2:0": false, "3:0": false, "4:0": true} {
		has, err := d.Sessions.HasSession(ctx, address)
		require.NoError(t, err)
		require.Equal(t, readable, has, address)
		many, err := d.Sessions.GetManySessions(ctx, []string{address})
		require.NoError(t, err)
		require.Equal(t, readable, many[address] != nil, "on the list of those that need a bundle")
	}
	trusted, err := d.Identities.IsTrustedIdentity(ctx, "4:0", [32]byte{9})
	require.NoError(t, err)
	require.True(t, trusted, "as if there were none")
	require.Eventually(t, func() bool { return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`) == 4 }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, c.Flush(ctx))
	require.Eventually(t, func() bool {
		return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'session'`) == 1
	}, 10*time.Second, 10*time.Millisecond)
}

func TestHousekeepingDeletesWhatIsOldAndNothingElse(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	for i := range byte(4) {
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{i}, []byte("p"), time.Now()))
		require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, *d.ID, fmt.Sprint(i), "wa", []byte("p")))
	}
	require.NoError(t, c.Close())
	age := func(keyType string, age time.Duration) string {
		return fmt.Sprintf(`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{insert_ms}', to_jsonb(%d)) WHERE ctid IN (
			SELECT ctid FROM whatsmeow.auth_keys WHERE key_type = '%s' ORDER BY key_id LIMIT 2)`, time.Now().Add(-age).UnixMilli(), keyType)
	}
	require.NoError(t, execSQL(t, dsn, age("buffered_event", 14*24*time.Hour+time.Minute), age("outgoing_event", 7*24*time.Hour+time.Minute)))
	c = reopen(t, dsn)
	d, err := c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, d.EventBuffer.DeleteOldBufferedHashes(ctx))
	require.NoError(t, d.EventBuffer.DeleteOldOutgoingEvents(ctx))
	left := func(keyType string) int {
		require.NoError(t, c.Flush(ctx))
		return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = $1`, keyType)
	}
	require.Equal(t, 2, left("buffered_event"))
	require.Eventually(t, func() bool { return left("outgoing_event") == 2 }, 10*time.Second, 10*time.Millisecond)
}

func TestLIDPairsFromManyProcessesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	containers := []*pgstore.Container{c, reopen(t, dsn), reopen(t, dsn)}
	var wg sync.WaitGroup
	for i, c := range containers {
		for round := range 10 {
			wg.Go(func() {
				var pairs []store.LIDMapping
				for n := range 50 {
					pairs = append(pairs, store.LIDMapping{
						PN:  types.NewJID(fmt.Sprint(n), types.DefaultUserServer),
						LID: types.NewJID(fmt.Sprint((n+i+round)%50), types.HiddenUserServer),
					})
				}
				if err := c.LIDMap.PutManyLIDMappings(ctx, pairs); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	require.LessOrEqual(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.lid_map`), 50)
}

func TestPreKeyIDsStayBelowTheHighest(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	_, err := d.PreKeys.GetOrGenPreKeys(ctx, 2)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	const last = 1<<24 - 2
	require.NoError(t, execSQL(t, dsn, fmt.Sprintf(`UPDATE whatsmeow.auth_keys SET data = '{"next_pre_key_id": %d}' WHERE key_type = 'creds' AND key_id = 'pre_keys'`, last)))
	d, err = reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	made, err := d.PreKeys.GetOrGenPreKeys(ctx, 5)
	require.NoError(t, err)
	ids := []uint32{}
	for _, k := range made {
		ids = append(ids, k.KeyID)
	}
	require.Equal(t, []uint32{1, 2, last, 3, 4}, ids, "2^24-1 is never given out, and 1 and 2 are in use")
	require.NoError(t, d.PreKeys.MarkPreKeysAsUploaded(ctx, 4))
	uploaded, err := d.PreKeys.UploadedPreKeyCount(ctx)
	require.NoError(t, err)
	require.Equal(t, 5, uploaded, "those that were handed out, not those up to 4")
}

// What a patch has put before one of its calls fails is gone: the client gets that patch again, and the next one is not made of two halves.
func TestP2OfAnAppStatePatchThatFailsNothingIsLeft(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	mac := bytes.Repeat([]byte{1}, 32)
	macs := []store.AppStateMutationMAC{{IndexMAC: mac, ValueMAC: mac}}
	require.NoError(t, d.AppState.PutAppStateVersion(ctx, "regular", 1, [128]byte{}))
	require.NoError(t, d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, macs))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for name, fail := range map[string]func() error{
		"a MAC that is refused": func() error {
			require.NoError(t, d.AppState.DeleteAppStateMutationMACs(ctx, "regular", [][]byte{mac}))
			return d.AppState.PutAppStateMutationMACs(ctx, "regular", 2, append(macs, store.AppStateMutationMAC{IndexMAC: mac}))
		},
		"MACs that cannot be looked for": func() error {
			return d.AppState.DeleteAppStateMutationMACs(cancelled, "regular", [][]byte{mac})
		},
	} {
		require.NoError(t, c.Flush(ctx))
		require.NoError(t, d.AppState.PutAppStateVersion(ctx, "regular", 2, [128]byte{}))
		require.Error(t, fail(), name)
		version, _, err := d.AppState.GetAppStateVersion(ctx, "regular")
		require.NoError(t, err)
		require.EqualValues(t, 1, version, name)
		got, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", mac)
		require.NoError(t, err)
		require.Equal(t, mac, got, name)
		require.NoError(t, d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, nil))
		require.NoError(t, c.Flush(ctx))
		require.Equal(t, 1, scalar[int](t, dsn, `SELECT (data->'version')::int FROM whatsmeow.auth_keys WHERE key_type = 'app_state_version'`), name)
	}
}

// A device is stored with the texts of its JIDs: one whose text is another JID's, or nobody's, would not be found again.
func TestP10ADeviceWhoseJIDsWouldComeBackAsOthersIsRefused(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	for _, user := range []string{"1.x", "1:x", "1.2", "1:2", "a@b", "1.2.3"} {
		for field, spoil := range map[string]func(*store.Device){
			"device: ID":  func(d *store.Device) { d.ID.User = user },
			"device: LID": func(d *store.Device) { d.LID.User = user },
		} {
			d := c.NewDevice()
			signaltest.FillPairing(d)
			spoil(d)
			err := d.Save(ctx)
			require.ErrorIs(t, err, pgstore.ErrInvalidInput, user)
			require.ErrorContains(t, err, field)
		}
	}
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances`))
	d := pair(t, c.NewDevice())
	was := d.LID
	d.LID.User = "1.x"
	require.ErrorIs(t, d.Save(ctx), pgstore.ErrInvalidInput, "also when it is saved again")
	again, err := reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.Equal(t, was, again.LID)
}
