//go:build unix

package main

import "syscall"

// apart keeps a Ctrl-C that is meant for the demo from its processes.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
