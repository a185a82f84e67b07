package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// cluster is gateway processes, each this program again, and the load balancer in front of them.
type cluster struct {
	program  string
	dsn      string
	endpoint waserver.Endpoint
	flags    []string

	mu      sync.Mutex
	running []*gatewayProcess // the oldest first
	started int
	asked   int
}

// gatewayProcess is a process as seen from outside.
type gatewayProcess struct {
	name, address string
	cmd           *exec.Cmd
	in            io.Closer // the process ends when this is closed, even if the demo was killed
}

// start starts one more process, and returns when it listens.
func (c *cluster) start() (*gatewayProcess, error) {
	encoded, err := json.Marshal(c.endpoint)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.started++
	p := &gatewayProcess{name: "gateway-" + strconv.Itoa(c.started)}
	c.mu.Unlock()
	p.cmd = exec.Command(c.program, append([]string{ //nolint:gosec,noctx // ourselves; it is ended by hand
		"-demo", "-demo-endpoint", string(encoded), "-name", p.name, "-listen", "127.0.0.1:0", "-database-url", c.dsn,
	}, c.flags...)...)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = standin.Apart()
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err = p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.kill()
		return nil, errors.New(p.name + " did not start")
	}
	p.address = strings.TrimSpace(line)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = append(c.running, p)
	return p, nil
}

// oldest takes the process that has run longest out of the load balancer.
func (c *cluster) oldest() *gatewayProcess {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.running[0]
	c.running = c.running[1:]
	return p
}

// stop ends a process as a deploy does, and waits for it. One that does not end is made to say where it hangs.
func (p *gatewayProcess) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	defer time.AfterFunc(patience, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) }).Stop()
	return p.cmd.Wait()
}

// kill ends a process with SIGKILL, if it still runs.
func (p *gatewayProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (c *cluster) killAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.running {
		p.kill()
	}
	c.running = nil
}

// ServeHTTP is the load balancer: each process in turn.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	proxy := httputil.ReverseProxy{
		Transport: c, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) { p.Out.Host = p.In.Host },
	}
	proxy.ServeHTTP(w, r)
}

// RoundTrip implements [http.RoundTripper]: a process that does not answer at all is skipped. The body is read first, since an attempt closes it.
func (c *cluster) RoundTrip(r *http.Request) (response *http.Response, err error) {
	var body []byte
	if r.Body != nil {
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	r.GetBody = func() (io.ReadCloser, error) {
		if len(body) == 0 {
			return http.NoBody, nil
		}
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	c.mu.Lock()
	c.asked++
	first, candidates := c.asked, c.running
	c.mu.Unlock()
	err = errors.New("no gateway runs")
	for i := range candidates {
		p := candidates[(first+i)%len(candidates)]
		target, _ := url.Parse(p.address)
		r.URL.Scheme, r.URL.Host = target.Scheme, target.Host
		r.Body, _ = r.GetBody()
		if response, err = http.DefaultTransport.RoundTrip(r); err == nil || !dialing(err) {
			break
		}
	}
	return response, err
}
