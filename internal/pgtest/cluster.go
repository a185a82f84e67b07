package pgtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Cluster is a primary that archives its WAL, with standbys that stream from it, and one address for whichever server is the primary, as a
// virtual IP or a HAProxy is. All of it is real: pg_basebackup, streaming replication, promotion, point-in-time recovery.
//
// A failover that loses what was committed:
//
//	standby := cluster.Standby(pgtest.Asynchronous)
//	… standby.Cut()         // what is committed from here on, it does not get
//	… cluster.FailOver(standby)
//
// A restore to a moment:
//
//	cluster.Backup()
//	… cluster.Mark("here")
//	… cluster.Restore("recovery_target_name", "here")
type Cluster struct {
	DSN string // of the primary, also after it has changed

	t        testing.TB
	room     room
	network  *Proxy
	primary  *local
	servers  int    // that were started
	archive  string // where WAL is copied to, if that is all that archives it
	backup   string
	snapshot string
}

// clusterPatience bounds the wait for anything that a server does: two cores are shared with much else.
const clusterPatience = time.Minute

// NewCluster starts a primary from the binaries on this machine. It ends with the test. Without binaries the test is skipped; in
// CI it fails.
func NewCluster(t testing.TB) *Cluster {
	t.Helper()
	c := newRoomOfCluster(t)
	c.archive = filepath.Join(c.room.dir, "archive")
	c.check(c.make(c.archive))
	c.begin(c.initdb(), "cp %p "+c.archive+"/%f")
	return c
}

// newRoomOfCluster is a cluster that has no server yet.
func newRoomOfCluster(t testing.TB) *Cluster {
	t.Helper()
	r, err := newRoom(false)
	if err != nil {
		Missing(t, "a PostgreSQL that is installed ("+err.Error()+")")
	}
	c := &Cluster{t: t, room: r}
	t.Cleanup(func() { c.check(r.remove()) })
	return c
}

// initdb makes the data directory of a first primary.
func (c *Cluster) initdb() (data string) {
	c.t.Helper()
	data = c.newDirectory()
	c.check(c.room.initdb(context.Background(), data))
	return data
}

// begin starts the first primary, which archives its WAL with a command.
func (c *Cluster) begin(data, archiveCommand string) {
	c.t.Helper()
	c.primary = c.serve(data, archiving(archiveCommand)...)
	c.network = NewProxy(c.t, c.primary.dsn())
	c.DSN = c.network.DSN
}

func archiving(command string) (settings []string) {
	return []string{"archive_mode=on", "archive_command=" + command}
}

// Network is what all clients of [Cluster].DSN come through.
func (c *Cluster) Network() *Proxy { return c.network }

func (c *Cluster) check(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// make makes a directory that the server may write to.
func (c *Cluster) make(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	_, err := ordinaryUser(dir, false)
	return err
}

func (c *Cluster) newDirectory() string {
	c.servers++
	return filepath.Join(c.room.dir, fmt.Sprint("data", c.servers))
}

// serve starts a server and waits until it answers.
func (c *Cluster) serve(data string, settings ...string) *local {
	c.t.Helper()
	l, err := newLocal(c.room, data, append([]string{"wal_level=replica", "max_wal_senders=5", "wal_keep_size=512MB", "hot_standby=on"}, settings...)...)
	c.check(err)
	c.t.Cleanup(l.kill)
	c.check((&Server{DSN: l.dsn()}).await(context.Background()))
	return l
}

func (c *Cluster) exec(l *local, statements ...string) {
	c.t.Helper()
	for _, s := range statements {
		c.check((&Server{DSN: l.dsn()}).exec(context.Background(), s))
	}
}

// await waits until a query's only value is true.
func (c *Cluster) await(l *local, query string, args ...any) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clusterPatience)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.dsn())
	c.check(err)
	defer func() { _ = conn.Close(ctx) }()
	for {
		var done bool
		if err = conn.QueryRow(ctx, query, args...).Scan(&done); err != nil {
			c.t.Fatalf("%s: %v", query, err)
		} else if done {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// text is a query's only value.
func (c *Cluster) text(l *local, query string) (value string) {
	c.t.Helper()
	conn, err := pgx.Connect(context.Background(), l.dsn())
	c.check(err)
	defer func() { _ = conn.Close(context.Background()) }()
	c.check(conn.QueryRow(context.Background(), query).Scan(&value))
	return value
}

// baseBackup copies the primary while it works.
func (c *Cluster) baseBackup(data string, options ...string) {
	c.t.Helper()
	connection := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres application_name=%s", c.primary.port, filepath.Base(data))
	c.check(c.room.run(context.Background(), "pg_basebackup", append([]string{"-D", data, "-c", "fast", "--no-sync", "-d", connection}, options...)...))
}

// Replication says what a commit on the primary waits for.
type Replication int

const (
	// Asynchronous waits for the primary alone.
	Asynchronous Replication = iota
	// Synchronous waits until the standby has it on its disk.
	Synchronous
)

// Standby is a server that receives the primary's WAL.
type Standby struct {
	c *Cluster
	l *local
}

// Standby starts one from a base backup and waits until it streams.
func (c *Cluster) Standby(how Replication) *Standby {
	c.t.Helper()
	data := c.newDirectory()
	c.baseBackup(data, "--write-recovery-conf")
	s := &Standby{c, c.serve(data)}
	name, state := filepath.Base(data), "async"
	if how == Synchronous {
		state = "sync"
		c.exec(c.primary, "ALTER SYSTEM SET synchronous_standby_names = "+name, "SELECT pg_reload_conf()")
	}
	c.await(c.primary, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming' AND sync_state = $2)`, name, state)
	return s
}

// CatchUp waits until the standby has replayed all that is on the primary now.
func (s *Standby) CatchUp() {
	s.c.t.Helper()
	s.c.exec(s.c.primary, `SELECT pg_logical_emit_message(true, '', '')`) // its commit flushes what came before it
	now := s.c.text(s.c.primary, `SELECT pg_current_wal_flush_lsn()::text`)
	s.c.await(s.l, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, now)
}

// Cut lets the standby catch up and receive nothing from then on. What is committed afterwards is the tail that a
// failover to it loses. (To pause the replay loses nothing: a promotion ends the pause and replays all that was received.)
func (s *Standby) Cut() {
	s.c.t.Helper()
	s.CatchUp()
	s.c.exec(s.l, `ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`)
	s.c.await(s.l, `SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)`)
}

// Pause lets the standby receive and not replay.
func (s *Standby) Pause() {
	s.c.t.Helper()
	s.c.exec(s.l, `SELECT pg_wal_replay_pause()`)
	s.c.await(s.l, `SELECT pg_get_wal_replay_pause_state() = 'paused'`)
}

// FailOver kills the primary and promotes the standby.
func (c *Cluster) FailOver(to *Standby) {
	c.t.Helper()
	c.network.Down()
	c.primary.kill()
	c.exec(to.l, `SELECT pg_promote()`)
	c.lead(to.l)
}

// lead makes a server that recovers the primary once it has.
func (c *Cluster) lead(to *local) {
	c.t.Helper()
	c.await(to, `SELECT NOT pg_is_in_recovery()`)
	c.primary = to
	c.network.Lead(to.dsn())
	c.network.Up()
}

// Crash kills the primary, and starts it again on the data that it left.
func (c *Cluster) Crash() {
	c.t.Helper()
	c.network.Down()
	c.primary.kill()
	c.restart()
}

// Timeline is the WAL timeline of the primary.
func (c *Cluster) Timeline() string {
	c.t.Helper()
	return c.text(c.primary, `SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`)
}

// Backup takes the base backup that Restore begins with.
func (c *Cluster) Backup() {
	c.t.Helper()
	c.backup = filepath.Join(c.room.dir, "backup")
	c.check(os.RemoveAll(c.backup))
	c.baseBackup(c.backup)
}

// Mark gives the present moment a name, for recovery_target_name.
func (c *Cluster) Mark(name string) {
	c.t.Helper()
	c.exec(c.primary, `SELECT pg_create_restore_point('`+name+`')`)
}

// Archive waits until all WAL up to now is in the archive.
func (c *Cluster) Archive() {
	c.t.Helper()
	last := c.text(c.primary, `SELECT pg_walfile_name(pg_switch_wal())`)
	c.await(c.primary, `SELECT coalesce(last_archived_wal >= $1, false) FROM pg_stat_archiver`, last)
}

// Restore kills the primary, and makes a new one of the backup and the archive up to what a setting says: recovery_target_name,
// recovery_target_time or recovery_target_lsn.
func (c *Cluster) Restore(setting, value string) {
	c.t.Helper()
	c.Archive()
	c.network.Down()
	c.primary.kill()
	data := c.newDirectory()
	c.copy(c.backup, data)
	c.check(appendTo(filepath.Join(data, "postgresql.auto.conf"), fmt.Sprintf("restore_command = 'cp %s/%%f %%p'\n%s = '%s'\nrecovery_target_action = promote\n",
		c.archive, setting, strings.ReplaceAll(value, "'", "''"))))
	c.check(appendTo(filepath.Join(data, "recovery.signal"), ""))
	c.lead(c.serve(data))
}

// Snapshot keeps what is on the primary's disk, as a snapshot of its volume does: the server is away for a moment.
func (c *Cluster) Snapshot() {
	c.t.Helper()
	c.snapshot = filepath.Join(c.room.dir, "snapshot")
	c.network.Down()
	c.primary.kill()
	c.check(os.RemoveAll(c.snapshot))
	c.copy(c.primary.data, c.snapshot)
	c.restart()
}

// Rewind kills the primary and starts it on its last snapshot: the same system on the same timeline, earlier.
func (c *Cluster) Rewind() {
	c.t.Helper()
	c.network.Down()
	c.primary.kill()
	c.check(os.RemoveAll(c.primary.data))
	c.copy(c.snapshot, c.primary.data)
	c.restart()
}

func (c *Cluster) restart() {
	c.t.Helper()
	c.check(c.primary.start())
	c.check((&Server{DSN: c.primary.dsn()}).await(context.Background()))
	c.lead(c.primary)
}

func (c *Cluster) copy(from, to string) {
	c.t.Helper()
	if out, err := c.room.command(context.Background(), "cp", "-R", from, to).CombinedOutput(); err != nil {
		c.t.Fatalf("cp: %v: %s", err, out)
	}
}

// appendTo writes at the end of a file that the server only has to read.
func appendTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err = file.WriteString(text); err != nil {
		_ = file.Close()
		return err
	}
	return file.Close()
}
