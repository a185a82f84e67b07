package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// requestsOf is a request for every route that needs a key, and for paths and methods that do not exist.
func requestsOf() (all []string) {
	for _, route := range (&gateway{metrics: &metrics{}}).routes() {
		if !route.public {
			all = append(all, strings.ReplaceAll(route.pattern, "{id}", "nobody"))
		}
	}
	return append(all, "GET /v1/nothing", "GET /.env", "PUT /v1/instances", "TRACE /v1/export", "POST /metrics")
}

func TestNothingIsAnsweredWithoutTheKey(t *testing.T) {
	t.Parallel()
	g := newBench(t).gateway("one")
	ask := func(what string, headers http.Header) (int, http.Header) {
		method, path, _ := strings.Cut(what, " ")
		request, err := http.NewRequest(method, g.base+path, nil)
		require.NoError(t, err)
		for name, values := range headers {
			request.Header[name] = values
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, response.Body)
		require.NoError(t, response.Body.Close())
		return response.StatusCode, response.Header
	}
	for _, what := range requestsOf() {
		for name, headers := range map[string]http.Header{
			"none":          {},
			"wrong":         {"Authorization": {"Bearer not the key, but as long"}},
			"nearly":        {"Authorization": {"Bearer " + testKey[:len(testKey)-1]}},
			"longer":        {"Authorization": {"Bearer " + testKey + "x"}},
			"another way":   {"Authorization": {"Basic " + testKey}},
			"wrong secret":  {secretHeader: {"not the secret, but as long"}},
			"key as secret": {secretHeader: {testKey}},
		} {
			status, header := ask(what, headers)
			require.Equal(t, http.StatusUnauthorized, status, "%s with key: %s", what, name)
			require.Equal(t, "Bearer", header.Get("WWW-Authenticate"))
		}
		status, _ := ask(what, http.Header{"Authorization": {"Bearer " + testKey}})
		if strings.HasPrefix(what, "POST /internal/") { // that is not for callers, whatever key they have
			require.Equal(t, http.StatusUnauthorized, status, what)
		} else {
			require.NotEqual(t, http.StatusUnauthorized, status, what)
		}
	}
	status, _ := ask("POST /v1/instances", http.Header{"Authorization": {"Bearer " + testKey}, "Sec-Fetch-Site": {"cross-site"}})
	require.Equal(t, http.StatusForbidden, status, "the page of another site")
}

// A key is compared in a time that does not tell how much of it is right. It is a long one, so that a comparison that ends early shows.
func TestAKeyIsComparedInConstantTime(t *testing.T) {
	t.Parallel()
	key, equal := strings.Repeat("k", 1<<16), false
	measure := func(guess string) time.Duration {
		best := time.Duration(math.MaxInt64)
		for range 300 {
			began := time.Now()
			equal = same(guess, key)
			best = min(best, time.Since(began))
		}
		return best
	}
	measure(key)
	none, all := measure("x"+key[1:]), measure(key[:len(key)-1]+"x")
	require.False(t, equal)
	require.Less(t, none, 2*all, "%v and %v", none, all)
	require.Less(t, all, 2*none, "%v and %v", none, all) // one that ends at the first difference takes hundreds of times as long for the latter
}

func TestWithoutAKeyOnlyLoopbackIsAnswered(t *testing.T) {
	t.Parallel()
	_, err := parse([]string{"-database-url", "x", "-listen", "0.0.0.0:8080"})
	require.ErrorContains(t, err, "set -api-key and -secret")
	require.ErrorContains(t, err, "set -advertise")
	_, err = parse([]string{"-database-url", "x", "-api-key", "short"})
	require.ErrorContains(t, err, "at least 16 characters")
	_, err = parse([]string{"-database-url", "x", "-advertise", "http://gateway.example/"})
	require.ErrorContains(t, err, "-advertise is not loopback")
	cfg, err := parse([]string{"-database-url", "x", "-advertise", "http://localhost:8080/"})
	require.NoError(t, err)
	require.Equal(t, "http://localhost:8080", cfg.advertise, "paths are appended")
	g := newBench(t).gateway("one", "-api-key", "")
	for host, status := range map[string]int{"": 200, "localhost:8080": 200, "rebound.example": 401, "127.0.0.1.rebound.example:80": 401} {
		for _, secret := range []string{"", cfg.secret} { // the latter is in this program, for everybody to read
			request, err := http.NewRequest(http.MethodGet, g.base+"/v1/instances", nil)
			require.NoError(t, err)
			request.Host = host
			request.Header.Set(secretHeader, secret)
			response, err := http.DefaultClient.Do(request)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, status, response.StatusCode, "%q, with the secret: %t", host, secret != "")
		}
	}
}

func TestRequestsThatAreTooLargeOrTooManyAreRefused(t *testing.T) {
	t.Parallel()
	const rate = 1
	b, began := newBench(t), time.Now()
	g := b.gateway("one", "-max-body", "1000", "-max-media", "5000", "-rate", fmt.Sprint(rate))
	big := strings.Repeat("x", 1000)
	g.problem(t, errTooLarge, http.MethodPost, "/v1/instances", texting{"id": big})
	g.problem(t, errTooLarge, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+4915112345678", "text": big})
	r := g.try(t, http.MethodPost, "/v1/instances/support/media?to=%2B4915112345678", "image/png", bytes.Repeat([]byte("x"), 5001))
	require.Equal(t, http.StatusRequestEntityTooLarge, r.status)
	g.problem(t, errUnknown, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+4915112345678", "text": "hello"}) // it goes on

	// A caller that is faster than the rate, as every machine is, is let in as often as the rate says and no more.
	statuses := make(map[int]int)
	for range 100 {
		statuses[g.try(t, http.MethodGet, "/v1/instances/nobody", "", nil).status]++
	}
	most := int(time.Since(began).Seconds()*rate) + burst(rate)
	require.Positive(t, statuses[http.StatusTooManyRequests])
	require.Positive(t, statuses[http.StatusNotFound])
	require.LessOrEqual(t, statuses[http.StatusNotFound], most)
	require.Equal(t, 100, statuses[http.StatusTooManyRequests]+statuses[http.StatusNotFound])
}

// unfinishedBody is a request whose body never ends.
const unfinishedBody = "POST /v1/instances/a/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + testKey + "\r\nContent-Length: 1000\r\n\r\nx"

// A port scanner that opens ten thousand connections, and one that sends a byte now and then and reads nothing, from one address, keep nobody from
// another address waiting, and cost little memory.
func TestIdleAndSlowConnectionsDoNoHarm(t *testing.T) {
	t.Parallel()
	const idle, kept = 10_000, 1024
	var files syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	if files.Cur < idle+2*kept {
		pgtest.Missing(t, fmt.Sprint(idle+2*kept, " file descriptors"))
	}
	if other, err := net.Listen("tcp", "127.0.0.2:0"); err == nil {
		require.NoError(t, other.Close())
	} else {
		pgtest.Missing(t, "127.0.0.2")
	}
	b := newBench(t)
	g := b.gateway("one", "-max-connections-per-address", fmt.Sprint(kept))
	address := strings.TrimPrefix(g.base, "http://")
	from := func(ip string) *net.Dialer {
		return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: atMost}
	}
	neighbour := &http.Client{Timeout: atMost, Transport: &http.Transport{DialContext: from("127.0.0.2").DialContext, DisableKeepAlives: true}}
	slowest := func() (slowest time.Duration) {
		for range 20 {
			request, err := http.NewRequest(http.MethodGet, g.base+"/v1/instances", nil)
			require.NoError(t, err)
			request.Header.Set("Authorization", "Bearer "+testKey)
			began := time.Now()
			response, err := neighbour.Do(request)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, response.Body)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, http.StatusOK, response.StatusCode)
			slowest = max(slowest, time.Since(began))
		}
		return slowest
	}
	slowest()
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()

	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for i := range idle {
		conn, err := from("127.0.0.1").Dial("tcp", address)
		require.NoError(t, err)
		conns = append(conns, conn)
		switch i % 3 { // a third say nothing, a third begin a request, a third send one whose body never ends
		case 1:
			_, _ = io.WriteString(conn, "GET /v1/instances HTTP/1.1\r\nHost: x\r\nX: ")
		case 2:
			_, _ = io.WriteString(conn, unfinishedBody)
		}
	}
	during := slowest()
	grown := int64(memory()-before) / kept
	t.Logf("with %d connections of another address the slowest of 20 requests took %v; each that was kept cost %d bytes", idle, during, grown)
	require.Less(t, during, headerTimeout, "nobody waits until those who say nothing are cut off")
	require.Less(t, grown, int64(100_000), "bytes for each connection that is kept")

	// They are closed by the server, the ones at once, the others when they have had their time.
	deadline := time.Now().Add(atMost)
	for _, conn := range conns {
		require.NoError(t, conn.SetReadDeadline(deadline))
		_, err := io.Copy(io.Discard, conn)
		if failed, ok := err.(net.Error); ok { //nolint:errorlint // it is what a connection returns
			require.False(t, failed.Timeout(), "the server has closed it")
		}
	}
}

// Callers who use up all connections do not make the gateway look dead, where probes have an address of their own.
func TestProbesAreAnsweredWhenAllConnectionsAreUsedUp(t *testing.T) {
	t.Parallel()
	var probes string
	const most = 8
	g := newBench(t).gatewayWith(seams{probing: func(address net.Addr) { probes = address.String() }}, "one",
		"-max-connections", fmt.Sprint(most), "-probe-listen", "127.0.0.1:0")
	for range most {
		conn, err := net.Dial("tcp", strings.TrimPrefix(g.base, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, unfinishedBody) // it stays for longer than one that says nothing
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: atMost}
	status := func(address string) int {
		response, err := client.Get(address)
		if err != nil {
			return 0
		}
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	require.Zero(t, status(g.base+"/readyz"))
	for path, want := range map[string]int{"/readyz": 200, "/healthz": 200, "/v1/instances": 404, "/metrics": 404} {
		require.Equal(t, want, status("http://"+probes+path), path)
	}
}

// Who does not read a stream is cut off, and keeps nobody from publishing.
func TestWhoDoesNotReadAStreamIsCutOff(t *testing.T) {
	t.Parallel()
	s := newStream(10)
	_, slow, leaveSlow := s.listen()
	defer leaveSlow()
	for i := range behind + 1 {
		s.publish("state", i)
	}
	n := 0
	for range slow {
		n++
	}
	require.Equal(t, behind, n, "then its channel is closed")
	kept, _, leave := s.listen()
	defer leave()
	require.Len(t, kept, 10, "who comes late is told the latest")
	require.Contains(t, string(kept[9].Data), fmt.Sprintf(`"data":%d}`, behind))
}

// A stream outlives the server's time limits, here and through another process, for as long as it is read.
func TestAStreamOutlivesTheTimeLimitsOfRequests(t *testing.T) {
	t.Parallel()
	const limit, events = 2 * time.Second, 4 // the last comes when the limit is over, and the first is asked for well before
	limited := func(h http.HandlerFunc) string {
		server := httptest.NewUnstartedServer(h)
		server.Config.ReadTimeout, server.Config.WriteTimeout = limit, limit
		server.Start()
		t.Cleanup(server.Close)
		return server.URL
	}
	g := &gateway{forwarder: newForwarder(), streams: t.Context()}
	t.Cleanup(g.forwarder.CloseIdleConnections)
	owner := limited(func(w http.ResponseWriter, r *http.Request) {
		s := newStream(events)
		go func() {
			for i := range events {
				s.publish("state", i)
				time.Sleep(limit / 2)
			}
			s.close()
		}()
		g.serveStream(w, r, s, func(*eventWriter, happening) bool { return r.Context().Err() != nil })
	})
	other := limited(func(w http.ResponseWriter, r *http.Request) {
		_, _ = g.forward(w, r, owner)
	})
	var reading errgroup.Group
	for _, base := range []string{owner, other} {
		reading.Go(func() error {
			n := 0
			err := (&caller{base: base}).stream(t.Context(), "/", func(string, []byte) bool {
				n++
				return true
			})
			if err == nil && n != events {
				err = fmt.Errorf("%s has sent %d events", base, n)
			}
			return err
		})
	}
	require.NoError(t, reading.Wait())
}
