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
