package storetest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

// session is a record as libsignal writes it, as far as a store looks at it.
func session(counter int) []byte {
	return fmt.Appendf(nil, `{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"cmF0Y2hldA==","ChainKey":{"Key":"a2V5","Index":%d}}},"PreviousStates":[]}`, counter)
}

func senderKey(id int) []byte {
	return fmt.Appendf(nil, `{"SenderKeyStates":[{"Keys":[],"KeyID":%d,"SenderChainKey":{"Iteration":0,"ChainKey":"a2V5"}}]}`, id)
}

func checkSession(t *testing.T, s *Subject, address string, want []byte) {
	t.Helper()
	got, err := s.Sessions.GetSession(ctx, address)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
	require.Equal(t, want == nil, got == nil, "absent is nil, not empty")
	has, err := s.Sessions.HasSession(ctx, address)
	require.NoError(t, err)
	require.Equal(t, want != nil, has)
	many, err := s.Sessions.GetManySessions(ctx, []string{address})
	require.NoError(t, err)
	require.Len(t, many, 1, "an entry for every address")
	require.Equal(t, string(want), string(many[address]))
	require.Equal(t, want == nil, many[address] == nil)
}

func put(t *testing.T, s *Subject, sessions map[string][]byte) {
	t.Helper()
	for address, record := range sessions {
		require.NoError(t, s.Sessions.PutSession(ctx, address, record))
	}
}

func trusted(t *testing.T, s *Subject, address string, key byte) bool {
	t.Helper()
	ok, err := s.Identities.IsTrustedIdentity(ctx, address, [32]byte{key})
	require.NoError(t, err)
	return ok
}

var (
	migratedPN  = types.NewJID("111", types.DefaultUserServer)
	migratedLID = types.NewJID("999", types.HiddenUserServer)
)

var signalCases = []testCase{
	{
		name: "an unknown identity is trusted",
		check: func(t *testing.T, s *Subject) {
			require.True(t, trusted(t, s, "1:0", 1))
		},
	},
	{
		name: "identity put, replaced and deleted",
		do: func(t *testing.T, s *Subject) {
			for address, keys := range map[string][]byte{"1:0": {1}, "1:1": {1, 2}, "1:10": {7}, "2:0": {3}} {
				for _, key := range keys {
					require.NoError(t, s.Identities.PutIdentity(ctx, address, [32]byte{key}))
				}
			}
			require.NoError(t, s.Identities.DeleteIdentity(ctx, "1:0"))
			require.NoError(t, s.Identities.DeleteIdentity(ctx, "absent:0"))
		},
		check: func(t *testing.T, s *Subject) {
			require.True(t, trusted(t, s, "1:0", 9), "deleted")
			require.False(t, trusted(t, s, "1:1", 1))
			require.True(t, trusted(t, s, "1:1", 2))
			require.False(t, trusted(t, s, "1:10", 1), "DeleteIdentity is of one address")
			require.False(t, trusted(t, s, "2:0", 1))
		},
	},
	{
		name: "all identities of a user",
		do: func(t *testing.T, s *Subject) {
			for _, address := range []string{"1:0", "1:1", "11:0", "1_1:0"} {
				require.NoError(t, s.Identities.PutIdentity(ctx, address, [32]byte{1}))
			}
			require.NoError(t, s.Identities.DeleteAllIdentities(ctx, "1"))
		},
		check: func(t *testing.T, s *Subject) {
			require.True(t, trusted(t, s, "1:0", 2))
			require.True(t, trusted(t, s, "1:1", 2))
			require.False(t, trusted(t, s, "11:0", 2))
			require.False(t, trusted(t, s, "1_1:0", 2), "the bare user does not match an agent's address")
		},
	},
	{
		name: "no session",
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", nil)
			many, err := s.Sessions.GetManySessions(ctx, nil)
			require.NoError(t, err)
			require.Nil(t, many)
		},
	},
	{
		name: "session put, replaced and deleted",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"1:0": session(1), "1:1": session(1), "2:0": session(3)})
			require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(2)))
			require.NoError(t, s.Sessions.PutManySessions(ctx, map[string][]byte{"3:0": session(7), "2:0": session(4)}))
			require.NoError(t, s.Sessions.PutManySessions(ctx, nil))
			require.NoError(t, s.Sessions.DeleteSession(ctx, "1:1"))
			require.NoError(t, s.Sessions.DeleteSession(ctx, "absent:0"))
		},
		check: func(t *testing.T, s *Subject) {
			for address, want := range map[string][]byte{"1:0": session(2), "1:1": nil, "2:0": session(4), "3:0": session(7), "4:0": nil} {
				checkSession(t, s, address, want)
			}
			many, err := s.Sessions.GetManySessions(ctx, []string{"1:0", "1:1", "3:0"})
			require.NoError(t, err)
			require.Len(t, many, 3)
		},
	},
	{
		name: "session put again after it was deleted",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"1:0": session(5), "2:0": session(5)})
			checkSession(t, s, "1:0", session(5))
			require.NoError(t, s.Sessions.DeleteSession(ctx, "1:0"))
			require.NoError(t, s.Sessions.DeleteAllSessions(ctx, "2"))
			put(t, s, map[string][]byte{"1:0": session(5)})
			require.NoError(t, s.Sessions.PutManySessions(ctx, map[string][]byte{"2:0": session(5)}))
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", session(5))
			checkSession(t, s, "2:0", session(5))
		},
	},
	{
		name: "records come back byte for byte",
		do: func(t *testing.T, s *Subject) {
			put(t, s, strangeRecords())
			for address, record := range strangeRecords() {
				require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g", address, record))
			}
		},
		check: func(t *testing.T, s *Subject) {
			for address, record := range strangeRecords() {
				checkSession(t, s, address, record)
				got, err := s.SenderKeys.GetSenderKey(ctx, "g", address)
				require.NoError(t, err)
				require.Equal(t, string(record), string(got), address)
			}
		},
	},
	{
		name: "what is handed in and out belongs to the caller",
		do: func(t *testing.T, s *Subject) {
			record := session(1)
			require.NoError(t, s.Sessions.PutSession(ctx, "1:0", record))
			clear(record)
			key := senderKey(1)
			require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g", "1:0", key))
			clear(key)
		},
		check: func(t *testing.T, s *Subject) {
			for range 2 {
				got, err := s.Sessions.GetSession(ctx, "1:0")
				require.NoError(t, err)
				require.Equal(t, string(session(1)), string(got))
				clear(got)
				got, err = s.SenderKeys.GetSenderKey(ctx, "g", "1:0")
				require.NoError(t, err)
				require.Equal(t, string(senderKey(1)), string(got))
				clear(got)
			}
		},
	},
	{
		name: "all sessions of a user",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"1:0": session(1), "1:12": session(1), "11:0": session(1), "1_1:0": session(1)})
			require.NoError(t, s.Sessions.DeleteAllSessions(ctx, "1"))
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", nil)
			checkSession(t, s, "1:12", nil)
			checkSession(t, s, "11:0", session(1))
			checkSession(t, s, "1_1:0", session(1))
		},
	},
	{
		name: "a user's name is no pattern",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"1_1:0": session(1), "1x1:0": session(2)})
			require.NoError(t, s.Sessions.DeleteAllSessions(ctx, "1_1"))
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1_1:0", nil)
			var other []byte
			if s.Differs("wildcard in an address") {
				other = session(2)
			}
			checkSession(t, s, "1x1:0", other)
		},
	},
	{
		name: "an empty record",
		check: func(t *testing.T, s *Subject) {
			require.Equal(t, s.Differs("empty records"), s.Sessions.PutSession(ctx, "e:0", []byte{}) != nil)
		},
	},
	{
		name: "sender keys",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g1", "1:0", senderKey(1)))
			require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g1", "2:0", senderKey(2)))
			require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g2", "1:0", senderKey(3)))
			require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g1", "1:0", senderKey(4)))
		},
		check: func(t *testing.T, s *Subject) {
			for _, want := range []struct {
				group, user string
				key         []byte
			}{{"g1", "1:0", senderKey(4)}, {"g1", "2:0", senderKey(2)}, {"g2", "1:0", senderKey(3)}, {"g2", "2:0", nil}} {
				got, err := s.SenderKeys.GetSenderKey(ctx, want.group, want.user)
				require.NoError(t, err)
				require.Equal(t, string(want.key), string(got))
				require.Equal(t, want.key == nil, got == nil)
			}
		},
	},
	{
		name: "phone number migrated to LID",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"111:0": session(1), "111:2": session(2), "1111:0": session(3), "999_1:2": session(1), "999_1:3": session(5)})
			for _, address := range []string{"111:0", "1111:0"} {
				require.NoError(t, s.Identities.PutIdentity(ctx, address, [32]byte{1}))
				require.NoError(t, s.SenderKeys.PutSenderKey(ctx, "g", address, senderKey(1)))
			}
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, types.NewJID("555", types.DefaultUserServer), types.NewJID("556", types.HiddenUserServer)))
		},
		check: func(t *testing.T, s *Subject) {
			for address, want := range map[string][]byte{
				"111:0": nil, "111:2": nil, "1111:0": session(3),
				"999_1:0": session(1), "999_1:2": session(2), "999_1:3": session(5),
			} {
				checkSession(t, s, address, want)
			}
			require.True(t, trusted(t, s, "111:0", 2), "moved away")
			require.False(t, trusted(t, s, "999_1:0", 2))
			require.False(t, trusted(t, s, "1111:0", 2))
			got, err := s.SenderKeys.GetSenderKey(ctx, "g", "111:0")
			none(t, got, err)
			got, err = s.SenderKeys.GetSenderKey(ctx, "g", "999_1:0")
			require.NoError(t, err)
			require.Equal(t, string(senderKey(1)), string(got))
		},
	},
	{
		name: "session put for a phone number that was migrated",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"111:0": session(5)})
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
			put(t, s, map[string][]byte{"111:0": session(5)})
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "111:0", session(5))
			checkSession(t, s, "999_1:0", session(5))
		},
	},
	{
		name: "migration when the LID has changed",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
			require.NoError(t, s.Sessions.PutSession(ctx, "111:0", session(1)))
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, types.NewJID("888", types.HiddenUserServer)))
		},
		check: func(t *testing.T, s *Subject) {
			if s.Differs("migration to another LID") {
				checkSession(t, s, "888_1:0", session(1))
			} else {
				checkSession(t, s, "111:0", session(1))
			}
		},
	},
}

func strangeRecords() map[string][]byte {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return map[string][]byte{
		"a:0": []byte("not JSON"), "b:0": every, "c:0": []byte(`{"a": 1,  "a":2}`), "d:0": []byte("{}"),
		"e:0": []byte("\x00"), "f:0": []byte("{\xff}"), "g:0": []byte(strings.Replace(string(session(1)), "[]", "[\"\u2028<&>\\u0000\"]", 1)),
		"h:0": bytes.Repeat([]byte("x"), 700_000),
	}
}
