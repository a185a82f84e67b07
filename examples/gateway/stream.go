package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// stream is what happens to an instance, for any number of people who look on: those who come late are told the latest events first, and
// those who do not keep up are cut off, and come again.
type stream struct {
	mu        sync.Mutex
	keep      int
	kept      []happening
	bytes     int // of kept
	listeners map[chan happening]bool
	over      bool
}

// happening is an event of a stream.
type happening struct {
	Type string
	Data []byte
}

// keptBytes is how much is kept of the latest events, of which one is kept in any case: whoever writes to an instance chooses how long a text is.
const keptBytes = 256 << 10

// behind is how many events a listener may be behind.
const behind = 64

func newStream(keep int) *stream {
	return &stream{keep: keep, listeners: make(map[chan happening]bool)}
}

// newHappening makes an event: it has the time and its type in it.
func newHappening(kind string, data any) happening {
	encoded, err := json.Marshal(struct {
		Time time.Time `json:"time"`
		Type string    `json:"type"`
		Data any       `json:"data"`
	}{time.Now().UTC(), kind, data})
	if err != nil {
		encoded = []byte(`{}`) // what is told of is always our own, and can be encoded
	}
	return happening{kind, encoded}
}

// publish tells of something.
func (s *stream) publish(kind string, data any) {
	h := newHappening(kind, data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += len(h.Data)
	for s.kept = append(s.kept, h); len(s.kept) > s.keep || s.bytes > keptBytes && len(s.kept) > 1; s.kept = s.kept[1:] {
		s.bytes -= len(s.kept[0].Data)
		s.kept[0] = happening{} // the array stays for a while
	}
	for listener := range s.listeners {
		select {
		case listener <- h:
		default:
			delete(s.listeners, listener)
			close(listener)
		}
	}
}

// listen returns what was kept and a channel of what comes, which is closed at the end. Call leave.
func (s *stream) listen() (kept []happening, events <-chan happening, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	listener := make(chan happening, behind)
	if s.over {
		close(listener)
	} else {
		s.listeners[listener] = true
	}
	return slices.Clone(s.kept), listener, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, listener)
	}
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for listener := range s.listeners {
		close(listener)
	}
	clear(s.listeners)
	s.over = true
}

const (
	heartbeat    = 15 * time.Second // so that proxies in between do not take a silent stream for a dead one
	writeTimeout = 10 * time.Second // of one event: who does not read is cut off
)

// eventWriter writes server-sent events.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// startEvents begins an answer that lasts, for which the server's own time limits are too short.
func startEvents(w http.ResponseWriter) *eventWriter {
	e := &eventWriter{w, http.NewResponseController(w)}
	_ = e.rc.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	_ = e.comment("hello")
	return e
}

func (e *eventWriter) write(format string, args ...any) error {
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := fmt.Fprintf(e.w, format, args...); err != nil {
		return err
	}
	return e.rc.Flush()
}

func (e *eventWriter) event(h happening) error {
	return e.write("event: %s\ndata: %s\n\n", h.Type, h.Data)
}

func (e *eventWriter) comment(text string) error { return e.write(": %s\n\n", text) }

// serveStream writes a stream until it ends, the caller goes, or last says so. After each event, then is called, which may write more.
func (g *gateway) serveStream(w http.ResponseWriter, r *http.Request, s *stream, then func(e *eventWriter, h happening) (last bool)) {
	kept, happenings, leave := s.listen()
	defer leave()
	e := startEvents(w)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for _, h := range kept {
		if e.event(h) != nil || then(e, h) {
			return
		}
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case <-g.streams.Done():
			return
		case <-tick.C:
			if e.comment("still there") != nil {
				return
			}
		case h, ok := <-happenings:
			if !ok || e.event(h) != nil || then(e, h) {
				return
			}
		}
	}
}
