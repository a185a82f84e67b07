package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

var errGiveUp = errors.New("given up")

// giveUp makes the calls in a decryption that then fails.
func giveUp(t *testing.T, s *Subject, methods []method) {
	t.Helper()
	require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
		all(t, ctx, s.Device, methods)
		return errGiveUp
	}), errGiveUp)
}

// checkSnapshot compares all answers but those that sqlstore gives from its cache of contacts.
func checkSnapshot(t *testing.T, s *Subject, want map[string]any) {
	t.Helper()
	got := snapshot(t, s.Device)
	if !s.Differs("contacts after a decryption that failed") {
		want["GetContact"] = got["GetContact"]
	}
	require.Equal(t, want, got)
}

var transactionCases = []testCase{
	{
		name: "a decryption that fails undoes every put",
		check: func(t *testing.T, s *Subject) {
			before := snapshot(t, s.Device)
			giveUp(t, s, puts)
			checkSnapshot(t, s, before)
		},
	},
	{
		name: "a decryption that fails undoes every removal",
		do:   func(t *testing.T, s *Subject) { all(t, ctx, s.Device, puts) },
		check: func(t *testing.T, s *Subject) {
			before := snapshot(t, s.Device)
			giveUp(t, s, removals)
			checkSnapshot(t, s, before)
		},
	},
	{
		name: "a contact of a decryption that failed",
		do: func(t *testing.T, s *Subject) {
			require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
				_, _, err := s.Contacts.PutPushName(ctx, person("m"), "name")
				require.NoError(t, err)
				return errGiveUp
			}), errGiveUp)
			contact, err := s.Contacts.GetContact(ctx, person("m"))
			require.NoError(t, err)
			require.Equal(t, s.Differs("contacts after a decryption that failed"), contact == types.ContactInfo{})
		},
		check: func(t *testing.T, s *Subject) {
			everybody, err := s.Contacts.GetAllContacts(ctx)
			require.NoError(t, err)
			require.Empty(t, everybody)
		},
	},
	{
		name: "a decryption that succeeds keeps every put and every removal",
		do: func(t *testing.T, s *Subject) {
			for _, methods := range [][]method{puts, removals} {
				require.NoError(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
					all(t, ctx, s.Device, methods)
					return nil
				}))
			}
		},
		check: func(t *testing.T, s *Subject) {
			got := snapshot(t, s.Device)
			require.Equal(t, false, got["HasSession"])
			require.Equal(t, []byte(nil), got["GetNCTSalt"])
			require.Equal(t, []byte("s"), got["GetMessageSecret"])
			contact, err := s.Contacts.GetContact(ctx, person("m"))
			require.NoError(t, err)
			require.Equal(t, "push", contact.PushName)
		},
	},
	{
		name: "calls with another context do not belong to the decryption",
		do: func(t *testing.T, s *Subject) {
			require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				require.NoError(t, s.Sessions.PutSession(ctx, "outside:0", session(1)))
				require.NoError(t, s.Sessions.PutSession(inside, "inside:0", session(1)))
				checkSession(t, s, "inside:0", nil)
				return errGiveUp
			}), errGiveUp)
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "outside:0", session(1))
			checkSession(t, s, "inside:0", nil)
		},
	},
	{
		name: "the context of a decryption that has ended",
		check: func(t *testing.T, s *Subject) {
			var leaked context.Context
			require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				leaked = inside
				require.NoError(t, s.Sessions.PutSession(inside, "1:0", session(1)))
				return errGiveUp
			}), errGiveUp)
			require.Error(t, s.Sessions.PutSession(leaked, "1:0", session(1)))
			got, _ := s.Sessions.GetSession(leaked, "1:0")
			require.Nil(t, got, "it was rolled back")
			checkSession(t, s, "1:0", nil)
		},
	},
	{
		name: "an error of the inner decryption is the outer one's to judge",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.EventBuffer.DoDecryptionTxn(ctx, func(outer context.Context) error {
				require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(outer, func(inner context.Context) error {
					require.NoError(t, s.Sessions.PutSession(inner, "1:0", session(1)))
					return errGiveUp
				}), errGiveUp)
				return nil
			}))
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", session(1))
		},
	},
	{
		name: "a migration that was rolled back",
		do: func(t *testing.T, s *Subject) {
			put(t, s, map[string][]byte{"111:0": session(1)})
			require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
				require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
				return errGiveUp
			}), errGiveUp)
			checkSession(t, s, "111:0", session(1))
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
		},
		check: func(t *testing.T, s *Subject) {
			at, gone := "999_1:0", "111:0"
			if !s.Differs("migration after one that failed") {
				at, gone = gone, at
			}
			checkSession(t, s, at, session(1))
			checkSession(t, s, gone, nil)
		},
	},
	{
		name: "a session that is put under a number after its migration",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
			put(t, s, map[string][]byte{"111:0": session(1)})
			require.NoError(t, s.Sessions.MigratePNToLID(ctx, migratedPN, migratedLID))
		},
		check: func(t *testing.T, s *Subject) {
			at, gone := "999_1:0", "111:0"
			if !s.Differs("migration of what came later") {
				at, gone = gone, at
			}
			checkSession(t, s, at, session(1))
			checkSession(t, s, gone, nil)
		},
	},
	{
		name: "a context that ended before the Put",
		do: func(t *testing.T, s *Subject) {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			err := s.Sessions.PutSession(ended, "1:0", session(1))
			require.ErrorIs(t, err, context.Canceled)
		},
		check: func(t *testing.T, s *Subject) {
			if s.Differs("a context that ended") {
				checkSession(t, s, "1:0", session(1))
			} else {
				checkSession(t, s, "1:0", nil)
			}
		},
	},
}
