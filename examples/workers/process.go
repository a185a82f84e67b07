package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/wataki/whatsmeow-pgstore/internal/standin"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// workerProcess is a worker as seen from outside.
type workerProcess struct {
	name string
	cmd  *exec.Cmd
	in   io.Closer // the worker ends when this is closed, even if the demo was killed
}

func startWorker(name, dsn string, server waserver.Endpoint) (*workerProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(server)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-demo", "-endpoint", string(encoded), "-name", name, "-lease", demoLease.String()) //nolint:gosec,noctx // ourselves; it is ended by hand
	cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = standin.Apart()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &workerProcess{name, cmd, in}, cmd.Start()
}

// stop ends a worker as a deploy does, and waits for it. One that was started just now does not hear the signal yet, and has nothing to let go of.
func (w *workerProcess) stop() error {
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := w.cmd.Wait()
	if status, ok := w.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

// kill ends a worker with SIGKILL, if it still runs.
func (w *workerProcess) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}
