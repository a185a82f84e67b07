package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	containerlog "github.com/testcontainers/testcontainers-go/log"
)

const dockerTimeout = 3 * time.Second

func init() {
	if !testing.Testing() { // an example has its own output, and every failure is also an error
		containerlog.SetDefault(containerlog.NewNoopLogger())
	}
}

// startDocker starts a server in a container. PGSTORE_TEST_IMAGE names another image than the official one.
func startDocker(ctx context.Context) (*Server, error) {
	server, _, err := startContainer(ctx, 0, "")
	return server, err
}

// startContainer takes a free port if none is given. With a volume, which it makes if there is none, the data outlive the container.
func startContainer(ctx context.Context, port int, volume string) (*Server, testcontainers.Container, error) {
	probe, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	if out, err := exec.CommandContext(probe, "docker", "info", "--format", "{{.ServerVersion}}").Output(); err != nil || len(out) < 2 {
		return nil, nil, errors.New("docker: no daemon answers")
	}
	if port == 0 {
		var err error
		if port, err = freePort(); err != nil {
			return nil, nil, err
		}
	}
	var mounts testcontainers.ContainerMounts
	if volume != "" {
		mounts = testcontainers.Mounts(testcontainers.VolumeMount(volume, "/var/lib/postgresql/data"))
	}
	image := cmp.Or(os.Getenv("PGSTORE_TEST_IMAGE"), "postgres:17-alpine")
	running, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		Started: true,
		ContainerRequest: testcontainers.ContainerRequest{
			Image:        image,
			ExposedPorts: []string{"5432/tcp"},
			Mounts:       mounts,
			Tmpfs:        map[string]string{smallDisk: "size=32m"},
			ConfigModifier: func(config *container.Config) {
				config.StopSignal = "SIGINT" // PostgreSQL does not wait for its clients then
			},
			HostConfigModifier: func(host *container.HostConfig) {
				host.PortBindings = network.PortMap{
					network.MustParsePort("5432/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(port)}}, // the same after a restart
				}
			},
			Cmd: []string{"-c", "fsync=off", "-c", "max_connections=300"}, // nothing here has to survive the machine
			Env: map[string]string{"POSTGRES_PASSWORD": "test", "POSTGRES_USER": "postgres", "POSTGRES_DB": "postgres"},
		},
	})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("docker: %w", err), testcontainers.TerminateContainer(running))
	}
	server := &Server{
		DSN:         fmt.Sprintf("postgres://postgres:test@127.0.0.1:%d/postgres?sslmode=disable", port),
		Description: image + " in Docker",
		stop:        func() error { return running.Terminate(context.Background()) },
		kill:        func() error { return stopAndStart(running, 0) },
	}
	if err = server.await(ctx); err != nil {
		return nil, nil, errors.Join(err, server.Stop())
	}
	return server, running, nil
}

// Container is a PostgreSQL in a container of a test's own, with its data on a volume.
type Container struct {
	DSN     string
	t       testing.TB
	port    int
	volume  string
	running testcontainers.Container
}

// NewContainer starts one. It ends with the test, and so do its data. Without Docker the test is skipped; in CI it fails.
func NewContainer(t testing.TB) *Container {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	c := &Container{t: t, port: port, volume: fmt.Sprint("pgstore-", uuid.New())}
	if err = c.start(); err != nil {
		Missing(t, "Docker ("+err.Error()+")")
	}
	t.Cleanup(func() {
		if err := c.running.Terminate(context.Background(), testcontainers.RemoveVolumes(c.volume)); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *Container) start() error {
	server, running, err := startContainer(context.Background(), c.port, c.volume)
	if err == nil {
		c.DSN, c.running = server.DSN, running
	}
	return err
}

// Restart stops the container in an orderly way and starts it again.
func (c *Container) Restart() { c.check(stopAndStart(c.running, 10*time.Second)) }

// Kill ends all its processes at once and starts the container again on the data that they left.
func (c *Container) Kill() { c.check(stopAndStart(c.running, 0)) }

// Replace kills the container, removes it, and starts a new one on the volume that it left. The DSN stays.
func (c *Container) Replace() {
	c.check(errors.Join(c.running.Terminate(context.Background(), testcontainers.StopTimeout(0)), c.start()))
}

func (c *Container) check(err error) {
	if err != nil {
		c.t.Error(err)
	}
}

func stopAndStart(running testcontainers.Container, patience time.Duration) error {
	return errors.Join(running.Stop(context.Background(), &patience), running.Start(context.Background()))
}

// smallDisk is where a container has a disk that is soon full.
const smallDisk = "/small"

// SmallTablespace makes a tablespace on a disk of 32 MB, and returns its name. It does not outlive a Restart, Kill or Replace.
func (c *Container) SmallTablespace() string {
	c.t.Helper()
	c.run("mkdir " + smallDisk + "/data && chown postgres " + smallDisk + "/data && psql --command=\"CREATE TABLESPACE small LOCATION '" + smallDisk + "/data'\"")
	return "small"
}

const dumpFile = "/tmp/dump"

// Dump is what pg_dump makes of the database, or of what options say.
func (c *Container) Dump(options ...string) []byte {
	c.t.Helper()
	c.run("pg_dump --format=custom --file=" + dumpFile + " " + strings.Join(options, " "))
	file, err := c.running.CopyFileFromContainer(context.Background(), dumpFile)
	if err != nil {
		c.t.Fatal(err)
	}
	dump, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		c.t.Fatal(err)
	}
	return dump
}

// Restore lets pg_restore read a dump.
func (c *Container) Restore(dump []byte) {
	c.t.Helper()
	if err := c.running.CopyToContainer(context.Background(), dump, dumpFile, 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.run("pg_restore --exit-on-error --dbname=postgres " + dumpFile)
}

func (c *Container) run(command string) {
	c.t.Helper()
	code, out, err := c.running.Exec(context.Background(), []string{"sh", "-c", "export PGHOST=127.0.0.1 PGUSER=postgres PGPASSWORD=test; " + command})
	if err != nil {
		c.t.Fatal(err)
	}
	said, _ := io.ReadAll(out)
	if code != 0 {
		c.t.Fatalf("%s: %s", command, said)
	}
}
