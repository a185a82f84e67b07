package storetest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

var preKeyCases = []testCase{
	{
		name: "no pre-keys",
		check: func(t *testing.T, s *Subject) {
			count, err := s.PreKeys.UploadedPreKeyCount(ctx)
			require.NoError(t, err)
			require.Zero(t, count)
			key, err := s.PreKeys.GetPreKey(ctx, 1)
			require.NoError(t, err)
			require.Nil(t, key)
			require.NoError(t, s.PreKeys.RemovePreKey(ctx, 1))
			require.NoError(t, s.PreKeys.MarkPreKeysAsUploaded(ctx, 100))
		},
	},
	{
		name: "pre-keys made, uploaded and removed",
		do: func(t *testing.T, s *Subject) {
			made, err := s.PreKeys.GetOrGenPreKeys(ctx, 4)
			require.NoError(t, err)
			require.Len(t, made, 4)
			for i, key := range made {
				require.EqualValues(t, i+1, key.KeyID, "upward from 1")
				got, err := s.PreKeys.GetPreKey(ctx, key.KeyID)
				require.NoError(t, err)
				require.Equal(t, key.KeyPair, got.KeyPair)
				require.Equal(t, key.KeyID, got.KeyID)
			}
			require.NoError(t, s.PreKeys.MarkPreKeysAsUploaded(ctx, 2))
			require.NoError(t, s.PreKeys.RemovePreKey(ctx, 1))
			one, err := s.PreKeys.GenOnePreKey(ctx)
			require.NoError(t, err)
			require.EqualValues(t, 5, one.KeyID)
		},
		check: func(t *testing.T, s *Subject) {
			count, err := s.PreKeys.UploadedPreKeyCount(ctx)
			require.NoError(t, err)
			require.Equal(t, 2, count, "2, and the one that was made alone")
			fewer, err := s.PreKeys.GetOrGenPreKeys(ctx, 1)
			require.NoError(t, err)
			require.Len(t, fewer, 1)
			require.EqualValues(t, 3, fewer[0].KeyID)
			same, err := s.PreKeys.GetOrGenPreKeys(ctx, 2)
			require.NoError(t, err)
			require.EqualValues(t, 4, same[1].KeyID)
		},
	},
	{
		name: "not enough that are not uploaded",
		do: func(t *testing.T, s *Subject) {
			_, err := s.PreKeys.GetOrGenPreKeys(ctx, 2)
			require.NoError(t, err)
			more, err := s.PreKeys.GetOrGenPreKeys(ctx, 5)
			require.NoError(t, err)
			require.Len(t, more, 5)
			require.EqualValues(t, 5, more[4].KeyID)
		},
		check: func(t *testing.T, s *Subject) {
			all, err := s.PreKeys.GetOrGenPreKeys(ctx, 5)
			require.NoError(t, err)
			require.EqualValues(t, 1, all[0].KeyID)
			require.EqualValues(t, 5, all[4].KeyID)
		},
	},
	{
		name: "ids after removal",
		do: func(t *testing.T, s *Subject) {
			_, err := s.PreKeys.GetOrGenPreKeys(ctx, 3)
			require.NoError(t, err)
			require.NoError(t, s.PreKeys.RemovePreKey(ctx, 3))
		},
		check: func(t *testing.T, s *Subject) {
			one, err := s.PreKeys.GenOnePreKey(ctx)
			require.NoError(t, err)
			if s.Differs("pre-key ids") {
				require.Greater(t, one.KeyID, uint32(3))
			} else {
				require.EqualValues(t, 3, one.KeyID)
			}
			require.NoError(t, s.PreKeys.RemovePreKey(ctx, one.KeyID))
		},
	},
}
