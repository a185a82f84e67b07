package pgstore

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// strangeTexts are what strangers and careless callers send.
var strangeTexts = []string{
	"", "a", "a|b", `\`, `\p`, `\h`, "\x00", "\xff\xfe", "a\x00b\xffc|d\\e", "\U0001F469\u200d\U0001F52C", `{"record":"x"}`, "<&>\u2028",
	strings.Repeat("x", maxIDBytes), strings.Repeat("ä", maxIDBytes), strings.Repeat("|", maxIDBytes), strings.Repeat("n", 1<<20),
}

func FuzzP10KeyIDsAreTextAndDifferWhereTheirPartsDo(f *testing.F) {
	for i, s := range strangeTexts {
		f.Add(s, strangeTexts[(i+1)%len(strangeTexts)], strangeTexts[(i+3)%len(strangeTexts)], strangeTexts[(i+5)%len(strangeTexts)])
	}
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		require.Equal(t, a, unescapeID(escapeID(a)))
		for _, id := range []string{keyID(a), keyID(a, b)} {
			require.True(t, utf8.ValidString(id))
			require.NotContains(t, id, "\x00")
			require.LessOrEqual(t, len(id), maxIDBytes+len(`\h`)+64)
		}
		require.Equal(t, a == c, keyID(a) == keyID(c))
		require.Equal(t, a == c && b == d, keyID(a, b) == keyID(c, d))
		require.NotEqual(t, keyID(a, b), keyID(a+b), "a separator is not a part of a part")
		unescapeID(b) // of anything that a row may hold
	})
}

func FuzzP10TextIsStoredLosslessly(f *testing.F) {
	for _, s := range strangeTexts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		stored, err := json.Marshal(text(s))
		require.NoError(t, err)
		require.True(t, utf8.Valid(stored))
		require.NotContains(t, string(stored), `\u0000`)
		var back text
		require.NoError(t, json.Unmarshal(stored, &back))
		require.Equal(t, s, string(back))
	})
}

func FuzzP10RecordsComeOutAsTheyWentIn(f *testing.F) {
	for _, s := range append(strangeTexts,
		`{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"a","ChainKey":{"Key":"b","Index":1}}}}`,
		`{"SenderKeyStates":[{"KeyID":1}]}`, `{"SenderKeyStates":[{"KeyID":1}]`+"\x00}", `{"record_b64":"eA=="}`) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		looksLikeRecord(record)
		ratchetOf(record)
		senderKeyID(record)
		if len(record) == 0 {
			return // refused at the call
		}
		stored, err := encode(newRecord(record))
		require.NoError(t, err)
		require.True(t, json.Valid([]byte(stored)))
		back, err := decode(typeSession, []byte(stored))
		require.NoError(t, err)
		got, err := back.(*recordValue).bytes()
		require.NoError(t, err)
		require.True(t, bytes.Equal(record, got))
	})
}

func FuzzP10NoRowMakesTheDecoderPanic(f *testing.F) {
	for _, s := range append(strangeTexts, `{}`, `{"value":"eA=="}`, `{"private":"eA==","uploaded":true}`, `{"device":{}}`, `{"jid":{"b64":"AA=="}}`, `null`, `[]`) {
		for kind := range typeCount {
			f.Add(uint8(kind), []byte(s))
		}
	}
	f.Fuzz(func(_ *testing.T, kind uint8, data []byte) {
		v, err := decode(cache.Type(kind)%typeCount, data)
		if err != nil {
			return
		}
		_ = v.size()
		if rec, ok := v.(*recordValue); ok {
			_, _ = rec.bytes()
		}
	})
}
