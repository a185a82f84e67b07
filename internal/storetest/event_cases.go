package storetest

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

func checkBuffered(t *testing.T, s *Subject, ctx context.Context, hash byte, found bool, plaintext []byte) {
	t.Helper()
	event, err := s.EventBuffer.GetBufferedEvent(ctx, [32]byte{hash})
	require.NoError(t, err)
	require.Equal(t, found, event != nil)
	if found {
		require.Equal(t, string(plaintext), string(event.Plaintext))
		if s.Differs("empty plaintext") {
			require.Equal(t, plaintext == nil, event.Plaintext == nil)
		}
		require.EqualValues(t, 1000, event.ServerTime.Unix())
		require.WithinDuration(t, time.Now(), event.InsertTime, time.Minute)
	}
}

func bufferEvent(t *testing.T, s *Subject, ctx context.Context, hash byte, plaintext []byte) {
	t.Helper()
	require.NoError(t, s.EventBuffer.PutBufferedEvent(ctx, [32]byte{hash}, plaintext, time.Unix(1000, 999)))
}

var eventCases = []testCase{
	{
		name: "buffered events",
		do: func(t *testing.T, s *Subject) {
			for hash, plaintext := range map[byte][]byte{1: []byte("one"), 2: {}, 3: []byte("three"), 4: nil} {
				bufferEvent(t, s, ctx, hash, plaintext)
			}
			require.NoError(t, s.EventBuffer.ClearBufferedEventPlaintext(ctx, [32]byte{3}))
			require.NoError(t, s.EventBuffer.ClearBufferedEventPlaintext(ctx, [32]byte{99}))
			require.NoError(t, s.EventBuffer.DeleteOldBufferedHashes(ctx))
		},
		check: func(t *testing.T, s *Subject) {
			checkBuffered(t, s, ctx, 1, true, []byte("one"))
			checkBuffered(t, s, ctx, 2, true, []byte{})
			checkBuffered(t, s, ctx, 3, true, nil)
			checkBuffered(t, s, ctx, 4, true, nil)
			checkBuffered(t, s, ctx, 99, false, nil)
			require.Error(t, s.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("again"), time.Unix(1000, 0)), "the same hash twice")
			checkBuffered(t, s, ctx, 1, true, []byte("one"))
		},
	},
	{
		name: "old hashes of another device",
		do: func(t *testing.T, s *Subject) {
			other := s.Container.NewDevice()
			signaltest.FillPairing(other)
			require.NoError(t, other.Save(ctx))
			require.NoError(t, other.EventBuffer.PutBufferedEvent(ctx, [32]byte{1}, []byte("p"), time.Unix(1000, 0)))
			require.NoError(t, s.EventBuffer.DeleteOldBufferedHashes(ctx))
			s.Differs("old hashes of other devices")
		},
		check: func(t *testing.T, s *Subject) {
			all, err := s.Container.GetAllDevices(ctx)
			require.NoError(t, err)
			for _, d := range all {
				event, err := d.EventBuffer.GetBufferedEvent(ctx, [32]byte{1})
				require.NoError(t, err)
				require.Equal(t, d.ID.User == s.ID.User, event == nil, "what is not old stays")
			}
		},
	},
	{
		name: "a decryption that succeeds, with another in it",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
				require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(1)))
				require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(2)))
				got, err := s.Sessions.GetSession(ctx, "1:0")
				require.NoError(t, err)
				require.Equal(t, string(session(2)), string(got), "it sees its own writes")
				return s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
					bufferEvent(t, s, ctx, 1, []byte("one"))
					return nil
				})
			}))
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", session(2))
			checkBuffered(t, s, ctx, 1, true, []byte("one"))
		},
	},
	{
		name: "decryptions that fail",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(1)))
			made, err := s.PreKeys.GetOrGenPreKeys(ctx, 1)
			require.NoError(t, err)
			broken := errors.New("broken")
			fail := func(ctx context.Context) {
				require.NoError(t, s.Sessions.PutSession(ctx, "1:0", session(2)))
				require.NoError(t, s.Sessions.PutSession(ctx, "2:0", session(2)))
				require.NoError(t, s.Identities.PutIdentity(ctx, "2:0", [32]byte{1}))
				require.NoError(t, s.PreKeys.RemovePreKey(ctx, made[0].KeyID))
				gone, err := s.PreKeys.GetPreKey(ctx, made[0].KeyID)
				require.NoError(t, err)
				require.Nil(t, gone)
				bufferEvent(t, s, ctx, 1, []byte("one"))
			}
			require.ErrorIs(t, s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error { fail(ctx); return broken }), broken)
			require.Panics(t, func() {
				_ = s.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error { fail(ctx); panic(broken) })
			})
		},
		check: func(t *testing.T, s *Subject) {
			checkSession(t, s, "1:0", session(1))
			checkSession(t, s, "2:0", nil)
			require.True(t, trusted(t, s, "2:0", 9))
			checkBuffered(t, s, ctx, 1, false, nil)
			key, err := s.PreKeys.GetPreKey(ctx, 1)
			require.NoError(t, err)
			require.NotNil(t, key)
		},
	},
	{
		name: "outgoing events",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.EventBuffer.AddOutgoingEvent(ctx, person("1"), "A", "wa", []byte("old")))
			require.NoError(t, s.EventBuffer.AddOutgoingEvent(ctx, person("1"), "A", "wa2", []byte("new")))
			require.NoError(t, s.EventBuffer.AddOutgoingEvent(ctx, lid("91"), "B", "wa", []byte("lid")))
			require.NoError(t, s.EventBuffer.DeleteOldOutgoingEvents(ctx))
		},
		check: func(t *testing.T, s *Subject) {
			format, plaintext, err := s.EventBuffer.GetOutgoingEvent(ctx, person("1"), lid("91"), "A")
			require.NoError(t, err)
			require.Equal(t, "wa2", format)
			require.Equal(t, "new", string(plaintext))
			_, plaintext, err = s.EventBuffer.GetOutgoingEvent(ctx, person("1"), lid("91"), "B")
			require.NoError(t, err)
			require.Equal(t, "lid", string(plaintext))
			_, _, err = s.EventBuffer.GetOutgoingEvent(ctx, person("1"), lid("91"), "C")
			require.ErrorIs(t, err, sql.ErrNoRows)
		},
	},
}
