package life

// The parent's side of a child: start, command, kill.

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is a child that was started.
type process struct {
	t      testing.TB
	number int
	cmd    *exec.Cmd
	stderr string // a file
	races  string // the beginning of a file's name
	hear   func(event)
	over   chan struct{} // closed when all that the child has said was heard
	failed error         // what could not be heard, once it is over
	cut    string        // likewise its last line, if it is none: a kill may cut it
	gone   bool          // somebody has waited for its end

	mu      sync.Mutex
	in      io.WriteCloser
	waiting map[int]chan event
	next    int
}

// startProcess starts a child. Each event that it says is given to hear.
func startProcess(t testing.TB, number int, set settings, hear func(event)) *process {
	t.Helper()
	set.Process = number
	encoded, err := json.Marshal(set)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "life-child-") // the name of a test may hold what GORACE cannot
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	p := &process{
		t: t, number: number, hear: hear, over: make(chan struct{}), waiting: make(map[int]chan event),
		stderr: filepath.Join(dir, "stderr"), races: filepath.Join(dir, "race"),
	}
	stderr, err := os.Create(p.stderr)
	require.NoError(t, err)
	defer func() { require.NoError(t, stderr.Close()) }()
	p.cmd = exec.Command(cmp.Or(set.binary, os.Args[0]))
	p.cmd.Env = append(os.Environ(), childSettings+"="+string(encoded), "GORACE=halt_on_error=0 exitcode=0 log_path="+p.races)
	p.cmd.Stderr = stderr
	p.in, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go p.listen(out)
	t.Cleanup(p.end)
	return p
}

// listen hears what the child says until its end.
func (p *process) listen(out io.Reader) {
	defer close(p.over)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for p.cut == "" && lines.Scan() {
		e := event{At: time.Now(), Process: p.number}
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			p.cut = lines.Text()
			continue
		}
		if e.Kind == saidDone {
			p.mu.Lock()
			answer := p.waiting[e.Command]
			delete(p.waiting, e.Command)
			p.mu.Unlock()
			answer <- e
		}
		p.hear(e)
	}
	if p.failed = lines.Err(); p.failed == nil && lines.Scan() {
		p.failed = fmt.Errorf("the child said something unheard of: %q", p.cut)
	}
}

// begin gives the child a command. The answer comes through the channel; none comes from a child that ends before.
func (p *process) begin(cmd command) <-chan event {
	answer := make(chan event, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	cmd.ID = p.next
	p.waiting[cmd.ID] = answer
	line, err := json.Marshal(cmd)
	require.NoError(p.t, err)
	_, _ = p.in.Write(append(line, '\n')) // a child that is gone does nothing
	return answer
}

// try gives the child a command, waits for the answer, and returns its error.
func (p *process) try(cmd command) (event, error) {
	select {
	case e := <-p.begin(cmd):
		if e.Error != "" {
			return e, fmt.Errorf("child: %s: %s", cmd.Do, e.Error)
		}
		return e, nil
	case <-p.over:
		return event{}, fmt.Errorf("child: %s: it ended", cmd.Do)
	case <-time.After(patience):
		return event{}, fmt.Errorf("child: %s: no answer", cmd.Do)
	}
}

// do gives the child a command that must succeed.
func (p *process) do(cmd command) event {
	p.t.Helper()
	e, err := p.try(cmd)
	require.NoError(p.t, err)
	return e
}

// killed is how a child ends that was killed.
const killed = "signal: killed"

// kill ends the child with SIGKILL and returns when all that it had said was heard. A child that has ended before has crashed.
func (p *process) kill() {
	p.t.Helper()
	_ = p.cmd.Process.Kill()
	require.EqualError(p.t, p.ended(), killed)
}

// freeze stops the child where it is, until wake.
func (p *process) freeze() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGSTOP))
}

// wake ends freeze.
func (p *process) wake() {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGCONT))
}

// ended waits for the child to end, and returns how it did.
func (p *process) ended() error {
	p.t.Helper()
	select {
	case <-p.over:
	case <-time.After(patience):
		require.Fail(p.t, "the child did not end")
	}
	require.NoError(p.t, p.failed)
	p.gone = true
	return p.cmd.Wait()
}

// quit ends the child in an orderly way.
func (p *process) quit() {
	p.t.Helper()
	p.do(command{Do: doQuit})
	require.NoError(p.t, p.ended())
	require.Empty(p.t, p.cut)
}

// end kills the child if it still lives, looks for races, and shows what it wrote if the test has failed.
func (p *process) end() {
	defer p.show()
	defer p.requireNoRace()
	if !p.gone {
		p.kill()
	}
}

// requireNoRace requires that the child has reported no race of ours.
func (p *process) requireNoRace() {
	reports, _ := filepath.Glob(p.races + ".*")
	for _, name := range reports {
		report, err := os.ReadFile(name)
		if err != nil {
			p.t.Error(err)
		}
		for _, one := range strings.Split(string(report), "==================") {
			if ourRace(one) {
				p.t.Errorf("race in child %d: %s", p.number, one)
			}
		}
	}
}

// show shows what the child wrote if the test has failed.
func (p *process) show() {
	if p.t.Failed() {
		said, _ := os.ReadFile(p.stderr)
		lines := strings.Split(string(said), "\n")
		p.t.Logf("child %d wrote:\n%s", p.number, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

// module is the beginning of the names of this module's functions.
const module = "github.com/wataki/whatsmeow-pgstore/"

// ourRace reports whether one of the two accesses of a race is in this module. Functions of the runtime and of the standard
// library, which have no dot in the first part of their path, act for those that called them.
func ourRace(report string) bool {
	lines := strings.Split(report, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, " ") || !strings.Contains(line, " at 0x") {
			continue
		}
		for _, frame := range lines[i+1:] {
			frame = strings.TrimSpace(frame)
			if frame == "" {
				break
			}
			if path, _, ok := strings.Cut(frame, "/"); ok && path != "" && strings.Contains(path, ".") {
				if strings.HasPrefix(frame, module) {
					return true
				}
				break
			}
		}
	}
	return false
}
