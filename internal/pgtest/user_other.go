//go:build !unix

package pgtest

import "syscall"

func ordinaryUser(string, bool) (func() *syscall.SysProcAttr, error) {
	return func() *syscall.SysProcAttr { return nil }, nil
}
