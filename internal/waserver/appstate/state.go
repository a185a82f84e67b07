// Package appstate is the app state of an account: settings that the phone and its companions share through the server
// (names of contacts, mutes, archives, pins, the push name). It plays two parts. The server keeps, per collection, a
// version, the patches that led to it and sometimes a snapshot, all encrypted. The phone holds the keys, changes settings,
// hands keys to companions and mends what they cannot read.
//
// A setting is found by its index, a JSON array of strings. A mutation sets or removes one and is encrypted under a sync
// key; it carries a MAC of its value and a MAC of its index, which stands for the index where it must not be read. The
// hash of a collection is the sum of the expanded value MACs of all settings that are set (LTHash), so that it can be
// kept by adding and subtracting. A patch is a list of mutations with a MAC of the collection after it and a MAC of its
// own. Everything that a companion uploads is checked with the keys, which the real server does not have.
package appstate

import (
	"fmt"
	"slices"
	"sync"

	"go.mau.fi/whatsmeow"
	client "go.mau.fi/whatsmeow/appstate"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

// What a Config without a value of its own gets.
const (
	PageSizeDefault      = 50
	ExternalAboveDefault = 100
)

// Media is where snapshots and large patches are put for clients to fetch.
type Media interface {
	Put(plaintext []byte, kind whatsmeow.MediaType) (media.Reference, error)
}

// Config says how a [State] answers. Media is required.
type Config struct {
	Media Media
	// PageSize is how many patches one answer holds at most. Defaults to PageSizeDefault.
	PageSize int
	// ExternalAbove is the number of mutations above which those of a patch are put into a blob of their own. Defaults
	// to ExternalAboveDefault.
	ExternalAbove int
}

// WithDefaults is a copy of the configuration with every field set.
func (c Config) WithDefaults() Config {
	if c.PageSize == 0 {
		c.PageSize = PageSizeDefault
	}
	if c.ExternalAbove == 0 {
		c.ExternalAbove = ExternalAboveDefault
	}
	return c
}

// State is the app state of one account. It is safe for concurrent use.
type State struct {
	cfg Config
	mu  struct {
		sync.Mutex
		keys        []*syncKey // the last one is in use
		collections map[client.WAPatchName]*collection
		problems    []string
	}
}

// New makes an empty app state with one key.
func New(cfg Config) *State {
	s := &State{cfg: cfg.WithDefaults()}
	s.mu.collections = make(map[client.WAPatchName]*collection)
	for _, name := range client.AllPatchNames {
		s.mu.collections[name] = newCollection(name)
	}
	s.AddKey()
	return s
}

// Version is the version of a collection.
func (s *State) Version(name client.WAPatchName) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.collections[name].version
}

// Problems are the things that clients did and should not have: uploads that do not verify, versions from the future.
func (s *State) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mu.problems)
}

func (s *State) problemLocked(format string, args ...any) {
	s.mu.problems = append(s.mu.problems, fmt.Sprintf(format, args...))
}
