package filewitness_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

func TestMarksAreKept(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "marks.json")
	f, err := filewitness.Open(path)
	require.NoError(t, err)
	none, err := f.Load(ctx, "a")
	require.NoError(t, err)
	require.Zero(t, none)
	require.NoError(t, f.Save(ctx, map[string]pgstore.Mark{"a": {Epoch: 3, Seq: 7}, "b": {Epoch: 1}}))
	require.NoError(t, f.Save(ctx, map[string]pgstore.Mark{"a": {Epoch: 2, Seq: 1}}))
	f, err = filewitness.Open(path)
	require.NoError(t, err)
	got, err := f.Load(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, pgstore.Mark{Epoch: 2, Seq: 1}, got, "a database that was healed is behind what there was")
	got, err = f.Load(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, pgstore.Mark{Epoch: 1}, got)
	require.NoError(t, f.Save(ctx, map[string]pgstore.Mark{"b": {}}))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(data), "b\"", "nothing is left of one that was erased")
	left, err := filepath.Glob(path + ".*")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAFileThatCannotBeReadOrWrittenIsAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, []byte("{"), 0o600))
	_, err := filewitness.Open(broken)
	require.Error(t, err)
	f, err := filewitness.Open(filepath.Join(dir, "missing", "marks"))
	require.NoError(t, err)
	require.Error(t, f.Save(context.Background(), map[string]pgstore.Mark{"a": {}}))
	got, err := f.Load(context.Background(), "a")
	require.NoError(t, err)
	require.Zero(t, got)
}
