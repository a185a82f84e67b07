package appstate_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	wasync "go.mau.fi/whatsmeow/appstate"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/proto/waSyncAction"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/clienttest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// account is the app state of an account and the media that it is handed out with.
type account struct {
	*testing.T
	*appstate.State
	files *media.Store
}

func newAccount(t *testing.T, cfg appstate.Config) *account {
	t.Helper()
	files := media.New()
	cfg.Media = files
	return &account{T: t, State: appstate.New(cfg), files: files}
}

func (a *account) apply(mutations ...appstate.Mutation) {
	a.Helper()
	_, err := a.Apply(mutations...)
	require.NoError(a, err)
}

// companion is a client on a store of its own.
type companion struct {
	*whatsmeow.Client
	*whatsmeow.DangerousInternalClient
	device *store.Device
	seen   struct {
		sync.Mutex
		errors []error
	}
}

func (a *account) companion() *companion {
	a.Helper()
	c := &companion{device: storetest.New(a, storetest.SqlstoreSQLite()).Device}
	c.Client = clienttest.Connect(a, c.device, func(iq *waBinary.Node) waBinary.Node {
		if iq.Attrs["xmlns"] == media.Namespace {
			return a.files.Handle(iq)
		}
		answer, _ := a.Handle(iq)
		return answer
	}, a.files)
	c.DangerousInternalClient = c.DangerousInternals() //nolint:staticcheck // deprecated to warn off bots; this is what it is for
	c.AddEventHandler(func(event any) {
		if e, ok := event.(*events.AppStateSyncError); ok {
			c.seen.Lock()
			defer c.seen.Unlock()
			c.seen.errors = append(c.seen.errors, e.Error)
		}
	})
	return c
}

// share hands the companion keys, after which it fetches all collections.
func (c *companion) share(m *waE2E.Message) {
	c.HandleAppStateSyncKeyShare(context.Background(), m.GetProtocolMessage().GetAppStateSyncKeyShare())
}

func (c *companion) fetch(t *testing.T, names ...wasync.WAPatchName) {
	t.Helper()
	for _, name := range names {
		require.NoError(t, c.Client.FetchAppState(context.Background(), name, false, false))
	}
}

// same requires that the companion is where the account is.
func (a *account) same(c *companion) {
	a.Helper()
	for _, name := range wasync.AllPatchNames {
		version, _, err := c.device.AppState.GetAppStateVersion(context.Background(), string(name))
		require.NoError(a, err)
		require.Equal(a, a.Version(name), version, name)
	}
	require.Empty(a, a.Problems())
	c.seen.Lock()
	defer c.seen.Unlock()
	require.Empty(a, c.seen.errors)
}

func user(n int) types.JID {
	return types.NewJID(fmt.Sprintf("4915200%06d", n), types.DefaultUserServer)
}

func (c *companion) name(t *testing.T, jid types.JID) string {
	t.Helper()
	info, err := c.device.Contacts.GetContact(context.Background(), jid)
	require.NoError(t, err)
	return info.FirstName + "/" + info.FullName
}

func (c *companion) settings(t *testing.T, jid types.JID) types.LocalChatSettings {
	t.Helper()
	settings, err := c.device.ChatSettings.GetChatSettings(context.Background(), jid)
	require.NoError(t, err)
	return settings
}

func TestFirstSync(t *testing.T) {
	t.Parallel()
	for _, snapshot := range []bool{true, false} {
		t.Run(fmt.Sprint("snapshot ", snapshot), func(t *testing.T) {
			t.Parallel()
			a := newAccount(t, appstate.Config{})
			until := time.Now().Add(time.Hour).Truncate(time.Second)
			a.apply(
				appstate.Contact(user(1), "Ada", "Ada L."), appstate.PushName("me"), appstate.Mute(user(1), until),
				appstate.Mute(user(2), time.Unix(-1, 0)), appstate.Archive(user(2), true), appstate.Pin(user(1), true), appstate.NCTSalt([]byte("salt")),
			)
			if snapshot {
				require.NoError(t, a.TakeSnapshot())
			}
			a.apply(appstate.Contact(user(2), "Bob", "Bob B."), appstate.Contact(user(1), "Ada", "Ada Lovelace"))
			c := a.companion()
			c.share(a.KeyShare())
			a.same(c)

			// In a full sync the client gives the store both names in one call, and of duplicates the first wins.
			require.Equal(t, "Ada/Ada L.", c.name(t, user(1)))
			require.Equal(t, "Bob/Bob B.", c.name(t, user(2)))
			require.Equal(t, "me", c.device.PushName)
			require.WithinDuration(t, until, c.settings(t, user(1)).MutedUntil, 0)
			require.Equal(t, store.MutedForever, c.settings(t, user(2)).MutedUntil)
			require.True(t, c.settings(t, user(1)).Pinned)
			require.True(t, c.settings(t, user(2)).Archived)
			salt, err := c.device.NCTSalt.GetNCTSalt(context.Background())
			require.NoError(t, err)
			require.Equal(t, "salt", string(salt))
		})
	}
}

func TestPagesAndExternalMutations(t *testing.T) {
	t.Parallel()
	a := newAccount(t, appstate.Config{PageSize: 2, ExternalAbove: 3})
	c := a.companion()
	a.apply(appstate.Contact(user(0), "0", "first"))
	c.share(a.KeyShare())
	a.same(c)
	for i := range 7 {
		var many []appstate.Mutation
		for j := range i {
			many = append(many, appstate.Contact(user(j), fmt.Sprint(i), "later"))
		}
		if i == 6 {
			many = append(many, appstate.Remove(many[5]))
		}
		a.apply(many...)
	}
	require.EqualValues(t, 7, a.Version(wasync.WAPatchCriticalUnblockLow)) // the first one was empty
	require.Equal(t, 3, a.files.Len())
	c.fetch(t, wasync.WAPatchCriticalUnblockLow)
	a.same(c)
	require.Equal(t, "6/later", c.name(t, user(4)))
	require.Nil(t, a.Value(wasync.WAPatchCriticalUnblockLow, wasync.IndexContact, user(5).String()))

	require.NoError(t, c.Client.FetchAppState(context.Background(), wasync.WAPatchCriticalUnblockLow, true, false))
	a.same(c)
}

func TestClientUploads(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newAccount(t, appstate.Config{})
	one, two := a.companion(), a.companion()
	a.apply(appstate.Mute(user(1), time.Time{}))
	one.share(a.KeyShare())
	two.share(a.KeyShare())
	require.NoError(t, one.Client.SendAppState(ctx, wasync.BuildMute(user(1), true, 0)))
	require.NoError(t, one.Client.SendAppState(ctx, wasync.BuildArchive(user(1), true, time.Time{}, nil)))
	require.True(t, a.Value(wasync.WAPatchRegularHigh, wasync.IndexMute, user(1).String()).GetMuteAction().GetMuted())
	require.True(t, a.Value(wasync.WAPatchRegularLow, wasync.IndexArchive, user(1).String()).GetArchiveChatAction().GetArchived())
	a.same(one)
	require.Equal(t, store.MutedForever, one.settings(t, user(1)).MutedUntil)
	require.False(t, two.settings(t, user(1)).Archived)

	// The second one is behind, is told so with the patches that it lacks, and tries again.
	require.NoError(t, two.Client.SendAppState(ctx, wasync.BuildMute(user(1), false, 0)))
	require.NoError(t, two.Client.SendAppState(ctx, wasync.BuildPin(user(1), true)))
	a.same(two)
	require.True(t, two.settings(t, user(1)).Archived)
	require.False(t, a.Value(wasync.WAPatchRegularHigh, wasync.IndexMute, user(1).String()).GetMuteAction().GetMuted())
	one.fetch(t, wasync.AllPatchNames[:]...)
	a.same(one)
	require.True(t, one.settings(t, user(1)).Pinned)
}

func TestNotification(t *testing.T) {
	t.Parallel()
	a := newAccount(t, appstate.Config{})
	a.apply(appstate.PushName("old"))
	c := a.companion()
	c.share(a.KeyShare())
	changed, err := a.Apply(appstate.PushName("new"), appstate.Pin(user(1), true), appstate.Archive(user(1), true))
	require.NoError(t, err)
	require.Equal(t, []wasync.WAPatchName{wasync.WAPatchCriticalBlock, wasync.WAPatchRegularLow}, changed)
	encoded, err := waBinary.Marshal(a.Notification("1", changed...))
	require.NoError(t, err)
	node, err := waBinary.Unmarshal(encoded[1:])
	require.NoError(t, err)
	require.Equal(t, "server_sync", node.Attrs["type"])
	c.HandleAppStateNotification(context.Background(), node)
	require.Equal(t, "new", c.device.PushName)
	require.True(t, c.settings(t, user(1)).Pinned)
	require.EqualValues(t, 2, a.Version(wasync.WAPatchCriticalBlock))
}

func TestKeys(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newAccount(t, appstate.Config{})
	a.apply(appstate.Pin(user(1), true), appstate.Pin(user(2), true), appstate.Pin(user(3), true))
	c := a.companion()
	c.share(a.KeyShare())
	a.same(c)

	id := a.AddKey()
	a.apply(appstate.Pin(user(1), false), appstate.Remove(appstate.Pin(user(3), true)), appstate.Remove(appstate.Pin(user(4), true)))
	err := c.Client.FetchAppState(ctx, wasync.WAPatchRegularLow, false, false)
	require.ErrorIs(t, err, wasync.ErrKeyNotFound)
	kind := waE2E.ProtocolMessage_APP_STATE_SYNC_KEY_REQUEST
	answer, err := a.Answer(&waE2E.ProtocolMessage{Type: &kind, AppStateSyncKeyRequest: &waE2E.AppStateSyncKeyRequest{
		KeyIDs: []*waE2E.AppStateSyncKeyId{{KeyID: id}, {KeyID: []byte("no such key")}},
	}}, "1")
	require.NoError(t, err)
	keys := answer.GetProtocolMessage().GetAppStateSyncKeyShare().GetKeys()
	require.Len(t, keys, 2)
	require.Nil(t, keys[1].GetKeyData())
	c.share(answer) // the store refuses a key without data, and the client goes on
	c.fetch(t, wasync.WAPatchRegularLow)
	a.same(c)
	require.False(t, c.settings(t, user(1)).Pinned)
	latest, err := c.device.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
	require.NoError(t, err)
	require.Equal(t, id, latest)

	// The client does not remove what is set under an older key.
	require.NoError(t, c.Client.SendAppState(ctx, wasync.BuildPin(user(2), false)))
	a.same(c)
	require.False(t, a.Value(wasync.WAPatchRegularLow, wasync.IndexPin, user(2).String()).GetPinAction().GetPinned())
	a.apply(appstate.Pin(user(2), true))
	c.fetch(t, wasync.WAPatchRegularLow)
	a.same(c)
	require.True(t, c.settings(t, user(2)).Pinned)

	_, err = a.Answer(&waE2E.ProtocolMessage{AppStateSyncKeyRequest: &waE2E.AppStateSyncKeyRequest{}}, "2")
	require.Error(t, err)
	answer, err = a.Answer(&waE2E.ProtocolMessage{}, "3")
	require.NoError(t, err)
	require.Nil(t, answer)
}

func TestCorruptionAndRecovery(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const name = wasync.WAPatchCriticalUnblockLow
	a := newAccount(t, appstate.Config{})
	require.Error(t, a.Corrupt(name))
	a.apply(appstate.Contact(user(1), "Ada", "Ada L."))
	c := a.companion()
	c.share(a.KeyShare())
	a.apply(appstate.Contact(user(2), "Bob", "Bob B."))
	require.NoError(t, a.TakeSnapshot())
	require.NoError(t, a.Corrupt(name))
	require.NoError(t, a.Corrupt(name)) // stays so
	require.ErrorIs(t, c.Client.FetchAppState(ctx, name, false, false), wasync.ErrMismatchingLTHash)
	require.ErrorIs(t, c.Client.FetchAppState(ctx, name, true, false), wasync.ErrMismatchingLTHash)

	request := whatsmeow.BuildAppStateRecoveryRequest(name)
	answer, err := a.Answer(request.GetProtocolMessage(), "request")
	require.NoError(t, err)
	response := answer.GetProtocolMessage().GetPeerDataOperationRequestResponseMessage()
	require.True(t, c.HandleAppStateRecovery(ctx, response.GetStanzaID(), response.GetPeerDataOperationResult()))
	require.Equal(t, "Bob/Bob B.", c.name(t, user(2)))
	require.Len(t, c.seen.errors, 2)
	c.seen.errors = nil
	a.same(c)

	a.apply(appstate.Contact(user(2), "Bob", "Robert"))
	require.NoError(t, a.TakeSnapshot(name))
	c.fetch(t, name)
	require.Equal(t, "Bob/Robert", c.name(t, user(2)))
	later := a.companion()
	later.share(a.KeyShare())
	a.same(later)

	_, err = a.Recovery("no such collection", "1")
	require.Error(t, err)
}

// One patch may hold a setting twice. The client's store is given both MACs in one call, which sqlstore refuses after it
// has stored the version.
func TestSettingTwiceInOnePatch(t *testing.T) {
	t.Parallel()
	a := newAccount(t, appstate.Config{})
	a.apply(appstate.Pin(user(1), true), appstate.Remove(appstate.Pin(user(1), true)), appstate.Pin(user(1), true), appstate.Pin(user(1), false))
	c := a.companion()
	c.share(a.KeyShare())
	err := c.Client.FetchAppState(context.Background(), wasync.WAPatchRegularLow, true, false)
	require.ErrorContains(t, err, "insert added mutation MACs")
}

func TestRefusedUploads(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a := newAccount(t, appstate.Config{})
	a.apply(appstate.Pin(user(1), true))
	c := a.companion()
	c.share(a.KeyShare())
	id := a.KeyShare().GetProtocolMessage().GetAppStateSyncKeyShare().GetKeys()[0].GetKeyID().GetKeyID()
	version, hash, err := c.device.AppState.GetAppStateVersion(ctx, string(wasync.WAPatchRegularLow))
	require.NoError(t, err)
	good, err := wasync.NewProcessor(c.device, nil).EncodePatch(ctx, id, wasync.HashState{Version: version, Hash: hash}, wasync.BuildPin(user(2), true))
	require.NoError(t, err)

	upload := func(name string, version uint64, content any) *waBinary.Node {
		answer, changed := a.Handle(&waBinary.Node{Tag: "iq", Content: []waBinary.Node{{Tag: "sync", Content: []waBinary.Node{{
			Tag: "collection", Attrs: waBinary.Attrs{"name": name, "version": fmt.Sprint(version)},
			Content: []waBinary.Node{{Tag: "patch", Content: content}},
		}}}}})
		collection := answer.GetChildByTag("sync", "collection")
		require.Equal(t, collection.Attrs["type"] != "error", len(changed) == 1)
		return &collection
	}
	code := func(n *waBinary.Node) any {
		e := n.GetChildByTag("error")
		return e.Attrs["code"]
	}
	regular := string(wasync.WAPatchRegularLow)
	require.Equal(t, "409", code(upload(regular, 0, good)))
	require.Empty(t, a.Problems())
	require.Equal(t, "409", code(upload(regular, 2, good)))
	require.Equal(t, "404", code(upload("unknown", 1, good)))
	require.Equal(t, "400", code(upload(regular, 1, nil)))
	require.Equal(t, "400", code(upload(regular, 1, []byte("x"))))
	wrong := []func(*waServerSync.SyncdPatch, *waServerSync.SyncdRecord){
		func(p *waServerSync.SyncdPatch, _ *waServerSync.SyncdRecord) { p.SnapshotMAC[0]++ },
		func(p *waServerSync.SyncdPatch, _ *waServerSync.SyncdRecord) { p.PatchMAC[0]++ },
		func(p *waServerSync.SyncdPatch, _ *waServerSync.SyncdRecord) { p.KeyID.ID = []byte("x") },
		func(_ *waServerSync.SyncdPatch, r *waServerSync.SyncdRecord) { r.KeyID.ID = []byte("x") },
		func(_ *waServerSync.SyncdPatch, r *waServerSync.SyncdRecord) { r.Index.Blob[0]++ },
		func(_ *waServerSync.SyncdPatch, r *waServerSync.SyncdRecord) { r.Value.Blob[20]++ },
		func(_ *waServerSync.SyncdPatch, r *waServerSync.SyncdRecord) { r.Value.Blob = r.Value.Blob[:40] },
	}
	for _, change := range wrong {
		patch := &waServerSync.SyncdPatch{}
		require.NoError(t, proto.Unmarshal(good, patch))
		change(patch, patch.GetMutations()[0].GetRecord())
		bad, err := proto.Marshal(patch)
		require.NoError(t, err)
		require.Equal(t, "400", code(upload(regular, 1, bad)))
	}
	require.Len(t, a.Problems(), 4+len(wrong))
	require.EqualValues(t, 1, a.Version(wasync.WAPatchRegularLow))
	require.Nil(t, code(upload(regular, 1, good)))
	require.EqualValues(t, 2, a.Version(wasync.WAPatchRegularLow))

	// A client that is ahead has nothing to fetch, and is reported.
	require.NoError(t, c.device.AppState.PutAppStateVersion(ctx, regular, 9, hash))
	c.fetch(t, wasync.WAPatchRegularLow)
	require.Len(t, a.Problems(), 5+len(wrong))
	_, err = a.Apply(appstate.Mutation{Collection: "unknown", Value: &waSyncAction.SyncActionValue{}})
	require.Error(t, err)
	require.Nil(t, a.Value("unknown", "x"))
	require.Nil(t, a.Value(wasync.WAPatchRegularLow, "x"))
}
