package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What compose.yaml and kubernetes.yaml set exists, and they give a process the time that its end takes at most.
func TestTheManifestsFitTheGateway(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"compose.yaml", "kubernetes.yaml"} {
		manifest, err := os.ReadFile(name)
		require.NoError(t, err)
		used := regexp.MustCompile(`\bGATEWAY_[A-Z_]+`).FindAllString(string(manifest), -1)
		require.NotEmpty(t, used)
		fs, _ := flags()
		for _, variable := range used {
			option := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(variable, "GATEWAY_")), "_", "-")
			require.NotNil(t, fs.Lookup(option), "%s in %s is a flag", variable, name)
		}
	}
	fs, cfg := flags()
	require.NoError(t, fs.Parse(nil))
	// In the order of the end: a request has waited for its connection and sends; the clients end; the directory is told; pgstore's Close gives up; what is
	// under way comes to its end.
	const closing = 30 * time.Second
	end := connectionWait + sendTimeout + handshakeWait + saveTimeout + max(closing, leaveTimeout) + cfg.patience + jobsCancelled

	var compose struct {
		Services map[string]struct {
			Grace string `yaml:"stop_grace_period"`
		} `yaml:"services"`
	}
	manifest, err := os.ReadFile("compose.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(manifest, &compose))
	grace, err := time.ParseDuration(compose.Services["gateway-1"].Grace)
	require.NoError(t, err)
	require.Greater(t, grace, end)

	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Lifecycle struct {
							PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
						}
					}
				}
			}
		}
	}
	manifest, err = os.ReadFile("kubernetes.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.NewDecoder(bytes.NewReader(manifest)).Decode(&deployment))
	pod := deployment.Spec.Template.Spec
	sleep := time.Duration(pod.Containers[0].Lifecycle.PreStop.Sleep.Seconds) * time.Second
	require.Positive(t, sleep)
	require.Greater(t, time.Duration(pod.Grace)*time.Second, sleep+end)
	require.Contains(t, string(manifest), fmt.Sprintf("%.0f s of preStop, %.0f s until the clients have ended, %.0f s to save and to close", sleep.Seconds(),
		(connectionWait+sendTimeout+handshakeWait).Seconds(), (saveTimeout+closing).Seconds()))
	require.Contains(t, string(manifest), fmt.Sprintf("%.0f s for requests and webhooks", (cfg.patience+jobsCancelled).Seconds()))
	require.Contains(t, string(manifest), fmt.Sprintf("GATEWAY_LEASE, %.0f s", pgstore.DefaultLease.Seconds()))
}

// The flag -x and the variable GATEWAY_X say the same, and the flag wins.
func TestFlagsAndEnvironmentHaveTheSameNames(t *testing.T) {
	for _, variable := range os.Environ() {
		require.False(t, strings.HasPrefix(variable, "GATEWAY_"), "this machine sets %s", variable)
	}
	t.Setenv("GATEWAY_DATABASE_URL", "postgres://environment")
	t.Setenv("GATEWAY_MAX_INSTANCES", "7")
	t.Setenv("GATEWAY_LEASE", "3s")
	cfg, err := parse([]string{"-lease", "4s"})
	require.NoError(t, err)
	require.Equal(t, "postgres://environment", cfg.databaseURL)
	require.Equal(t, 7, cfg.maxInstances)
	require.Equal(t, 4*time.Second, cfg.lease)
	t.Setenv("GATEWAY_MAX_INSTANCES", "many")
	_, err = parse(nil)
	require.ErrorContains(t, err, "GATEWAY_MAX_INSTANCES")
	_, err = parse([]string{"-help"})
	require.ErrorIs(t, err, flag.ErrHelp)
}
