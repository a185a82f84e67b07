package secrettest_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
)

// The search finds what it is for, however it is written.
func TestTheSearchFinds(t *testing.T) {
	t.Parallel()
	raw := []byte("0123456789\x00\xff-secret-\xfb\xef\xbe-of-somebody")
	s := new(secrettest.Secrets)
	s.Add("x", raw)
	for name, text := range map[string]string{
		"raw": string(raw), "hex": hex.EncodeToString(raw), "%X": fmt.Sprintf("%X", raw), "%v": fmt.Sprintf("%d", raw), "%#v": fmt.Sprintf("%q", raw),
		"base64": base64.StdEncoding.EncodeToString(raw), "url": base64.URLEncoding.EncodeToString(raw), "json": string(must(json.Marshal(raw))),
		"in the midst":  base64.StdEncoding.EncodeToString([]byte("a" + string(raw) + "bc")),
		"in the midst2": base64.RawURLEncoding.EncodeToString([]byte("ab" + string(raw) + "c")),
	} {
		require.NotEmpty(t, s.FoundIn("around "+text+" it"), name)
	}
	require.Empty(t, s.FoundIn("nothing of the kind"))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
