package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A process that was killed and is still in the load balancer is skipped, also by requests that have a body.
func TestTheLoadBalancerSkipsAProcessThatIsDead(t *testing.T) {
	t.Parallel()
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	alive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer alive.Close()
	front := httptest.NewServer(&cluster{running: []*gatewayProcess{{address: dead.URL}, {address: alive.URL}}})
	defer front.Close()
	for range 4 { // each of the two is the first one twice
		response, err := http.Post(front.URL, "text/plain", strings.NewReader("hello"))
		require.NoError(t, err)
		answer, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, "hello", string(answer))
	}
}
