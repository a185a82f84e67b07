//go:build jumps

package life

import "time"

// jump makes the wall clock of this process wrong by a duration.
func jump(by string) error {
	d, err := time.ParseDuration(by)
	time.Jumped.Store(int64(d / time.Second))
	return err
}

// now is what all processes of a test take for the time.
func now() time.Time { return time.Now().Add(-time.Duration(time.Jumped.Load()) * time.Second) }
