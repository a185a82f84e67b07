package pgtest

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// notes is a table of a cluster.
type notes struct {
	*testing.T
	c *Cluster
}

func newNotes(t *testing.T) notes {
	return notesOn(t, NewCluster(t))
}

func notesOn(t *testing.T, c *Cluster) notes {
	n := notes{t, c}
	require.NoError(t, (&Server{DSN: n.c.DSN}).exec(t.Context(), `CREATE TABLE notes (n text)`))
	return n
}

func (n notes) write(text string) {
	require.NoError(n, (&Server{DSN: n.c.DSN}).exec(n.Context(), `INSERT INTO notes VALUES ('`+text+`')`))
}

func (n notes) read() (all []string) {
	conn, err := pgx.Connect(n.Context(), n.c.DSN)
	require.NoError(n, err)
	defer func() { require.NoError(n, conn.Close(n.Context())) }()
	rows, err := conn.Query(n.Context(), `SELECT n FROM notes ORDER BY n`)
	require.NoError(n, err)
	all, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(n, err)
	return all
}

func TestAFailoverLosesWhatWasCommittedAfterTheStandbyWasCut(t *testing.T) {
	t.Parallel()
	n := newNotes(t)
	standby := n.c.Standby(Asynchronous)
	before := n.c.Timeline()
	n.write("1 kept")
	standby.Cut()
	n.write("2 lost")
	n.c.FailOver(standby)
	require.Equal(t, []string{"1 kept"}, n.read())
	require.Greater(t, n.c.Timeline(), before)
	n.write("3 new")
	require.Equal(t, []string{"1 kept", "3 new"}, n.read())
}

func TestAFailoverLosesNothingOfASynchronousStandby(t *testing.T) {
	t.Parallel()
	n := newNotes(t)
	standby := n.c.Standby(Synchronous)
	standby.Pause() // a promotion replays what was received
	n.write("1 kept")
	n.c.FailOver(standby)
	require.Equal(t, []string{"1 kept"}, n.read())
}

func TestARestoreEndsAtItsMoment(t *testing.T) {
	t.Parallel()
	for setting, moment := range map[string]func(*Cluster) string{
		"recovery_target_name": func(c *Cluster) string {
			c.Mark("here")
			return "here"
		},
		"recovery_target_time": func(c *Cluster) string {
			time.Sleep(10 * time.Millisecond) // it ends with the last commit before it
			return c.text(c.primary, `SELECT clock_timestamp()::text`)
		},
		"recovery_target_lsn": func(c *Cluster) string { return c.text(c.primary, `SELECT pg_current_wal_insert_lsn()::text`) },
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			n := newNotes(t)
			before := n.c.Timeline()
			n.write("1 in the backup")
			n.c.Backup()
			n.write("2 in the archive")
			here := moment(n.c)
			n.write("3 lost")
			n.c.Restore(setting, here)
			require.Equal(t, []string{"1 in the backup", "2 in the archive"}, n.read())
			require.Greater(t, n.c.Timeline(), before)
		})
	}
}

func TestASnapshotKeepsItsTimeline(t *testing.T) {
	t.Parallel()
	n := newNotes(t)
	before := n.c.Timeline()
	n.write("1 kept")
	n.c.Snapshot()
	n.write("2 lost")
	n.c.Rewind()
	require.Equal(t, []string{"1 kept"}, n.read())
	require.Equal(t, before, n.c.Timeline())
}
