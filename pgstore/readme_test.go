package pgstore_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README names the test of each thing that it promises.
func TestReadmeNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	root := os.DirFS("..")
	var code strings.Builder
	require.NoError(t, fs.WalkDir(root, ".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			text, err := fs.ReadFile(root, path)
			code.Write(text)
			return err
		}
		return err
	}))
	readme, err := fs.ReadFile(root, "README.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, named)
	for _, name := range named {
		require.Contains(t, code.String(), "func "+name[1]+"(", "named in README.md")
	}
}

// Its links lead somewhere: to a heading of it, or to a file.
func TestReadmeLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	anchors := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(readme), -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "") // as GitHub does
		anchors["#"+strings.ReplaceAll(anchor, " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(([^)\s]+)\)|src="([^"]+)"`).FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, links)
	for _, link := range links {
		switch to := link[1] + link[2]; {
		case strings.HasPrefix(to, "https://"):
		case strings.HasPrefix(to, "#"):
			require.True(t, anchors[to], to)
		default:
			file, _, _ := strings.Cut(to, "#")
			_, err := os.Stat("../" + file)
			require.NoError(t, err, to)
		}
	}
}
