package media

// What clients ask for:
//
//	GET    <direct path>&hash=…&mms-type=…                      a file, which must have that hash and kind
//	POST   /mms/<kind>/<hash>?token=<hash>&auth=…               an upload; newsletters have another prefix and no encryption
//	DELETE /mms/<kind>/<hash>?token=<hash>&d_md=<path>&auth=…   the end of a file
//
// Hashes are in URL-safe base64. Whatever does not fit together is refused, so that a wrong request does not go unseen.

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

// maxUpload is more than any test uploads.
const maxUpload = 64 << 20

// ServeHTTP implements [http.Handler].
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if state := s.nextFailure(); state != 0 {
		w.WriteHeader(state)
		return
	}
	switch r.Method {
	case http.MethodGet:
		s.download(w, r)
	case http.MethodPost:
		s.upload(w, r)
	case http.MethodDelete:
		s.remove(w, r)
	default:
		s.refuse(w, http.StatusMethodNotAllowed)
	}
}

func (s *Store) nextFailure() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.failures) == 0 {
		return 0
	}
	state := s.mu.failures[0]
	s.mu.failures = s.mu.failures[1:]
	s.mu.stats.Failed++
	return state
}

func (s *Store) refuse(w http.ResponseWriter, state int) {
	s.mu.Lock()
	s.mu.stats.Refused++
	s.mu.Unlock()
	w.WriteHeader(state)
}

func (s *Store) download(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	s.mu.Lock()
	f, ok := s.mu.files[r.URL.Path]
	wanted := (query.Get("hash") == "" || query.Get("hash") == f.hash) && (query.Get("mms-type") == "" || query.Get("mms-type") == f.kind)
	if ok && wanted {
		s.mu.stats.Downloads++
	}
	s.mu.Unlock()
	switch {
	case !ok:
		s.refuse(w, http.StatusGone)
	case !wanted:
		s.refuse(w, http.StatusForbidden)
	default:
		_, _ = w.Write(f.data) // a client that has gone away
	}
}

func (s *Store) upload(w http.ResponseWriter, r *http.Request) {
	kind, token, ok := s.authorized(r)
	if !ok {
		s.refuse(w, http.StatusUnauthorized)
		return
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxUpload))
	if err != nil || base64.URLEncoding.EncodeToString(hash(data)) != token {
		s.refuse(w, http.StatusBadRequest)
		return
	}
	var ref Reference
	s.mu.Lock()
	s.mu.stats.Uploads++
	s.placeLocked(&ref, file{data: data, kind: kind, hash: token})
	s.mu.Unlock()
	_ = json.NewEncoder(w).Encode(map[string]string{ // a client that has gone away
		"url": ref.URL, "direct_path": ref.DirectPath, "handle": ref.Handle, "object_id": ref.Handle,
	})
}

func (s *Store) remove(w http.ResponseWriter, r *http.Request) {
	kind, token, ok := s.authorized(r)
	path, err := base64.RawURLEncoding.DecodeString(r.URL.Query().Get("d_md"))
	if !ok || err != nil {
		s.refuse(w, http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	f := s.mu.files[string(path)]
	known := f.hash == token && f.kind == kind
	if known {
		delete(s.mu.files, string(path))
		s.mu.stats.Deletions++
	}
	s.mu.Unlock()
	if !known {
		s.refuse(w, http.StatusNotFound)
	}
}

// authorized reads kind and hash of a file from a path like /mms/image/<hash>, and whether the client may name them.
func (s *Store) authorized(r *http.Request) (kind, token string, ok bool) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(parts) < 3 || query.Get("auth") != s.mu.auth || query.Get("token") != parts[len(parts)-1] {
		return "", "", false
	}
	kind = parts[len(parts)-2]
	return strings.TrimPrefix(kind, "newsletter-"), parts[len(parts)-1], true
}
