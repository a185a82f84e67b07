package pgtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"
)

// Patroni is two servers that [Patroni] leads, with etcd as its store: it decides who is the primary, promotes and rewinds. All of it is real, and
// nothing stands between the servers and who connects: [Patroni.DSN] names both and asks for the one that can be written to.
//
// [Patroni]: https://patroni.readthedocs.io
type Patroni struct {
	DSN string

	t     testing.TB
	nodes []*patroniNode
}

type patroniNode struct {
	Name, Dir, Bin   string
	Port, REST, Etcd int
}

// patroniSettings fail over as soon as the primary is gone, and not after the 30 s that a server has to start again.
var patroniSettings = template.Must(template.New("").Parse(`
scope: test
name: {{.Name}}
restapi: {listen: "127.0.0.1:{{.REST}}", connect_address: "127.0.0.1:{{.REST}}"}
etcd3: {hosts: "127.0.0.1:{{.Etcd}}"}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    primary_start_timeout: 0
    postgresql: {use_pg_rewind: true, use_slots: true}
  initdb: [{encoding: UTF8}, {locale: C}, no-sync]
postgresql:
  listen: 127.0.0.1:{{.Port}}
  connect_address: 127.0.0.1:{{.Port}}
  data_dir: {{.Dir}}/{{.Name}}
  bin_dir: {{.Bin}}
  pgpass: {{.Dir}}/{{.Name}}.pgpass
  authentication: {superuser: {username: postgres}, replication: {username: postgres}, rewind: {username: postgres}}
  pg_hba: ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
  parameters: {unix_socket_directories: "{{.Dir}}", fsync: "off", max_connections: 100, wal_log_hints: "on"}
`))

// NewPatroni starts both servers and waits until one streams from the other. They end with the test. Without patroni, etcd
// and binaries of PostgreSQL the test is skipped; in CI it fails.
func NewPatroni(t testing.TB) *Patroni {
	t.Helper()
	for _, program := range []string{"patroni", "etcd"} {
		if _, err := exec.LookPath(program); err != nil {
			Missing(t, program)
		}
	}
	r, err := newRoom(false)
	if err != nil {
		Missing(t, "a PostgreSQL that is installed ("+err.Error()+")")
	}
	p := &Patroni{t: t}
	t.Cleanup(func() { p.check(r.remove()) })
	port := func() int {
		n, err := freePort()
		p.check(err)
		return n
	}
	store, peers := port(), port()
	address := func(port int) string { return fmt.Sprint("http://127.0.0.1:", port) }
	p.start(r, syscall.SIGTERM, "etcd", "--data-dir", filepath.Join(r.dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls", address(store), "--advertise-client-urls", address(store),
		"--listen-peer-urls", address(peers), "--initial-advertise-peer-urls", address(peers), "--initial-cluster", "default="+address(peers))
	var hosts []string
	for i := range 2 {
		node := &patroniNode{Name: fmt.Sprint("node", i+1), Dir: r.dir, Bin: r.bin, Port: port(), REST: port(), Etcd: store}
		var settings bytes.Buffer
		p.check(patroniSettings.Execute(&settings, node))
		file := filepath.Join(r.dir, node.Name+".yml")
		p.check(os.WriteFile(file, settings.Bytes(), 0o644)) // another user reads it
		p.start(r, syscall.SIGINT, "patroni", file)
		p.nodes = append(p.nodes, node)
		hosts = append(hosts, fmt.Sprint("127.0.0.1:", node.Port))
	}
	p.DSN = "postgres://postgres@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable&target_session_attrs=read-write"
	p.awaitBoth()
	return p
}

func (p *Patroni) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// start runs a program until the test ends.
func (p *Patroni) start(r room, end syscall.Signal, program string, args ...string) {
	p.t.Helper()
	cmd := r.command(context.Background(), program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 10 * time.Second // a server that it left behind may hold its output
	p.check(cmd.Start())
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(end)
		_ = cmd.Wait()
		if p.t.Failed() {
			p.t.Logf("%s said: %s", program, said.Bytes()[max(0, said.Len()-20_000):])
		}
	})
}

// member is a node as Patroni sees it.
type member struct {
	Name, Role, State string
	Timeline          int
}

// members are all nodes, nil while nobody answers.
func (p *Patroni) members() []member {
	for _, node := range p.nodes {
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/cluster", node.REST))
		if err != nil {
			continue
		}
		var cluster struct{ Members []member }
		err = json.NewDecoder(answer.Body).Decode(&cluster)
		_ = answer.Body.Close()
		if err == nil {
			return cluster.Members
		}
	}
	return nil
}

// await waits until the nodes are so.
func (p *Patroni) await(what string, so func([]member) bool) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * clusterPatience); ; time.Sleep(100 * time.Millisecond) {
		members := p.members()
		if so(members) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("patroni: not %s: %+v", what, members)
		}
	}
}

// awaitBoth waits until one leads and the other streams from it on the same timeline.
func (p *Patroni) awaitBoth() {
	p.t.Helper()
	p.await("a leader and a replica", func(members []member) bool {
		if len(members) != 2 || members[0].Timeline != members[1].Timeline {
			return false
		}
		leaders := 0
		for _, m := range members {
			if m.Role == "leader" {
				leaders++
			}
			if m.State != "running" && m.State != "streaming" {
				return false
			}
		}
		return leaders == 1 && p.streams()
	})
}

// streams says whether a replica streams from the leader: what Patroni tells of one may be of the time before it died.
func (p *Patroni) streams() (yes bool) {
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')").Scan(&yes)
	return err == nil && yes
}

// leader is who leads now.
func (p *Patroni) leader() (leader member) {
	p.t.Helper()
	p.await("led by anybody", func(members []member) (ok bool) {
		leader, ok = led(members)
		return ok
	})
	return leader
}

// FailOver lets the primary crash and waits until one leads on a new timeline and the other has joined it. That is another one but on a machine that
// is so busy that the old one recovers and is promoted sooner.
func (p *Patroni) FailOver() {
	p.t.Helper()
	old := p.leader()
	for _, node := range p.nodes {
		if node.Name != old.Name {
			continue
		}
		pid, err := os.ReadFile(filepath.Join(node.Dir, node.Name, "postmaster.pid"))
		p.check(err)
		first, _, _ := strings.Cut(string(pid), "\n")
		postmaster, err := strconv.Atoi(first)
		p.check(err)
		process, err := os.FindProcess(postmaster)
		p.check(err)
		p.check(process.Signal(syscall.SIGQUIT)) // at once, which leaves the data as a crash does
	}
	p.await("failed over", func(members []member) bool {
		now, ok := led(members)
		return ok && now.Timeline > old.Timeline
	})
	p.awaitBoth()
	p.t.Logf("patroni: %s led, %s leads", old.Name, p.leader().Name)
}

// SwitchOver hands over in an orderly way, as before maintenance of a machine.
func (p *Patroni) SwitchOver() {
	p.t.Helper()
	old := p.leader()
	request, err := json.Marshal(map[string]string{"leader": old.Name})
	p.check(err)
	var said string
	p.await("switched over", func(members []member) bool {
		if now, ok := led(members); ok && now.Name != old.Name {
			return true
		}
		for _, node := range p.nodes { // again when it is refused: a node that has just joined is not at once a candidate
			if node.Name != old.Name {
				said = p.post(node.REST, "/switchover", request)
			}
		}
		return false
	})
	p.t.Log("patroni: switchover:", said)
	p.awaitBoth()
}

// post returns what the server at a port answers.
func (p *Patroni) post(port int, path string, request []byte) string {
	p.t.Helper()
	answer, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d%s", port, path), "application/json", bytes.NewReader(request))
	p.check(err)
	said, err := io.ReadAll(answer.Body)
	p.check(errors.Join(err, answer.Body.Close()))
	return answer.Status + ": " + string(said)
}

// led is who leads and can be written to.
func led(members []member) (leader member, ok bool) {
	i := slices.IndexFunc(members, func(m member) bool { return m.Role == "leader" && m.State == "running" })
	if i < 0 {
		return member{}, false
	}
	return members[i], true
}
