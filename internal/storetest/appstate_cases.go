package storetest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
)

func mac(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func checkMAC(t *testing.T, s *Subject, name string, index byte, want []byte) {
	t.Helper()
	got, err := s.AppState.GetAppStateMutationMAC(ctx, name, mac(index))
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func checkVersion(t *testing.T, s *Subject, name string, version uint64, hash byte) {
	t.Helper()
	v, h, err := s.AppState.GetAppStateVersion(ctx, name)
	require.NoError(t, err)
	require.Equal(t, version, v)
	require.Equal(t, [128]byte{hash}, h)
}

// patch is the three calls of an app-state patch.
func patch(t *testing.T, s *Subject, name string, version uint64, remove [][]byte, add ...store.AppStateMutationMAC) {
	t.Helper()
	require.NoError(t, s.AppState.PutAppStateVersion(ctx, name, version, [128]byte{byte(version)}))
	checkVersion(t, s, name, version, byte(version))
	require.NoError(t, s.AppState.DeleteAppStateMutationMACs(ctx, name, remove))
	require.NoError(t, s.AppState.PutAppStateMutationMACs(ctx, name, version, add))
}

var appStateCases = []testCase{
	{
		name: "no app state",
		check: func(t *testing.T, s *Subject) {
			checkVersion(t, s, "regular", 0, 0)
			checkMAC(t, s, "regular", 1, nil)
			key, err := s.AppStateKeys.GetAppStateSyncKey(ctx, []byte{1})
			require.NoError(t, err)
			require.Nil(t, key)
			latest, err := s.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
			none(t, latest, err)
			all, err := s.AppStateKeys.GetAllAppStateSyncKeys(ctx)
			require.NoError(t, err)
			require.Empty(t, all)
			require.NoError(t, s.AppState.DeleteAppStateVersion(ctx, "regular"))
			require.NoError(t, s.AppState.DeleteAppStateMutationMACs(ctx, "regular", [][]byte{mac(1)}))
		},
	},
	{
		name: "app state keys: the newer wins",
		do: func(t *testing.T, s *Subject) {
			for _, k := range []struct {
				id, data  byte
				timestamp int64
			}{{1, 1, 10}, {1, 2, 10}, {1, 3, 9}, {2, 4, 20}, {2, 5, 30}, {3, 6, 5}} {
				require.NoError(t, s.AppStateKeys.PutAppStateSyncKey(ctx, []byte{k.id}, store.AppStateSyncKey{Data: []byte{k.data}, Fingerprint: []byte{}, Timestamp: k.timestamp}))
			}
		},
		check: func(t *testing.T, s *Subject) {
			for id, data := range map[byte]byte{1: 1, 2: 5, 3: 6} {
				key, err := s.AppStateKeys.GetAppStateSyncKey(ctx, []byte{id})
				require.NoError(t, err)
				require.Equal(t, []byte{data}, key.Data)
				require.Empty(t, key.Fingerprint)
			}
			latest, err := s.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
			require.NoError(t, err)
			require.Equal(t, []byte{2}, latest)
			all, err := s.AppStateKeys.GetAllAppStateSyncKeys(ctx)
			require.NoError(t, err)
			require.Len(t, all, 3)
			require.Equal(t, []int64{30, 10, 5}, []int64{all[0].Timestamp, all[1].Timestamp, all[2].Timestamp})
		},
	},
	{
		name: "an app state key without data",
		check: func(t *testing.T, s *Subject) {
			require.Error(t, s.AppStateKeys.PutAppStateSyncKey(ctx, []byte{9}, store.AppStateSyncKey{Fingerprint: []byte{1}, Timestamp: 1}))
			err := s.AppStateKeys.PutAppStateSyncKey(ctx, []byte{9}, store.AppStateSyncKey{Data: []byte{}, Fingerprint: []byte{1}, Timestamp: 1})
			require.Equal(t, s.Differs("app state key without data"), err != nil)
		},
	},
	{
		name: "patches",
		do: func(t *testing.T, s *Subject) {
			patch(t, s, "regular", 1, nil, store.AppStateMutationMAC{IndexMAC: mac(1), ValueMAC: mac(11)}, store.AppStateMutationMAC{IndexMAC: mac(2), ValueMAC: mac(12)})
			patch(t, s, "regular", 2, [][]byte{mac(2), mac(99)}, store.AppStateMutationMAC{IndexMAC: mac(1), ValueMAC: mac(21)}, store.AppStateMutationMAC{IndexMAC: mac(3), ValueMAC: mac(13)})
			patch(t, s, "critical", 5, nil, store.AppStateMutationMAC{IndexMAC: mac(1), ValueMAC: mac(51)})
			patch(t, s, "critical", 6, nil)
			patch(t, s, "gone", 1, nil, store.AppStateMutationMAC{IndexMAC: mac(1), ValueMAC: mac(61)})
			require.NoError(t, s.AppState.DeleteAppStateVersion(ctx, "gone"))
		},
		check: func(t *testing.T, s *Subject) {
			checkVersion(t, s, "regular", 2, 2)
			checkMAC(t, s, "regular", 1, mac(21))
			checkMAC(t, s, "regular", 2, nil)
			checkMAC(t, s, "regular", 3, mac(13))
			checkVersion(t, s, "critical", 6, 6)
			checkMAC(t, s, "critical", 1, mac(51))
			checkVersion(t, s, "gone", 0, 0)
			checkMAC(t, s, "gone", 1, nil)
		},
	},
	{
		name: "an index twice in one patch",
		check: func(t *testing.T, s *Subject) {
			version, _, err := s.AppState.GetAppStateVersion(ctx, "twice")
			require.NoError(t, err)
			require.NoError(t, s.AppState.PutAppStateVersion(ctx, "twice", version+1, [128]byte{}))
			err = s.AppState.PutAppStateMutationMACs(ctx, "twice", version+1, []store.AppStateMutationMAC{{IndexMAC: mac(1), ValueMAC: mac(1)}, {IndexMAC: mac(1), ValueMAC: mac(2)}})
			if s.Differs("MAC twice in one call") {
				require.NoError(t, err)
				checkMAC(t, s, "twice", 1, mac(2))
			} else {
				require.Error(t, err)
			}
		},
	},
	{
		name: "MACs of a wrong length",
		check: func(t *testing.T, s *Subject) {
			version, _, err := s.AppState.GetAppStateVersion(ctx, "wrong")
			require.NoError(t, err)
			require.NoError(t, s.AppState.PutAppStateVersion(ctx, "wrong", version+1, [128]byte{}))
			require.Error(t, s.AppState.PutAppStateMutationMACs(ctx, "wrong", version+1, []store.AppStateMutationMAC{{IndexMAC: mac(1), ValueMAC: []byte{1}}}))
			require.NoError(t, s.AppState.PutAppStateMutationMACs(ctx, "wrong", version+1, nil))
		},
	},
}
