package media

// The files, by their path. A path is made of a number and, like the real ones, ends in a query, to which clients
// append theirs.

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.mau.fi/whatsmeow"
)

// ErrNotFound says that there is no file at a path, or no longer.
var ErrNotFound = errors.New("media: no such file")

// Stats counts what clients did.
type Stats struct {
	Uploads, Downloads, Deletions int
	Refused                       int // requests that were answered with an error of the client
	Failed                        int // requests that were answered with an error that FailNext asked for
}

// Store is the server's files. It is an [net/http.Handler] for the requests of clients, and safe for concurrent use.
type Store struct {
	mu struct {
		sync.Mutex
		files    map[string]file // by path without the query
		next     int
		auth     string // what uploads and deletions must show
		stats    Stats
		failures []int // states with which the next requests are answered
	}
}

// file is an uploaded file.
type file struct {
	data []byte
	kind string // as in URLs
	hash string // of the data, in base64 as in URLs
}

// New makes an empty store.
func New() *Store {
	s := &Store{}
	s.mu.files = make(map[string]file)
	s.mu.auth = rand.Text()
	return s
}

// Put encrypts and keeps a file that the server or a simulated phone has for clients.
func (s *Store) Put(plaintext []byte, kind whatsmeow.MediaType) (Reference, error) {
	data, ref, err := seal(plaintext, kind)
	if err != nil {
		return Reference{}, err
	}
	name, ok := kindNames[kind]
	if !ok {
		return Reference{}, fmt.Errorf("media: unknown kind %q", kind)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.placeLocked(&ref, file{data: data, kind: name, hash: base64.URLEncoding.EncodeToString(ref.FileEncSHA256)})
	return ref, nil
}

// Open decrypts a file that somebody put or uploaded, as the recipient of a reference does.
func (s *Store) Open(ref Reference) ([]byte, error) {
	path, _, _ := strings.Cut(ref.DirectPath, "?")
	s.mu.Lock()
	f, ok := s.mu.files[path]
	s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, path)
	}
	return open(f.data, ref)
}

// Delete forgets a file, as the real server does after some weeks: who asks for it then is told that it is gone.
func (s *Store) Delete(directPath string) {
	path, _, _ := strings.Cut(directPath, "?")
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.files, path)
}

// Len is how many files there are.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.files)
}

// Stats is what clients did so far.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.stats
}

// FailNext answers the next requests with these HTTP states.
func (s *Store) FailNext(states ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.failures = append(s.mu.failures, states...)
}

// placeLocked gives a file its path. The store's lock must be held.
func (s *Store) placeLocked(ref *Reference, f file) {
	s.mu.next++
	path := fmt.Sprintf("/v/t62.%d/%d_n.enc", 7000+s.mu.next%1000, s.mu.next)
	s.mu.files[path] = f
	ref.DirectPath = path + "?ccb=11-4&oh=" + rand.Text()
	ref.URL = "https://" + Host + ref.DirectPath
	ref.Handle = rand.Text()
}
