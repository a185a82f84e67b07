package portable_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

func TestNewMakesEveryKind(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{
		portable.KindCredentials, portable.KindPreKeyCounter, portable.KindIdentity, portable.KindSession, portable.KindPreKey, portable.KindSenderKey, portable.KindAppStateKey,
		portable.KindAppStateVersion, portable.KindAppStateMAC, portable.KindContact, portable.KindChatSettings, portable.KindMessageSecret, portable.KindPrivacyToken,
		portable.KindNCTSalt, portable.KindBufferedEvent, portable.KindOutgoingEvent, portable.KindLIDPair,
	} {
		e := portable.New(kind)
		require.NotNil(t, e, kind)
		require.Equal(t, kind, e.Kind())
		require.NotPanics(t, func() { _ = e.Name() })
	}
	require.Nil(t, portable.New("of a later version"))
}

// Whatever a text holds, it comes out of JSON as it went in.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "Ada", "nul\x00", "broken\xff", `{"b64":"AA=="}`, "\U0001F469\u200d\U0001F52C", "\u2028<&>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		data, err := json.Marshal(portable.Text(s))
		require.NoError(t, err)
		var back portable.Text
		require.NoError(t, json.Unmarshal(data, &back))
		require.Equal(t, s, string(back))
	})
}
