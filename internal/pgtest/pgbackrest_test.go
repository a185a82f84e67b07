package pgtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARestoreWithPgBackRestEndsAtItsMoment(t *testing.T) {
	t.Parallel()
	for kind, moment := range map[string]func(*Cluster) string{
		"name": func(c *Cluster) string {
			c.Mark("here")
			return "here"
		},
		"time": func(c *Cluster) string {
			time.Sleep(2 * time.Second) // pgBackRest counts in seconds, and wants a backup that ended before this one
			return c.text(c.primary, `SELECT clock_timestamp()::text`)
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			repository := NewPgBackRest(t)
			n := notesOn(t, repository.Cluster)
			before := n.c.Timeline()
			n.write("1 in the backup")
			repository.Backup()
			n.write("2 in the archive")
			here := moment(n.c)
			n.write("3 after the moment")
			n.c.Archive()
			n.write("4 not archived")
			repository.Disaster()
			repository.Restore(kind, here)
			require.Equal(t, []string{"1 in the backup", "2 in the archive"}, n.read())
			require.Greater(t, n.c.Timeline(), before)
			n.write("3 new")
			repository.Backup() // the new server is backed up as the one before was
		})
	}
}
