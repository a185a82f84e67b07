//go:build unix

package main

import "syscall"

// apart keeps a Ctrl-C that is meant for the demo from its workers.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func (w *workerProcess) freeze() error { return w.cmd.Process.Signal(syscall.SIGSTOP) }

func (w *workerProcess) thaw() error { return w.cmd.Process.Signal(syscall.SIGCONT) }
