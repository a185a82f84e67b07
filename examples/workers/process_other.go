//go:build !unix

package main

import "syscall"

// Here nothing can be frozen, and no worker can be asked to end: the demo only kills.

func apart() *syscall.SysProcAttr { return nil }

func (w *workerProcess) freeze() error { return nil }

func (w *workerProcess) thaw() error { return nil }
