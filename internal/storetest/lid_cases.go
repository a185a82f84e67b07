package storetest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

func checkPair(t *testing.T, s *Subject, pn, wantLID string) {
	t.Helper()
	asked := types.JID{User: pn, Device: 5, Server: types.DefaultUserServer}
	want := types.EmptyJID
	if wantLID != "" {
		want = types.JID{User: wantLID, Device: 5, Server: types.HiddenUserServer}
	}
	got, err := s.LIDs.GetLIDForPN(ctx, asked)
	require.NoError(t, err)
	require.Equal(t, want, got, "with the device of the question")
	many, err := s.LIDs.GetManyLIDsForPNs(ctx, []types.JID{asked})
	require.NoError(t, err)
	require.Equal(t, wantLID != "", len(many) == 1, "only what was found")
	require.Equal(t, want, many[asked])
	if wantLID != "" {
		back, err := s.LIDs.GetPNForLID(ctx, want)
		require.NoError(t, err)
		require.Equal(t, asked, back)
	}
}

var lidCases = []testCase{
	{
		name: "no LID",
		check: func(t *testing.T, s *Subject) {
			checkPair(t, s, "1", "")
			back, err := s.LIDs.GetPNForLID(ctx, lid("91"))
			require.NoError(t, err)
			require.True(t, back.IsEmpty())
			many, err := s.LIDs.GetManyLIDsForPNs(ctx, nil)
			require.NoError(t, err)
			require.Nil(t, many)
			_, err = s.LIDs.GetLIDForPN(ctx, lid("1"))
			require.Error(t, err)
			_, err = s.LIDs.GetPNForLID(ctx, person("1"))
			require.Error(t, err)
			require.Error(t, s.LIDs.PutLIDMapping(ctx, person("1"), person("1")))
			require.Error(t, s.LIDs.PutLIDMapping(ctx, lid("1"), lid("1")))
			require.NoError(t, s.LIDs.PutManyLIDMappings(ctx, nil))
		},
	},
	{
		name: "one LID for a phone number and one phone number for a LID",
		do: func(t *testing.T, s *Subject) {
			checkPair(t, s, "1", "") // what was absent is found later
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("91"), person("1")))
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("91"), person("1")))
			require.NoError(t, s.LIDs.PutManyLIDMappings(ctx, []store.LIDMapping{
				{LID: lid("92"), PN: person("2")}, {LID: person("3"), PN: lid("93")}, {}, {LID: lid("94"), PN: person("4")}, {LID: lid("94"), PN: person("4")},
			}))
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("95"), person("2")))
			require.NoError(t, s.LIDs.PutLIDMapping(ctx, lid("94"), person("5")))
		},
		check: func(t *testing.T, s *Subject) {
			for pn, want := range map[string]string{"1": "91", "2": "95", "3": "", "4": "", "5": "94"} {
				checkPair(t, s, pn, want)
			}
			old, err := s.LIDs.GetPNForLID(ctx, lid("92"))
			require.NoError(t, err)
			require.True(t, old.IsEmpty())
		},
	},
}
