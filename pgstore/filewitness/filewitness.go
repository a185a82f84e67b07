// Package filewitness keeps the marks of a pgstore container in a small file, outside of the database.
//
// The file has to be where a snapshot of the database does not put it back as well, and it is one container's: it knows
// nothing of what others have written. A fleet whose instances move between machines needs a [pgstore.Witness] that all of them reach.
package filewitness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"unicode/utf8"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// File is a witness that keeps its marks in a JSON file. It is safe for concurrent use by one process.
type File struct {
	path  string
	mu    sync.Mutex
	marks map[string]pgstore.Mark
}

var _ pgstore.Witness = (*File)(nil)

// Open reads the file at path, which need not exist yet. There is nothing to close.
func Open(path string) (*File, error) {
	f := &File{path: path, marks: make(map[string]pgstore.Mark)}
	data, err := os.ReadFile(path) //nolint:gosec // the caller's own
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil
	case err != nil:
		return nil, fmt.Errorf("filewitness: %w", err)
	}
	if err = json.Unmarshal(data, &f.marks); err == nil && f.marks == nil { // null, which Save does not write
		err = errors.New("holds no marks")
	}
	if err != nil {
		return nil, fmt.Errorf("filewitness: %s: %w", path, err)
	}
	return f, nil
}

// Load implements [pgstore.Witness].
func (f *File) Load(_ context.Context, instance string) (pgstore.Mark, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.marks[instance], nil
}

// Save implements [pgstore.Witness]. The file is replaced as a whole, so that a crash leaves the old one or the new one. The name of an instance is
// UTF-8, as in pgstore: JSON would keep another one as a name that is not its own.
func (f *File) Save(_ context.Context, marks map[string]pgstore.Mark) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range marks {
		if !utf8.ValidString(name) {
			return fmt.Errorf("filewitness: instance %q is not UTF-8", name)
		}
	}
	next := maps.Clone(f.marks)
	maps.Copy(next, marks)
	maps.DeleteFunc(next, func(_ string, m pgstore.Mark) bool { return m == pgstore.Mark{} }) // as Load answers without one
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("filewitness: %w", err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".*")
	if err != nil {
		return fmt.Errorf("filewitness: %w", err)
	}
	_, err = temporary.Write(data)
	err = errors.Join(err, temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), f.path)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
		return fmt.Errorf("filewitness: %w", err)
	}
	f.marks = next
	return nil
}
