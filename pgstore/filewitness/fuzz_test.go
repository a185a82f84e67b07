package filewitness_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

// Whatever a file is called and holds, it is refused, or it keeps the marks of instances of any name, and those that it had.
func FuzzAFileIsRefusedOrKeepsItsMarks(f *testing.F) {
	ctx := context.Background()
	for _, content := range []string{"", "{}", "null", "[]", "{", `{"a":null}`, `{"a":{"Epoch":1}} {}`, `{"a":{"Epoch":1,"Seq":2}}`, "\xff", "\x00"} {
		f.Add("marks", content, "b", int64(1), int64(2))
	}
	for _, name := range []string{"", ".", "..", "nul\x00", "broken\xff", "star*", "%s", strings.Repeat("n", 300)} {
		f.Add(name, `{"a":{"Epoch":1,"Seq":2}}`, name, int64(3), int64(4))
	}
	f.Fuzz(func(t *testing.T, name, content, instance string, epoch, seq int64) {
		path := t.TempDir() + "/" + strings.ReplaceAll(name, "/", "_")
		_ = os.WriteFile(path, []byte(content), 0o600)
		file, err := filewitness.Open(path)
		if err != nil {
			return
		}
		before, err := file.Load(ctx, "a")
		require.NoError(t, err)
		mark := pgstore.Mark{Epoch: epoch, Seq: seq}
		if err = file.Save(ctx, map[string]pgstore.Mark{instance: mark}); err != nil {
			mark, err = file.Load(ctx, instance)
			require.NoError(t, err)
		} else {
			got, err := file.Load(ctx, instance)
			require.NoError(t, err)
			require.Equal(t, mark, got)
		}
		if instance == "a" {
			before = mark
		}
		again, err := filewitness.Open(path)
		require.NoError(t, err)
		for name, want := range map[string]pgstore.Mark{instance: mark, "a": before} {
			got, err := again.Load(ctx, name)
			require.NoError(t, err)
			require.Equal(t, want, got, "%q", name)
		}
		left, err := os.ReadDir(filepath.Dir(path))
		require.NoError(t, err)
		require.LessOrEqual(t, len(left), 1, "nothing temporary")
	})
}
