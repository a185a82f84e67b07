package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
)

const dockerTimeout = 3 * time.Second

// startDocker starts a server in a container. PGSTORE_TEST_IMAGE names another image than the official one.
func startDocker(ctx context.Context) (*Server, error) {
	server, _, err := startContainer(ctx)
	return server, err
}

func startContainer(ctx context.Context) (*Server, testcontainers.Container, error) {
	probe, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	if out, err := exec.CommandContext(probe, "docker", "info", "--format", "{{.ServerVersion}}").Output(); err != nil || len(out) < 2 {
		return nil, nil, errors.New("docker: no daemon answers")
	}
	port, err := freePort()
	if err != nil {
		return nil, nil, err
	}
	image := cmp.Or(os.Getenv("PGSTORE_TEST_IMAGE"), "postgres:17-alpine")
	running, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		Started: true,
		ContainerRequest: testcontainers.ContainerRequest{
			Image:        image,
			ExposedPorts: []string{"5432/tcp"},
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
		return nil, nil, fmt.Errorf("docker: %w", err)
	}
	server := &Server{
		DSN:         fmt.Sprintf("postgres://postgres:test@127.0.0.1:%d/postgres?sslmode=disable", port),
		Description: image + " in Docker",
		stop:        func() error { return running.Terminate(context.Background()) },
	}
	if err = server.await(ctx); err != nil {
		return nil, nil, errors.Join(err, server.Stop())
	}
	return server, running, nil
}

// Container starts a PostgreSQL in a container of the test's own and returns the DSN of an empty database, and how to restart the
// container. Without Docker the test is skipped; in CI it fails.
func Container(t testing.TB) (dsn string, restart func()) {
	t.Helper()
	server, running, err := startContainer(context.Background())
	if err != nil {
		Missing(t, "Docker ("+err.Error()+")")
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server.DSN, func() {
		patience := 10 * time.Second
		if err := errors.Join(running.Stop(context.Background(), &patience), running.Start(context.Background())); err != nil {
			t.Error(err)
		}
	}
}
