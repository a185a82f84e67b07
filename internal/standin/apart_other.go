//go:build !unix

package standin

import "syscall"

// Apart keeps a Ctrl-C that is meant for the demo from a process that it starts, where that is known how.
func Apart() *syscall.SysProcAttr { return nil }
