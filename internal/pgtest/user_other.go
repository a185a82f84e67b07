//go:build !unix

package pgtest

import "syscall"

func ordinaryUser(string) (func() *syscall.SysProcAttr, error) {
	return func() *syscall.SysProcAttr { return nil }, nil
}
