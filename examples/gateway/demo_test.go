package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The demo as it is: processes are killed and replaced in turn, under traffic, and it finds that nothing was lost.
func TestTheDemoLosesNothingWhateverProcessEnds(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-demo-pace", "3s")
	deploys := func() int { return strings.Count(d.said(), "gets SIGTERM") }
	require.Eventually(t, func() bool { return deploys() >= 2 || d.over() }, 2*atMost, 50*time.Millisecond)
	require.GreaterOrEqual(t, deploys(), 2, d.said())
	said := d.end(t)
	require.GreaterOrEqual(t, strings.Count(said, "is killed, without a chance to let go"), 2)
	counts := regexp.MustCompile(`(?m)^Instances that were linked: 20\nQR codes: 20\nMessages that came in: (\d+), webhooks: (\d+)\nMessages that were sent: (\d+), arrived: (\d+)\n` +
		`Messages that nobody could read: 0\nMessage keys used twice: 0$`).FindStringSubmatch(said)
	require.NotNil(t, counts, said)
	require.Equal(t, counts[1], counts[2])
	require.Equal(t, counts[3], counts[4])
	require.Greater(t, len(counts[1]), 1, "at least ten messages")
}
