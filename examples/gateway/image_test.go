package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// docker runs a command of Docker and returns what it prints.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	command := exec.Command("docker", args...)
	var said strings.Builder
	command.Stderr = &said
	out, err := command.Output()
	require.NoError(t, err, "docker %s: %s", strings.Join(args, " "), said.String())
	return strings.TrimSpace(string(out))
}

// The image runs as compose.yaml and kubernetes.yaml run it: without a shell or anything else beside the program, on a file system that cannot be written, as
// somebody without rights; and the program is process 1, hears SIGTERM and hands over. The image's base cannot be had everywhere, so it is an empty one here. The
// program is linked statically from what is compiled anyway; to compile all of it without C, as the Dockerfile does, takes minutes.
func TestTheImageRunsAsTheManifestsSay(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || exec.Command("docker", "info").Run() != nil {
		pgtest.Missing(t, "Docker on Linux")
	}
	dockerfile, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	_, stage, ok := strings.Cut(string(dockerfile), "\nFROM gcr.io/distroless/static-debian12:nonroot\n")
	require.True(t, ok)
	context := t.TempDir()
	stage = "FROM scratch\n" + strings.ReplaceAll(stage, "COPY --from=build /gateway", "COPY gateway")
	require.NoError(t, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte(stage), 0o644))
	if out, err := exec.Command("go", "build", "-ldflags", "-s -linkmode external -extldflags -static", "-o", filepath.Join(context, "gateway"), ".").CombinedOutput(); err != nil {
		t.Log(string(out))
		pgtest.Missing(t, "a C compiler with a static library")
	}
	image := docker(t, "build", "-q", context)
	t.Cleanup(func() { docker(t, "rmi", "-f", image) })

	b := newBench(t)
	container := docker(t, "run", "-d", "--network", "host", "--read-only", "--user", "65532:65532", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
		"-e", "GATEWAY_DATABASE_URL="+b.dsn, "-e", "GATEWAY_LISTEN=127.0.0.1:0", "-e", "GATEWAY_PROBE_LISTEN=127.0.0.1:0", "-e", "GATEWAY_NAME=gateway-7",
		"-e", "GATEWAY_API_KEY="+testKey, "-e", "GATEWAY_SECRET="+someSecret, image)
	t.Cleanup(func() { docker(t, "rm", "-f", container) })
	logged := func(pattern string) (found string) {
		require.Eventually(t, func() bool {
			logs, err := exec.Command("docker", "logs", container).CombinedOutput()
			require.NoError(t, err)
			match := regexp.MustCompile(pattern).FindStringSubmatch(string(logs))
			if match != nil {
				found = match[1]
			}
			return match != nil
		}, atMost, 100*time.Millisecond, pattern)
		return found
	}
	g := b.begun("http://"+logged(`gateway listens".* address=(\S+)`), "gateway-7", func() {})
	response, err := http.Get("http://" + logged(`probes are answered".* address=(\S+)`) + "/readyz")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	g.ask(t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": "support"}, nil)
	require.Equal(t, "new", g.instance(t, "support").State)

	docker(t, "stop", "-t", "90", container)
	require.Equal(t, "0", docker(t, "inspect", "-f", "{{.State.ExitCode}}", container))
	require.Equal(t, "ended", logged(`gateway has (ended)`))
}
