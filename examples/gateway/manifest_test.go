package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	composetypes "github.com/compose-spec/compose-go/v2/types"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What compose.yaml and kubernetes.yaml speak of exists, in their comments, too.
func TestTheManifestsNameOnlyWhatExists(t *testing.T) {
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
}

// longestEnd is how long the end of a process with the usual settings takes at most. In its order: a request has waited for its connection and sends; the clients
// end; the directory is told; pgstore's Close gives up; what is under way comes to its end.
func longestEnd(cfg config) time.Duration {
	return connectionWait + sendTimeout + handshakeWait + saveTimeout + max(closing, leaveTimeout) + cfg.patience + jobsCancelled
}

const closing = 30 * time.Second // pgstore's Close

// asArguments are variables of the environment as arguments, which parse refuses if there is no such flag.
func asArguments(environment map[string]string) (args []string) {
	for name, value := range environment {
		if option, ok := strings.CutPrefix(name, "GATEWAY_"); ok {
			args = append(args, "-"+strings.ReplaceAll(strings.ToLower(option), "_", "-")+"="+value)
		}
	}
	return args
}

func port(t *testing.T, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	require.NoError(t, err)
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}

const someSecret = "so long that nobody guesses it"

func loadCompose(t *testing.T, environment map[string]string) (*composetypes.Project, error) {
	t.Helper()
	return loader.LoadWithContext(t.Context(), composetypes.ConfigDetails{
		WorkingDir: ".", ConfigFiles: []composetypes.ConfigFile{{Filename: "compose.yaml"}}, Environment: environment,
	}, func(o *loader.Options) { o.SetProjectName("gateway", true) })
}

// Compose takes compose.yaml, asks for the secrets, and starts gateways that are complete: they reach the database through PgBouncer and each other, whoever
// looks for them from outside has to be on this machine, and they have the time for their end.
func TestTheComposeFileFitsTheGateway(t *testing.T) {
	t.Parallel()
	for _, missing := range []string{"GATEWAY_API_KEY", "GATEWAY_SECRET"} {
		secrets := map[string]string{"GATEWAY_API_KEY": someSecret, "GATEWAY_SECRET": someSecret}
		delete(secrets, missing)
		_, err := loadCompose(t, secrets)
		require.ErrorContains(t, err, missing)
	}
	project, err := loadCompose(t, map[string]string{"GATEWAY_API_KEY": someSecret, "GATEWAY_SECRET": someSecret, "POSTGRES_PASSWORD": "hidden"})
	require.NoError(t, err)

	database, bouncer := project.Services["postgres"], project.Services["pgbouncer"]
	account := func(dsn string) (user, password, host, name string) {
		cfg, err := pgx.ParseConfig(dsn)
		require.NoError(t, err)
		return cfg.User, cfg.Password, cfg.Host, cfg.Database
	}
	user, password, host, name := account(*bouncer.Environment["DATABASE_URL"])
	require.Equal(t, "postgres", host)
	require.Equal(t, []string{user, password, name}, []string{
		*database.Environment["POSTGRES_USER"], *database.Environment["POSTGRES_PASSWORD"], *database.Environment["POSTGRES_DB"],
	})
	gateways := 0
	published := make(map[string]bool)
	for _, service := range project.Services {
		for on, how := range service.DependsOn {
			require.Equal(t, composetypes.ServiceConditionHealthy, how.Condition, service.Name)
			require.NotNil(t, project.Services[on].HealthCheck, on)
		}
		if service.Build == nil {
			continue
		}
		gateways++
		require.FileExists(t, filepath.Join(service.Build.Context, service.Build.Dockerfile))
		require.True(t, service.ReadOnly)
		environment := make(map[string]string)
		for name, value := range service.Environment {
			require.NotNil(t, value, name)
			environment[name] = *value
		}
		cfg, err := parse(asArguments(environment))
		require.NoError(t, err)
		listens := port(t, cfg.listen)
		require.Equal(t, fmt.Sprintf("http://%s:%d", service.Name, listens), cfg.advertise)
		require.Equal(t, service.Name, cfg.name)
		u, p, h, d := account(cfg.databaseURL)
		require.Equal(t, []string{user, password, "pgbouncer", name}, []string{u, p, h, d})
		require.Contains(t, service.DependsOn, h)
		require.Len(t, service.Ports, 1)
		require.EqualValues(t, listens, service.Ports[0].Target)
		require.Equal(t, "127.0.0.1", service.Ports[0].HostIP)
		require.False(t, published[service.Ports[0].Published])
		published[service.Ports[0].Published] = true
		require.NotNil(t, service.StopGracePeriod)
		require.Greater(t, time.Duration(*service.StopGracePeriod), longestEnd(cfg))
	}
	require.Equal(t, 2, gateways)
}

// manifests are the objects of kubernetes.yaml. A field that does not exist is an error.
func manifests(t *testing.T) (text string, deployment appsv1.Deployment, service corev1.Service, budget policyv1.PodDisruptionBudget, network networkingv1.NetworkPolicy) {
	t.Helper()
	content, err := os.ReadFile("kubernetes.yaml")
	require.NoError(t, err)
	into := map[string]any{
		"apps/v1 Deployment": &deployment, "v1 Service": &service, "policy/v1 PodDisruptionBudget": &budget, "networking.k8s.io/v1 NetworkPolicy": &network,
	}
	for document := range strings.SplitSeq(string(content), "\n---\n") {
		var kind metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(document), &kind))
		name := kind.APIVersion + " " + kind.Kind
		require.Contains(t, into, name)
		require.NoError(t, yaml.UnmarshalStrict([]byte(document), into[name]))
		delete(into, name)
	}
	require.Empty(t, into)
	return string(content), deployment, service, budget, network
}

// Kubernetes takes kubernetes.yaml, and what it says is true of the program: the settings are complete, ports and paths exist, the objects select the pods, the probes
// wait for as long as an answer takes, and a process has the time for its end.
func TestTheKubernetesManifestFitsTheGateway(t *testing.T) {
	t.Parallel()
	text, deployment, service, budget, network := manifests(t)
	spec := deployment.Spec
	require.Equal(t, spec.Selector.MatchLabels, spec.Template.Labels)
	require.Equal(t, spec.Selector.MatchLabels, service.Spec.Selector)
	require.Equal(t, spec.Selector.MatchLabels, budget.Spec.Selector.MatchLabels)
	require.Equal(t, spec.Selector.MatchLabels, network.Spec.PodSelector.MatchLabels)
	require.Equal(t, spec.Selector.MatchLabels, spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels)
	require.Zero(t, spec.Strategy.RollingUpdate.MaxUnavailable.IntValue())
	require.Positive(t, spec.Strategy.RollingUpdate.MaxSurge.IntValue())

	require.Len(t, spec.Template.Spec.Containers, 1)
	pod := spec.Template.Spec.Containers[0]
	environment := make(map[string]string)
	expand := func(value string) string {
		for name, earlier := range environment {
			value = strings.ReplaceAll(value, "$("+name+")", earlier)
		}
		require.NotContains(t, value, "$(", "what it refers to comes before it")
		return value
	}
	for _, variable := range pod.Env {
		switch from := variable.ValueFrom; {
		case from == nil:
			environment[variable.Name] = expand(variable.Value)
		case from.SecretKeyRef != nil:
			require.Equal(t, variable.Name, "GATEWAY_"+strings.ReplaceAll(strings.ToUpper(from.SecretKeyRef.Key), "-", "_"))
			require.Contains(t, text, "kubectl create secret generic "+from.SecretKeyRef.Name+" ")
			require.Contains(t, text, "--from-literal="+from.SecretKeyRef.Key+"=")
			environment[variable.Name] = someSecret
		default:
			environment[variable.Name] = map[string]string{"status.podIP": "10.1.2.3", "metadata.name": "gateway-7"}[from.FieldRef.FieldPath]
		}
	}
	cfg, err := parse(asArguments(environment))
	require.NoError(t, err)
	ports := make(map[string]int)
	for _, p := range pod.Ports {
		ports[p.Name] = int(p.ContainerPort)
	}
	require.Equal(t, map[string]int{"http": port(t, cfg.listen), "probes": port(t, cfg.probes)}, ports)
	require.Equal(t, fmt.Sprintf("http://10.1.2.3:%d", ports["http"]), cfg.advertise)
	require.Equal(t, "gateway-7", cfg.name)
	require.Equal(t, "http", service.Spec.Ports[0].TargetPort.StrVal)
	require.Equal(t, "http", network.Spec.Ingress[0].Ports[0].Port.StrVal)

	public := make(map[string]bool)
	for _, route := range (&gateway{metrics: &metrics{}}).routes() {
		public[route.pattern] = route.public
	}
	for path, probes := range map[string][]*corev1.Probe{"/healthz": {pod.StartupProbe, pod.LivenessProbe}, "/readyz": {pod.ReadinessProbe}} {
		for _, probe := range probes {
			require.Equal(t, path, probe.HTTPGet.Path)
			require.Equal(t, "probes", probe.HTTPGet.Port.StrVal)
			require.True(t, public["GET "+path])
		}
	}
	const looksAtMemory, asksDatabase = 1, 2 // seconds at most, pgstore/health says
	require.Greater(t, pod.StartupProbe.TimeoutSeconds, int32(looksAtMemory))
	require.Greater(t, pod.LivenessProbe.TimeoutSeconds, int32(looksAtMemory))
	require.Greater(t, pod.ReadinessProbe.TimeoutSeconds, int32(looksAtMemory+asksDatabase))

	sleep := time.Duration(pod.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	require.Positive(t, sleep)
	require.Greater(t, time.Duration(*spec.Template.Spec.TerminationGracePeriodSeconds)*time.Second, sleep+longestEnd(cfg))
	require.Contains(t, text, fmt.Sprintf("%.0f s of preStop, %.0f s until the clients have ended, %.0f s to save and to close", sleep.Seconds(),
		(connectionWait+sendTimeout+handshakeWait).Seconds(), (saveTimeout+closing).Seconds()))
	require.Contains(t, text, fmt.Sprintf("%.0f s for requests and webhooks", (cfg.patience+jobsCancelled).Seconds()))
	require.Contains(t, text, fmt.Sprintf("GATEWAY_LEASE, %.0f s", pgstore.DefaultLease.Seconds()))
	require.Equal(t, pgstore.DefaultLease, cfg.lease)
}

// The image is built with the Go that the module wants, from a package that exists, and listens where the manifests say.
func TestTheDockerfileFitsTheModule(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	module, err := os.ReadFile("../../go.mod")
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(module)
	require.Contains(t, string(dockerfile), fmt.Sprintf("FROM golang:%s-", version[1]))
	built := regexp.MustCompile(`go build .* (\./\S+)\n`).FindSubmatch(dockerfile)
	require.NotNil(t, built)
	require.FileExists(t, filepath.Join("../..", string(built[1]), "main.go"))
	_, deployment, _, _, _ := manifests(t)
	require.Contains(t, string(dockerfile), fmt.Sprintf("EXPOSE %d\n", deployment.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort))
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
