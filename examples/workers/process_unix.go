//go:build unix

package main

import "syscall"

func (w *workerProcess) freeze() error { return w.cmd.Process.Signal(syscall.SIGSTOP) }

func (w *workerProcess) thaw() error { return w.cmd.Process.Signal(syscall.SIGCONT) }
