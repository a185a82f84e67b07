package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if most := flag.Lookup("test.parallel"); most.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		_ = most.Value.Set(fmt.Sprint(2 * runtime.GOMAXPROCS(0))) // they mostly wait
	}
	if os.Getenv(measuredEnv) != "" {
		os.Exit(measuredProcess())
	}
	run := func() int {
		defer func() {
			if built != "" {
				_ = os.RemoveAll(built)
			}
		}()
		return m.Run()
	}
	os.Exit(pgtest.Main(run,
		goleak.IgnoreAnyFunction("go.mau.fi/whatsmeow/socket.(*FrameSocket).frameComplete"), // hangs for ever at some ends of a connection
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),                        // kept for later by http.DefaultClient
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop")))
}

const testKey = "a key for tests, long enough"

// bench is a stand-in for WhatsApp and a database, on which a test runs gateways.
type bench struct {
	t      *testing.T
	dsn    string
	server *waserver.Server
	hooks  *receiver
}

func newBench(t *testing.T) *bench {
	t.Helper()
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	hooks, err := newReceiver()
	require.NoError(t, err)
	t.Cleanup(hooks.close)
	return &bench{t, pgtest.Open(t), server, hooks}
}

// runningGateway is a gateway whose every answer is held against the document.
type runningGateway struct {
	caller
	name string
	stop func() // as SIGTERM does
}

// flags are those of every gateway of a test. A process that gets no time to run for some seconds must not seem to be dead.
func (b *bench) flags() []string {
	return []string{"-api-key", testKey, "-lease", "10s", "-webhook", b.hooks.url, "-webhook-secret", demoHookKey}
}

// gateway is one in this process, so that the race detector sees it.
func (b *bench) gateway(name string, flags ...string) *runningGateway {
	b.t.Helper()
	return b.gatewayWith(seams{}, name, flags...)
}

// gatewayWith is one where something is done in another way.
func (b *bench) gatewayWith(other seams, name string, flags ...string) *runningGateway {
	b.t.Helper()
	flags = append(b.flags(), flags...)
	if other.connect == nil {
		other.connect = standin.Connect(b.server.Endpoint())
	}
	cfg, err := parse(append([]string{"-database-url", b.dsn, "-listen", "127.0.0.1:0", "-name", name}, flags...))
	require.NoError(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	out, announced := io.Pipe()
	other.announce = announced
	var ended sync.WaitGroup
	ended.Go(func() {
		err := serve(ctx, cfg, other)
		_ = announced.CloseWithError(errors.Join(err, io.EOF))
		if err != nil {
			b.t.Errorf("%s: %v", name, err)
		}
	})
	address := make([]byte, 100)
	n, err := out.Read(address)
	require.NoError(b.t, err)
	return b.begun(strings.TrimSpace(string(address[:n])), name, func() {
		cancel()
		ended.Wait()
	})
}

// process is a gateway in a process of its own. There is no race detector, since the client races with itself when its device is deleted.
func (b *bench) process(c *cluster) *runningGateway {
	b.t.Helper()
	p, err := c.start()
	require.NoError(b.t, err)
	b.t.Cleanup(p.kill)
	return b.begun(p.address, p.name, func() { require.NoError(b.t, p.stop()) })
}

func (b *bench) cluster() *cluster {
	b.t.Helper()
	return &cluster{program: program(b.t), dsn: b.dsn, endpoint: b.server.Endpoint(), flags: b.flags()}
}

func (b *bench) begun(address, name string, stop func()) *runningGateway {
	b.t.Helper()
	g := &runningGateway{caller{address, testKey}, name, sync.OnceFunc(stop)}
	b.t.Cleanup(g.stop)
	require.Eventually(b.t, func() bool {
		response, err := http.Get(g.base + "/readyz")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, atMost, 10*time.Millisecond)
	return g
}

// document is openapi.yaml.
var document = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	openapi3filter.RegisterBodyDecoder("image/png", openapi3filter.FileBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/health+json", openapi3filter.JSONBodyDecoder)
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.FileBodyDecoder)
	openapi3filter.RegisterBodyDecoder("text/event-stream", openapi3filter.FileBodyDecoder)
	if err = doc.Validate(context.Background()); err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// reply is an answer that was read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// try calls and holds request and answer against the document: a request that is refused may break it.
func (g *runningGateway) try(t *testing.T, method, path, contentType string, body []byte, headers ...string) reply {
	t.Helper()
	request, err := http.NewRequest(method, g.base+path, bytes.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+g.key)
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close() //nolint:errcheck // it was read
	read, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	router, err := document()
	require.NoError(t, err)
	inDocument := httptest.NewRequest(method, path, bytes.NewReader(body))
	inDocument.Header = request.Header
	route, params, err := router.FindRoute(inDocument)
	require.NoError(t, err, "%s %s is in the document", method, path)
	input := &openapi3filter.RequestValidationInput{
		Request: inDocument, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}
	if response.StatusCode < 300 {
		require.NoError(t, openapi3filter.ValidateRequest(context.Background(), input))
	}
	require.NoError(t, openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: response.StatusCode, Header: response.Header, Body: io.NopCloser(bytes.NewReader(read)), Options: input.Options,
	}), "%s %s: %s", method, path, read)
	return reply{response.StatusCode, response.Header, read}
}

// ask calls with a JSON body, and wants a status.
func (g *runningGateway) ask(t *testing.T, status int, method, path string, body, into any, headers ...string) reply {
	t.Helper()
	var encoded []byte
	kind := ""
	if body != nil {
		var err error
		encoded, err = json.Marshal(body)
		require.NoError(t, err)
		kind = "application/json"
	}
	r := g.try(t, method, path, kind, encoded, headers...)
	require.Equal(t, status, r.status, "%s %s: %s", method, path, r.body)
	if into != nil {
		require.NoError(t, json.Unmarshal(r.body, into), "%s", r.body)
	}
	return r
}

// problem calls and wants a problem.
func (g *runningGateway) problem(t *testing.T, want *problem, method, path string, body any, headers ...string) {
	t.Helper()
	var got problem
	r := g.ask(t, want.Status, method, path, body, &got, headers...)
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"))
	require.ErrorIs(t, &got, want)
}

type texting map[string]string

func (g *runningGateway) instance(t *testing.T, id string) (i instanceInfo) {
	t.Helper()
	g.ask(t, http.StatusOK, http.MethodGet, "/v1/instances/"+id, nil, &i)
	return i
}

// linked creates an instance and has a phone scan its code.
func (b *bench) linked(g *runningGateway, id string) *number {
	b.t.Helper()
	g.ask(b.t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": id}, nil)
	return b.scan(g, id)
}

func (b *bench) scan(g *runningGateway, id string) *number {
	b.t.Helper()
	s := &stage{server: b.server, api: &g.caller, numbers: make(map[string]*number)}
	require.NoError(b.t, s.scan(context.Background(), id))
	b.connected(g, id)
	return s.numbers[id]
}

func (b *bench) connected(g *runningGateway, id string) {
	b.t.Helper()
	require.Eventually(b.t, func() bool { return g.instance(b.t, id).State == "connected" }, atMost, 20*time.Millisecond)
}

// atMost is how long a test waits for what has to happen, on a machine that is slow and has other things to do: only a test that fails waits for so long.
const atMost = 3 * time.Minute

// within ends then.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), atMost)
	t.Cleanup(cancel)
	return ctx
}

// program is the example, built as people run it: the race detector finds races in the client itself, which end a process with an error.
func program(t *testing.T) string {
	t.Helper()
	dir, err := build()
	require.NoError(t, err)
	return filepath.Join(dir, "gateway")
}

var (
	built string // a directory
	build = sync.OnceValues(func() (dir string, err error) {
		if dir, err = os.MkdirTemp("", "gateway"); err != nil {
			return "", err
		}
		built = dir
		for _, args := range [][]string{{"build", "-o", "gateway"}, {"test", "-c", "-o", "gateway.test"}} {
			args[len(args)-1] = filepath.Join(dir, args[len(args)-1])
			if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
				return "", fmt.Errorf("go %s: %w: %s", args[0], err, out)
			}
		}
		return dir, nil
	})
)
