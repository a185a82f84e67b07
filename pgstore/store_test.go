package pgstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var ctx = context.Background()

func TestDeviceSurvivesRestart(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	d.PushName = "name with a NUL \x00 and \xff"
	require.NoError(t, d.Save(ctx))
	require.NoError(t, c.Close())

	require.True(t, scalar[bool](t, dsn, `SELECT clean_at_epoch = epoch FROM whatsmeow.instances`))
	again, err := reopen(t, dsn).GetFirstDevice(ctx)
	require.NoError(t, err)
	require.Zero(t, scalar[int](t, dsn, `SELECT step_through FROM whatsmeow.instances`), "it was left cleanly")
	require.Equal(t, d.ID, again.ID)
	require.Equal(t, d.LID, again.LID)
	require.Equal(t, d.NoiseKey, again.NoiseKey)
	require.Equal(t, d.IdentityKey, again.IdentityKey)
	require.Equal(t, d.SignedPreKey, again.SignedPreKey)
	require.Equal(t, d.RegistrationID, again.RegistrationID)
	require.Equal(t, d.AdvSecretKey, again.AdvSecretKey)
	require.Equal(t, d.Account.Details, again.Account.Details)
	require.Equal(t, d.PushName, again.PushName)
}

func TestNamedInstance(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	fresh, err := c.Instance(ctx, "shop-42")
	require.NoError(t, err)
	require.Nil(t, fresh.ID)
	other, err := c.Instance(ctx, "shop-42")
	require.NoError(t, err)
	pair(t, fresh)
	signaltest.FillPairing(other)
	require.ErrorIs(t, other.Save(ctx), pgstore.ErrDeviceConflict, "two unpaired devices under one id")

	twin, err := c.Instance(ctx, "shop-43")
	require.NoError(t, err)
	signaltest.FillPairing(twin)
	twin.ID = fresh.ID
	require.ErrorIs(t, twin.Save(ctx), pgstore.ErrDeviceConflict, "one JID under two ids")

	require.NoError(t, c.Close())
	c = reopen(t, dsn)
	infos, err := c.Instances(ctx)
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.Equal(t, "shop-42", infos[0].ID)
	again, err := c.Instance(ctx, "shop-42")
	require.NoError(t, err)
	require.Equal(t, fresh.ID, again.ID)
	byJID, err := c.GetDevice(ctx, *fresh.ID)
	require.NoError(t, err)
	require.Equal(t, fresh.NoiseKey, byJID.NoiseKey)
	absent, err := c.GetDevice(ctx, types.JID{User: "1", Server: types.DefaultUserServer})
	require.NoError(t, err)
	require.Nil(t, absent)
}

func TestP1ReadYourWritesAcrossFlushEvictionAndRestart(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }) // evicts whatever it may
	d := pair(t, c.NewDevice())
	session := `{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"a","ChainKey":{"Index":0}}},"x":"` + strings.Repeat("é", 500) + `"}`
	check := func(d *store.Device) {
		got, err := d.Sessions.GetSession(ctx, "1:0")
		require.NoError(t, err)
		require.Equal(t, session, string(got))
		binary, err := d.Sessions.GetSession(ctx, "2:0")
		require.NoError(t, err)
		require.Equal(t, "{\x00\xff}", string(binary))
		many, err := d.Sessions.GetManySessions(ctx, []string{"1:0", "3:0"})
		require.NoError(t, err)
		require.Len(t, many, 2)
		require.Nil(t, many["3:0"])
		trusted, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{1})
		require.NoError(t, err)
		require.False(t, trusted)
		secret, sender, err := d.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, "M")
		require.NoError(t, err)
		require.Equal(t, "first", string(secret))
		require.Equal(t, d.ID.ToNonAD(), sender)
		contact, err := d.Contacts.GetContact(ctx, types.NewJID("9", types.DefaultUserServer))
		require.NoError(t, err)
		require.Equal(t, "push\x00", contact.PushName)
		_, _, err = d.EventBuffer.GetOutgoingEvent(ctx, *d.ID, *d.ID, "absent")
		require.ErrorIs(t, err, sql.ErrNoRows)
	}
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", []byte(session)))
	require.NoError(t, d.Sessions.PutSession(ctx, "2:0", []byte("{\x00\xff}")))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{2}))
	require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, "M", []byte("first")))
	require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, "M", []byte("second")))
	_, _, err := d.Contacts.PutPushName(ctx, types.NewJID("9", types.DefaultUserServer), "push\x00")
	require.NoError(t, err)
	check(d)
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, "M", []byte("third")))
	check(d)
	require.NoError(t, c.Flush(ctx))
	check(d)
	require.NoError(t, c.Close())
	c = reopen(t, dsn)
	again, err := c.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	check(again)
}

func TestP2DecryptionTransactionIsAllOrNothing(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	hash := [32]byte{1}
	write := func(ctx context.Context) {
		require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{2}))
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, hash, []byte{}, time.Now()))
		buffered, err := d.EventBuffer.GetBufferedEvent(ctx, hash)
		require.NoError(t, err)
		require.NotNil(t, buffered.Plaintext, "an empty plaintext is not a cleared one")
	}
	absent := func() {
		buffered, err := d.EventBuffer.GetBufferedEvent(ctx, hash)
		require.NoError(t, err)
		require.Nil(t, buffered)
	}
	failed := errors.New("failed")
	require.ErrorIs(t, d.EventBuffer.DoDecryptionTxn(ctx, func(inner context.Context) error {
		write(inner)
		absent() // another context sees nothing yet
		return d.EventBuffer.DoDecryptionTxn(inner, func(context.Context) error { return failed })
	}), failed)
	absent()
	require.Panics(t, func() {
		_ = d.EventBuffer.DoDecryptionTxn(ctx, func(inner context.Context) error {
			write(inner)
			panic("handler")
		})
	})
	absent()
	require.NoError(t, d.EventBuffer.DoDecryptionTxn(ctx, func(inner context.Context) error {
		write(inner)
		return nil
	}))
	buffered, err := d.EventBuffer.GetBufferedEvent(ctx, hash)
	require.NoError(t, err)
	require.NotNil(t, buffered)
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, d.EventBuffer.ClearBufferedEventPlaintext(ctx, hash))
	require.NoError(t, c.Flush(ctx))
	buffered, err = d.EventBuffer.GetBufferedEvent(ctx, hash)
	require.NoError(t, err)
	require.Nil(t, buffered.Plaintext)
	require.Error(t, d.EventBuffer.PutBufferedEvent(ctx, hash, nil, time.Now()))
}

func TestP2AppStatePatchIsOneGroup(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	index := random.Bytes(32)
	require.NoError(t, d.AppState.PutAppStateVersion(ctx, "regular", 1, [128]byte{1}))
	version, _, err := d.AppState.GetAppStateVersion(ctx, "regular")
	require.NoError(t, err)
	require.EqualValues(t, 1, version)
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'app_state_version'`), "an open group is not durable")
	require.NoError(t, d.AppState.DeleteAppStateMutationMACs(ctx, "regular", [][]byte{random.Bytes(32)}))
	mac := random.Bytes(32)
	require.NoError(t, d.AppState.PutAppStateMutationMACs(ctx, "regular", 1, []store.AppStateMutationMAC{{IndexMAC: index, ValueMAC: random.Bytes(32)}, {IndexMAC: index, ValueMAC: mac}}))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'app_state_version'`))
	got, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", index)
	require.NoError(t, err)
	require.Equal(t, mac, got)
	require.NoError(t, d.AppState.DeleteAppStateVersion(ctx, "regular"))
	got, err = d.AppState.GetAppStateMutationMAC(ctx, "regular", index)
	require.NoError(t, err)
	require.Nil(t, got)
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'app_state_mac'`))
}

func TestP5PreKeyIDsNeverComeBack(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	made, err := d.PreKeys.GetOrGenPreKeys(ctx, 5)
	require.NoError(t, err)
	require.EqualValues(t, 5, made[4].KeyID)
	require.Equal(t, 5, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'pre_key'`), "durable when it returns")
	same, err := d.PreKeys.GetOrGenPreKeys(ctx, 3)
	require.NoError(t, err)
	require.Equal(t, made[:3], same)
	require.NoError(t, d.PreKeys.MarkPreKeysAsUploaded(ctx, 5))
	count, err := d.PreKeys.UploadedPreKeyCount(ctx)
	require.NoError(t, err)
	require.Equal(t, 5, count)
	for id := range uint32(5) {
		require.NoError(t, d.PreKeys.RemovePreKey(ctx, id+1))
	}
	require.NoError(t, c.Close())
	d, err = reopen(t, dsn).GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	next, err := d.PreKeys.GenOnePreKey(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 6, next.KeyID)
	gone, err := d.PreKeys.GetPreKey(ctx, 5)
	require.NoError(t, err)
	require.Nil(t, gone)
}

func TestP6TheLoserOfAnInstanceStops(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	a, err := pgstore.New(ctx, dsn, nil)
	require.NoError(t, err)
	d := pair(t, a.NewDevice())
	b := reopen(t, dsn)
	looked, err := b.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, looked, 1)
	require.NoError(t, d.PreKeys.RemovePreKey(ctx, 1))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, a.Flush(ctx), "looking is not taking")

	taken, err := b.GetDevice(ctx, *d.ID)
	require.NoError(t, err)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{9}))
	require.ErrorIs(t, a.Flush(ctx), pgstore.ErrOwnershipLost)
	err = d.Identities.PutIdentity(ctx, "1:0", [32]byte{8})
	require.ErrorIs(t, err, pgstore.ErrOwnershipLost)
	require.ErrorIs(t, err, context.Canceled, "so that the client acknowledges nothing")
	trusted, err := taken.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{1})
	require.NoError(t, err)
	require.True(t, trusted)
	var unsaved *batcher.UnsavedError
	require.ErrorAs(t, a.Close(), &unsaved)
	require.Len(t, unsaved.Pending, 1)
}

func TestP9DeletedStaysDeleted(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d, err := c.Instance(ctx, "life")
	require.NoError(t, err)
	pair(t, d)
	old := *d
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, d.Delete(ctx))
	require.ErrorIs(t, old.Identities.PutIdentity(ctx, "2:0", [32]byte{1}), pgstore.ErrDeviceDeleted)
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys`))

	next, err := c.Instance(ctx, "life")
	require.NoError(t, err)
	require.Nil(t, next.ID)
	pair(t, next)
	require.ErrorIs(t, old.Identities.PutIdentity(ctx, "2:0", [32]byte{1}), pgstore.ErrDeviceDeleted)
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'identity'`))
}

func TestLIDMapIsOneToOne(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	pn, lid := func(u string) types.JID { return types.NewJID(u, types.DefaultUserServer) }, func(u string) types.JID { return types.NewJID(u, types.HiddenUserServer) }
	none, err := c.LIDMap.GetLIDForPN(ctx, pn("1"))
	require.NoError(t, err)
	require.True(t, none.IsEmpty())
	require.NoError(t, c.LIDMap.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: lid("a"), PN: pn("1")}, {LID: lid("b"), PN: pn("2")}, {}}))
	require.NoError(t, c.LIDMap.PutLIDMapping(ctx, lid("a"), pn("2")))
	for _, m := range []*pgstore.LIDMap{c.LIDMap, reopen(t, dsn).LIDMap} {
		got, err := m.GetManyLIDsForPNs(ctx, []types.JID{pn("1"), pn("2"), lid("a")})
		require.NoError(t, err)
		require.Equal(t, map[types.JID]types.JID{pn("2"): lid("a")}, got)
		back, err := m.GetPNForLID(ctx, lid("b"))
		require.NoError(t, err)
		require.True(t, back.IsEmpty())
	}
	require.Error(t, c.LIDMap.PutLIDMapping(ctx, pn("1"), pn("1")))
}

func TestMigratePNToLID(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	pn, lid := types.NewJID("111", types.DefaultUserServer), types.NewJID("222", types.HiddenUserServer)
	require.NoError(t, d.Sessions.PutSession(ctx, "111:3", []byte(`{"a":1}`)))
	require.NoError(t, d.Sessions.PutSession(ctx, "1111:3", []byte(`{"b":1}`)))
	require.NoError(t, d.SenderKeys.PutSenderKey(ctx, "g@g.us", "111:3", []byte(`{"k":1}`)))
	require.NoError(t, d.Sessions.MigratePNToLID(ctx, pn, lid))
	has, err := d.Sessions.HasSession(ctx, "111:3")
	require.NoError(t, err)
	require.False(t, has)
	moved, err := d.Sessions.GetSession(ctx, lid.SignalAddressUser()+":3")
	require.NoError(t, err)
	require.JSONEq(t, `{"a":1}`, string(moved))
	key, err := d.SenderKeys.GetSenderKey(ctx, "g@g.us", lid.SignalAddressUser()+":3")
	require.NoError(t, err)
	require.JSONEq(t, `{"k":1}`, string(key))
	kept, err := d.Sessions.HasSession(ctx, "1111:3")
	require.NoError(t, err)
	require.True(t, kept)
}

func TestSchemaNewerThanTheLibrary(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	require.NoError(t, c.Close())
	scalar[int](t, dsn, `INSERT INTO whatsmeow.schema_info VALUES (99, 1) RETURNING 1`)
	require.NoError(t, reopen(t, dsn).Close())
	scalar[int](t, dsn, `UPDATE whatsmeow.schema_info SET usable_from = 99 WHERE version = 99 RETURNING 1`)
	_, err := pgstore.New(ctx, dsn, nil)
	require.ErrorIs(t, err, pgstore.ErrSchemaTooNew)
}

func TestClosedStoresCancel(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d, used := pair(t, c.NewDevice()), pair(t, c.NewDevice())
	_, err := used.Sessions.GetSession(ctx, "1:0") // takes its instance
	require.NoError(t, err)
	require.NoError(t, c.Close())
	for _, d := range []*store.Device{d, used} {
		_, err = d.Sessions.GetSession(ctx, "1:0")
		require.ErrorIs(t, err, pgstore.ErrClosed)
		require.ErrorIs(t, err, context.Canceled)
	}
	_, err = c.GetFirstDevice(ctx)
	require.ErrorIs(t, err, pgstore.ErrClosed)
}

func TestP10InvalidConfigNamesEveryFault(t *testing.T) {
	t.Parallel()
	for _, owner := range []string{"nul\x00", "broken\xff"} {
		_, err := pgstore.NewWithConfig(ctx, pgstore.Config{Schema: "Bad Name", Owner: owner, Sends: 9, SynchronousTypes: []string{"nonsense"}, BatchSize: -1})
		require.ErrorIs(t, err, pgstore.ErrInvalidInput)
		for _, field := range []string{"DSN", "Schema", "Owner", "Sends", "nonsense", "BatchSize"} {
			require.ErrorContains(t, err, field)
		}
	}
}

// A method that only the embedded NoopStore has would answer "not supported".
func TestEveryStoreMethodIsOurOwn(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	stores := reflect.TypeFor[store.AllSessionSpecificStores]()
	ours := reflect.ValueOf(d.Sessions)
	for i := range stores.NumMethod() {
		method := stores.Method(i)
		args := []reflect.Value{reflect.ValueOf(ctx)}
		for j := 1; j < method.Type.NumIn() && (!method.Type.IsVariadic() || j < method.Type.NumIn()-1); j++ {
			arg := reflect.New(method.Type.In(j)).Elem()
			if arg.Kind() == reflect.Func {
				arg = reflect.MakeFunc(arg.Type(), func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.Zero(reflect.TypeFor[error]())} })
			}
			args = append(args, arg)
		}
		for _, result := range ours.MethodByName(method.Name).Call(args) {
			if err, ok := result.Interface().(error); ok {
				require.NotErrorIs(t, err, pgstore.ErrUnsupported, method.Name)
			}
		}
	}
}

func TestViewsShowCounters(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", []byte(`{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"a","ChainKey":{"Key":"secret","Index":7}},"ReceiverChains":null}}`)))
	require.NoError(t, d.Sessions.PutSession(ctx, "2:0", []byte("{not json}")))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 7, scalar[int](t, dsn, `SELECT sending_counter FROM whatsmeow.session_counters WHERE address = '1:0'`))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.session_counters`))
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	c, _ := open(t)
	d := pair(t, c.NewDevice())
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				address := fmt.Sprintf("%d:%d", g, i%5)
				value := []byte(fmt.Sprintf(`{"n":%d}`, i))
				if err := d.Sessions.PutSession(ctx, address, value); err != nil {
					t.Error(err)
				}
				got, err := d.Sessions.GetSession(ctx, address)
				if err != nil || string(got) != string(value) {
					t.Errorf("%s: %s, %v", address, got, err)
				}
			}
		})
	}
	wg.Wait()
}
