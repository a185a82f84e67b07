package pgstore

import (
	"sync"
	"time"
)

// spoiltMost is how long a process leaves an instance alone at the most that it could not open.
const spoiltMost = 5 * time.Minute

// spoilt is what Claim could not open, and leaves alone for a while: for a lease, and each time for twice as long. Others may try meanwhile: their library may be
// newer, or have the key.
type spoilt struct {
	mu  sync.Mutex
	ids map[string]*failures
}

// failures are those of one instance, one after the other.
type failures struct {
	n     int
	until time.Time
}

// failed notes that an instance could not be opened, and forgets those of long ago.
func (s *spoilt) failed(id string, lease time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = make(map[string]*failures)
	}
	for other, f := range s.ids {
		if time.Since(f.until) > 2*spoiltMost {
			delete(s.ids, other)
		}
	}
	f := s.ids[id]
	if f == nil {
		f = new(failures)
		s.ids[id] = f
	}
	pause := lease
	for range f.n {
		pause = min(2*pause, spoiltMost)
	}
	f.n, f.until = f.n+1, time.Now().Add(min(pause, spoiltMost))
}

// opened notes that an instance was opened.
func (s *spoilt) opened(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}

// now lists those that are to be left alone; it is never nil.
func (s *spoilt) now() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := []string{}
	for id, f := range s.ids {
		if time.Now().Before(f.until) {
			ids = append(ids, id)
		}
	}
	return ids
}
