package waserver

// How a client is pointed at a server: its three HTTP clients get a transport that goes to the server whatever the
// address, and the root of the certificate chain, a variable of the client's package, is replaced by ours. That variable
// is read without a lock by every handshake, so it is set once in a process, and all servers share one root key.

import (
	"errors"
	"net/http"
	"net/url"
	"sync"

	"go.mau.fi/whatsmeow"
)

var (
	trustOnce sync.Once
	trusted   [32]byte
)

// Endpoint is all that a client needs to know of a server. It can be handed to another process as JSON.
type Endpoint struct {
	URL     string   `json:"url"`
	RootKey [32]byte `json:"root_key"`
}

// Endpoint is where clients find the server.
func (s *Server) Endpoint() Endpoint { return Endpoint{URL: s.url, RootKey: TrustedRoot()} }

// Attach points a client at the server. It must be called before the client connects.
func (s *Server) Attach(client *whatsmeow.Client) error { return s.Endpoint().Attach(client) }

// Attach points a client at the server. It must be called before the client connects, and the first call in a process
// before any client of that process connects anywhere. One process can trust only one root key.
func (e Endpoint) Attach(client *whatsmeow.Client) error {
	target, err := url.Parse(e.URL)
	if err != nil {
		return err
	}
	trustOnce.Do(func() {
		trusted = e.RootKey
		whatsmeow.WACertPubKey = e.RootKey
	})
	if trusted != e.RootKey {
		return errors.New("waserver: another root key is trusted in this process")
	}
	h := &http.Client{Transport: &redirect{to: target, next: &http.Transport{DisableKeepAlives: true}}}
	client.SetWebsocketHTTPClient(h)
	client.SetPreLoginHTTPClient(h)
	client.SetMediaHTTPClient(h)
	return nil
}

// redirect sends every request to one server and leaves the Host header as it was.
type redirect struct {
	to   *url.URL
	next http.RoundTripper
}

// RoundTrip implements [http.RoundTripper].
func (r *redirect) RoundTrip(request *http.Request) (*http.Response, error) {
	clone := request.Clone(request.Context())
	if clone.Host == "" {
		clone.Host = clone.URL.Host
	}
	clone.URL.Scheme, clone.URL.Host = r.to.Scheme, r.to.Host
	return r.next.RoundTrip(clone)
}
