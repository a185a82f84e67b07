package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// slowReader asks for something and reads its first byte; then nothing more, or a byte a second, until the test ends.
func slowReader(ctx context.Context, t *testing.T, base, path string, byteASecond bool) {
	t.Helper()
	dialer := net.Dialer{Timeout: time.Minute, Control: func(_, _ string, c syscall.RawConn) error { // so that the kernel does not read for it
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	conn, err := dialer.DialContext(ctx, "tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, testKey)
	require.NoError(t, err)
	one := make([]byte, 1)
	if _, err = io.ReadFull(conn, one); !byteASecond || err != nil { // on a machine that is very slow it is dropped before the answer begins
		return
	}
	go func() {
		for ctx.Err() == nil {
			wait(ctx, time.Second)
			if _, err := conn.Read(one); err != nil {
				return
			}
		}
	}()
}

// connections are those that a gateway has open.
func (g *runningGateway) connections(t *testing.T) (n int) {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(g.ask(t, http.StatusOK, http.MethodGet, "/metrics", nil, nil).body)))
	require.NoError(t, err)
	for _, m := range families["gateway_connections"].GetMetric() {
		n += int(m.GetGauge().GetValue())
	}
	return n
}

// Callers who read nothing, or a byte a second, of streams and of large answers, at the process that has the instance and at the other one: nobody waits for them,
// they cost a bounded number of goroutines and bytes, and are dropped, after which nothing is left of them.
func TestSlowReadersAreDroppedAndKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	const (
		streams, lists = 16, 4 // at each process
		named          = 30_000
		messages       = 150
		// A list is there as rows and as JSON; a stream of the other process is there twice, and a few connections between them stay for a while.
		bytesPerList, goroutinesPerReader, othersConnections = 40 << 20, 12, 10
	)
	b := newBench(t)
	how := measured{DSN: b.dsn, Endpoint: b.server.Endpoint(), Answer: 20 * time.Second, Flags: b.flags()}
	type process struct {
		*runningGateway
		used   func() usage
		before usage
	}
	var processes []*process
	for _, name := range []string{"one", "two"} {
		address, ask := how.start(t)
		processes = append(processes, &process{b.begun(address, name, func() {}), ask, usage{}})
	}
	n := b.linked(processes[0].runningGateway, "support")
	pool, err := openPool(t.Context(), b.dsn, nil)
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), `INSERT INTO gateway.instances (id) SELECT repeat('x', 50) || i FROM generate_series(1, $1) i`, named)
	require.NoError(t, err)

	reading, stop := context.WithCancel(t.Context())
	defer stop()
	for _, p := range processes {
		p.before = p.used()
		for i := range streams + lists {
			path := "/v1/instances/support/events"
			if i < lists {
				path = "/v1/instances"
			}
			slowReader(reading, t, p.base, path, i%2 == 0)
		}
		require.GreaterOrEqual(t, p.connections(t), streams)
	}

	// More than the kernel keeps for who does not read. Each message is taken, and each send arrives.
	long := strings.Repeat("long ", 10_000)
	for i := range messages {
		_, err := n.contact.SendText(n.account.LID(), fmt.Sprint("message ", i, long))
		require.NoError(t, err)
		if i%50 == 0 {
			for _, p := range processes {
				text := fmt.Sprint(i, " from ", p.name)
				p.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+" + n.contact.PN().User, "text": text}, nil)
				_, err = n.contact.WaitReceived(within(t), waserver.Text(text))
				require.NoError(t, err)
			}
		}
	}
	require.Eventually(t, func() bool { return b.hooks.told("support", "message ") == messages }, atMost, 50*time.Millisecond)
	for _, p := range processes {
		u := p.used()
		t.Logf("%s: %d goroutines and %d KB more", p.name, u.Goroutines-p.before.Goroutines, (int64(u.Memory)-int64(p.before.Memory))/1024)
		require.Less(t, u.Goroutines-p.before.Goroutines, goroutinesPerReader*(streams+lists))
		require.Less(t, int64(u.Memory)-int64(p.before.Memory), int64(lists*bytesPerList))
	}

	for _, p := range processes {
		require.Eventually(t, func() bool { return p.connections(t) <= othersConnections }, atMost, 100*time.Millisecond, p.name)
	}
	for _, p := range processes {
		u := usage{}
		require.Eventually(t, func() bool {
			u = p.used()
			return u.Goroutines-p.before.Goroutines < streams && int64(u.Memory)-int64(p.before.Memory) < bytesPerList/2
		}, atMost, 100*time.Millisecond, "%s: before %+v", p.name, p.before)
	}
}

// However long the texts are that others write, what is kept of an instance's log is bounded.
func TestWhatALogKeepsIsBounded(t *testing.T) {
	t.Parallel()
	s := newStream(logLength)
	for range 3 * logLength {
		s.publish("message", strings.Repeat("x", keptBytes/10))
		size := 0
		for _, h := range s.kept {
			size += len(h.Data)
		}
		require.LessOrEqual(t, size, keptBytes)
		require.Equal(t, size, s.bytes)
	}
	require.Greater(t, len(s.kept), 5)
	s.publish("message", strings.Repeat("x", 2*keptBytes))
	require.Len(t, s.kept, 1)
	for range 2 * logLength {
		s.publish("state", "short")
	}
	require.Len(t, s.kept, logLength)
}
