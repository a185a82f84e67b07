//go:build !jumps

package life

import (
	"errors"
	"time"
)

func jump(string) error { return errors.New("the wall clock of this child cannot jump") }

// now is what all processes of a test take for the time.
func now() time.Time { return time.Now() }
