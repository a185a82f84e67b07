package main_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// normal is output without what is another each time: times, numbers of devices, process ids.
func normal(output string) string {
	for _, change := range []struct{ of, to string }{
		{`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?`, "TIME"},
		{`\b\d{12,}:`, "NUMBER:"},
		{`\b\d+(\.\d+)?(ms|s)\b`, "AGE"},
		{`\b\d+\.\d\b`, "RATE"},
		{`-{2,}`, "--"},
		{` +`, " "},
	} {
		output = regexp.MustCompile(change.of).ReplaceAllString(output, change.to)
	}
	return strings.TrimSpace(output)
}

// What the README shows of the command is what the command says.
func TestReadmeShowsWhatTheCommandSays(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../README.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(readme), "\n## Command line\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	require.Contains(t, section, "go install "+path+"@latest")

	s := newStage(t)
	s.pair(s.open(func(cfg *pgstore.Config) { cfg.Owner = "worker-2" }), "shop-3")
	c := s.open()
	s.pair(c, "shop-1")
	s.pair(c, "shop-2")
	require.NoError(t, c.Release(ctx, "shop-2"))
	s.exec(`UPDATE whatsmeow.instances SET process = gen_random_uuid() WHERE id = 'shop-3'`) // its process is gone

	blocks := regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(section, -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		for _, example := range strings.Split("\n"+block[1], "\n$ ")[1:] {
			line, want, _ := strings.Cut(example, "\n")
			args := strings.Fields(line)
			require.Equal(t, "whatsmeow-pgstore", args[0])
			r := s.run(args[1:]...)
			require.Equal(t, normal(want), normal(r.out+r.errs), line)
		}
	}
}
