package storetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

func lid(user string) types.JID { return types.NewJID(user, types.HiddenUserServer) }

func checkSecret(t *testing.T, s *Subject, chat, sender types.JID, id, secret string, from types.JID) {
	t.Helper()
	got, realSender, err := s.MsgSecrets.GetMessageSecret(ctx, chat, sender, id)
	require.NoError(t, err)
	require.Equal(t, secret, string(got))
	require.Equal(t, secret == "", got == nil)
	require.Equal(t, from, realSender)
}

func token(user types.JID, value string, seconds int64, sender time.Time) store.PrivacyToken {
	return store.PrivacyToken{User: user, Token: []byte(value), Timestamp: time.Unix(seconds, 0), SenderTimestamp: sender}
}

func checkToken(t *testing.T, s *Subject, user types.JID, value string, sender time.Time) {
	t.Helper()
	got, err := s.PrivacyTokens.GetPrivacyToken(ctx, user)
	require.NoError(t, err)
	if value == "" {
		require.Nil(t, got)
		return
	}
	require.Equal(t, value, string(got.Token))
	require.Equal(t, user.ToNonAD(), got.User, "that of the question")
	require.True(t, sender.Equal(got.SenderTimestamp), "%v %v", sender, got.SenderTimestamp)
}

var secretCases = []testCase{
	{
		name: "message secrets: the first stays",
		do: func(t *testing.T, s *Subject) {
			device := types.JID{User: "1", Device: 4, Server: types.DefaultUserServer}
			require.NoError(t, s.MsgSecrets.PutMessageSecret(ctx, device, device, "A", []byte("first")))
			require.NoError(t, s.MsgSecrets.PutMessageSecret(ctx, person("1"), person("1"), "A", []byte("second")))
			s.Settle(t)
			require.NoError(t, s.MsgSecrets.PutMessageSecrets(ctx, []store.MessageSecretInsert{
				{Chat: person("1"), Sender: person("1"), ID: "A", Secret: []byte("third")},
				{Chat: person("1"), Sender: person("2"), ID: "A", Secret: []byte("other")},
				{Chat: person("1"), Sender: person("2"), ID: "A", Secret: []byte("again")},
			}))
			require.NoError(t, s.MsgSecrets.PutMessageSecrets(ctx, nil))
		},
		check: func(t *testing.T, s *Subject) {
			checkSecret(t, s, person("1"), person("1"), "A", "first", person("1"))
			checkSecret(t, s, person("1"), person("2"), "A", "other", person("2"))
			checkSecret(t, s, person("1"), person("1"), "B", "", types.EmptyJID)
			checkSecret(t, s, person("2"), person("1"), "A", "", types.EmptyJID)
		},
	},
	{
		name: "message secrets under the other form of chat and sender",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("91"), person("1")))
			require.NoError(t, s.MsgSecrets.PutMessageSecret(ctx, person("1"), person("1"), "A", []byte("pn")))
			require.NoError(t, s.MsgSecrets.PutMessageSecret(ctx, lid("91"), lid("91"), "B", []byte("lid")))
		},
		check: func(t *testing.T, s *Subject) {
			checkSecret(t, s, lid("91"), lid("91"), "A", "pn", person("1"))
			checkSecret(t, s, person("1"), lid("91"), "A", "pn", person("1"))
			checkSecret(t, s, person("1"), person("1"), "B", "lid", lid("91"))
		},
	},
	{
		name: "privacy tokens",
		do: func(t *testing.T, s *Subject) {
			put := func(tokens ...store.PrivacyToken) {
				require.NoError(t, s.PrivacyTokens.PutPrivacyTokens(ctx, tokens...))
			}
			put(token(person("1"), "a", 10, time.Unix(5, 0)), token(person("2"), "b", 10, time.Time{}))
			put(token(person("1"), "older", 9, time.Unix(6, 0)))
			put(token(person("1"), "same age", 10, time.Time{}))
			put(token(types.JID{User: "2", Device: 9, Server: types.DefaultUserServer}, "newer", 11, time.Unix(0, 0)))
			put(token(person("3"), "old", 1, time.Time{}))
			deleted, err := s.PrivacyTokens.DeleteExpiredPrivacyTokens(ctx, time.Unix(10, 0))
			require.NoError(t, err)
			require.EqualValues(t, 1, deleted)
		},
		check: func(t *testing.T, s *Subject) {
			checkToken(t, s, person("1"), "same age", time.Unix(5, 0))
			checkToken(t, s, types.JID{User: "2", Device: 3, Server: types.DefaultUserServer}, "newer", time.Unix(0, 0))
			checkToken(t, s, person("3"), "", time.Time{})
		},
	},
	{
		name: "privacy tokens under both forms: the newest",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("91"), person("1")))
			require.NoError(t, s.PrivacyTokens.PutPrivacyTokens(ctx, token(person("1"), "pn", 10, time.Time{}), token(lid("91"), "lid", 11, time.Time{})))
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("92"), person("2")))
			require.NoError(t, s.PrivacyTokens.PutPrivacyTokens(ctx, token(person("2"), "pn", 10, time.Unix(1, 0)), token(lid("92"), "lid", 10, time.Unix(2, 0))))
		},
		check: func(t *testing.T, s *Subject) {
			checkToken(t, s, person("1"), "lid", time.Time{})
			checkToken(t, s, lid("91"), "lid", time.Time{})
			if s.Differs("privacy tokens of equal age") {
				checkToken(t, s, person("2"), "lid", time.Unix(2, 0))
			}
		},
	},
	{
		name: "no privacy token, or one twice",
		check: func(t *testing.T, s *Subject) {
			require.Equal(t, !s.Differs("no privacy tokens"), s.PrivacyTokens.PutPrivacyTokens(ctx) != nil)
			err := s.PrivacyTokens.PutPrivacyTokens(ctx, token(person("7"), "old", 1, time.Time{}), token(person("7"), "new", 2, time.Time{}), token(person("7"), "older", 1, time.Time{}))
			if s.Differs("privacy token twice in one call") {
				require.NoError(t, err)
				checkToken(t, s, person("7"), "new", time.Time{})
			}
		},
	},
	{
		name: "NCT salt",
		do: func(t *testing.T, s *Subject) {
			salt, err := s.NCTSalt.GetNCTSalt(ctx)
			none(t, salt, err)
			require.NoError(t, s.NCTSalt.DeleteNCTSalt(ctx))
			require.NoError(t, s.NCTSalt.PutNCTSalt(ctx, []byte("first")))
			require.NoError(t, s.NCTSalt.DeleteNCTSalt(ctx))
			salt, err = s.NCTSalt.GetNCTSalt(ctx)
			none(t, salt, err)
			require.NoError(t, s.NCTSalt.PutNCTSalt(ctx, []byte("second")))
			require.NoError(t, s.NCTSalt.PutNCTSalt(ctx, []byte("third")))
		},
		check: func(t *testing.T, s *Subject) {
			salt, err := s.NCTSalt.GetNCTSalt(ctx)
			require.NoError(t, err)
			require.Equal(t, "third", string(salt))
		},
	},
}
