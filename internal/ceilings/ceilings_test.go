package ceilings

import (
	"flag"
	"testing"

	"github.com/stretchr/testify/require"
)

var walks = flag.Int("ceilings.walks", 20_000, "how many walks with all rules")

func TestAllRules(t *testing.T) {
	t.Parallel()
	sends := 0
	for seed := range uint64(*walks) {
		n, repeated := walk(seed, nil)
		sends += n
		require.Empty(t, repeated, "walk %d", seed)
	}
	t.Logf("%d walks, %d messages", *walks, sends)
}
