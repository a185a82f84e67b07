//go:build unix

package standin

import "syscall"

// Apart keeps a Ctrl-C that is meant for the demo from a process that it starts.
func Apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
