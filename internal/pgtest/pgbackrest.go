package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// PgBackRest is a cluster whose primary is backed up with pgBackRest, as its manual says: the server pushes each WAL segment to a repository, where the full
// backups are, too. Its Backup and Restore are pgBackRest's own; the plain ones of [Cluster] need an archive that it does not have.
//
// A disaster, and a restore to a moment:
//
//	repository.Backup()
//	… repository.Mark("here")
//	… repository.Archive()  // what the server pushes after this may be lost
//	… repository.Disaster() // server and disk are gone
//	repository.Restore("name", "here")
type PgBackRest struct {
	*Cluster
	program, config string
}

// stanza is what pgBackRest calls the cluster.
const stanza = "whatsmeow"

// NewPgBackRest starts a primary from the binaries on this machine, with a repository beside it. Both end with the test. Without pgBackRest or the binaries the
// test is skipped; in CI it fails.
func NewPgBackRest(t testing.TB) *PgBackRest {
	t.Helper()
	program, err := exec.LookPath("pgbackrest")
	if err != nil {
		Missing(t, "pgbackrest")
	}
	p := &PgBackRest{Cluster: newRoomOfCluster(t), program: program}
	p.configure()
	data := p.initdb()
	// Before the server runs, so that it never pushes to a repository that is not there.
	p.check(p.run("stanza-create", "--no-online", "--pg1-path="+data))
	p.begin(data, p.pushing(data))
	return p
}

// configure writes pgBackRest's configuration: what is not the same for each server is said on the command line.
func (p *PgBackRest) configure() {
	p.t.Helper()
	config := "[global]\n"
	for _, path := range []string{"repo1", "lock", "log", "spool"} {
		dir := filepath.Join(p.room.dir, path)
		p.check(p.make(dir))
		config += path + "-path=" + dir + "\n"
	}
	config += "repo1-retention-full=2\nstart-fast=y\ncompress-level=1\nlog-level-file=off\nlog-level-console=warn\n"
	p.config = filepath.Join(p.room.dir, "pgbackrest.conf")
	p.check(appendTo(p.config, config))
}

// pushing is the archive_command of a server.
func (p *PgBackRest) pushing(data string) string {
	return strings.Join([]string{p.program, "--config=" + p.config, "--stanza=" + stanza, "--pg1-path=" + data, "archive-push", "%p"}, " ")
}

// run runs pgBackRest as the user that the servers run as.
func (p *PgBackRest) run(command string, options ...string) error {
	args := append([]string{"--config=" + p.config, "--stanza=" + stanza, command}, options...)
	if out, err := p.room.command(context.Background(), p.program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("pgbackrest: %s: %w: %s", command, err, out)
	}
	return nil
}

// Backup takes a full backup while the primary works.
func (p *PgBackRest) Backup() {
	p.t.Helper()
	p.check(p.run("backup", "--type=full", "--pg1-path="+p.primary.data, "--pg1-port="+strconv.Itoa(p.primary.port), "--pg1-socket-path="+p.room.dir, "--pg1-user=postgres"))
}

// Disaster kills the primary with SIGKILL, and takes its data directory away. What it had not pushed to the repository is lost.
func (p *PgBackRest) Disaster() {
	p.t.Helper()
	p.network.Down()
	p.primary.signal(os.Kill)
	// Its children notice a little later that they are alone, and may write until then: not to where the next server is.
	p.check(os.Rename(p.primary.data, p.primary.data+".lost"))
}

// Restore makes a new primary of the last backup and the WAL in the repository, up to a target of a type that pgBackRest knows: name, time or lsn. The one before
// must be gone, see [PgBackRest.Disaster].
func (p *PgBackRest) Restore(kind, target string) {
	p.t.Helper()
	data := p.newDirectory()
	p.check(p.make(data))
	p.check(p.run("restore", "--pg1-path="+data, "--type="+kind, "--target="+target, "--target-action=promote"))
	p.lead(p.serve(data, archiving(p.pushing(data))...))
}

// Copy starts another server beside the primary, of the last backup and all WAL in the repository, and returns its DSN. It archives nothing, as a copy must not.
func (p *PgBackRest) Copy() (dsn string) {
	p.t.Helper()
	data := p.newDirectory()
	p.check(p.make(data))
	p.check(p.run("restore", "--pg1-path="+data, "--archive-mode=off"))
	copied := p.serve(data)
	p.await(copied, `SELECT NOT pg_is_in_recovery()`)
	return copied.dsn()
}
