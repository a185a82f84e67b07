package pictures

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the pictures anew")

// measurements is what `go test ./pgstore -run '^$' -bench 'BenchmarkPaths/^(receive|send|send-64|group-receive|group-send)$' -benchtime 1500x` printed.
const measurements = "paths.txt"

func TestThePicturesAreWhatIsDrawn(t *testing.T) {
	t.Parallel()
	results, err := os.ReadFile(measurements)
	require.NoError(t, err)
	var architecture, way, latency bytes.Buffer
	Architecture(&architecture)
	WayOfAWrite(&way)
	require.NoError(t, Latency(&latency, bytes.NewReader(results)))
	for file, drawn := range map[string][]byte{"architecture.svg": architecture.Bytes(), "write.svg": way.Bytes(), "latency.svg": latency.Bytes()} {
		if *update {
			require.NoError(t, os.WriteFile(file, drawn, 0o600))
		}
		kept, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, string(kept), string(drawn), "%s: go test ./internal/pictures -update", file)
	}
}

func TestMeasurementsAreRead(t *testing.T) {
	t.Parallel()
	paths, err := read(strings.NewReader("goos: linux\nBenchmarkPaths/send-64-2   10  123 ns/op  1.2 Reserved/maps  1.1 WriteBehind/maps  12.5 sqlstore/maps  14 µs-maps\nok\n"))
	require.NoError(t, err)
	require.Equal(t, []measured{{"send-64", 1.2, 12.5}}, paths)
	_, err = read(strings.NewReader("BenchmarkPaths/send-2 10 many ns/op\n"))
	require.Error(t, err)
}
