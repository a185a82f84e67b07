package metrics_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/metrics"
)

type rule struct{ Alert, Expr string }

// alertRules are those of alerts.yml.
func alertRules(t *testing.T) (rules []rule) {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []rule }
	}
	data, err := os.ReadFile("alerts.yml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, &file))
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	require.NotEmpty(t, rules)
	return rules
}

// dashboardQueries are all queries of the dashboard, those of its variables included.
func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	data, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Query any } }
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	require.NoError(t, decoder.Decode(&board))
	for _, p := range board.Panels {
		require.True(t, p.Type == "row" || len(p.Targets) > 0, p.Title)
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	for _, v := range board.Templating.List {
		queries = append(queries, fmt.Sprint(v.Query))
	}
	return queries
}

var (
	metricName = regexp.MustCompile(`\bpgstore_[a-z_]+`)
	matcher    = regexp.MustCompile(`\b(?:result|reason|kind|type|operation|class)=~?"([^"$]+)"`)
	grouped    = regexp.MustCompile(`(?:by|on) \(([^)]+)\)`)
)

// Every metric, label and value that the dashboard and the alerts name is one that the collector has, and the dashboard shows all there are.
func TestDashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	t.Parallel()
	c, err := pgstore.New(ctx, pgtest.Open(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	collector := metrics.New(c)
	there := described(collector)
	labels, values := seriesOf(t, collector)
	labels = append(labels, "le", "instance", "job")

	used := make(map[string]bool)
	check := func(query string) {
		found := metricName.FindAllString(query, -1)
		require.NotEmpty(t, found, query)
		for _, name := range found {
			if !slices.Contains(there, name) {
				base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
				require.Contains(t, there, base, query)
				name = base
			}
			used[name] = true
		}
		for _, m := range matcher.FindAllStringSubmatch(query, -1) {
			for value := range strings.SplitSeq(m[1], "|") {
				require.Contains(t, values, value, query)
			}
		}
		for _, g := range grouped.FindAllStringSubmatch(query, -1) {
			for label := range strings.SplitSeq(g[1], ", ") {
				require.Contains(t, labels, label, query)
			}
		}
	}
	for _, r := range alertRules(t) {
		check(r.Expr)
	}
	clear(used)
	for _, query := range dashboardQueries(t) {
		if strings.Contains(query, "pgstore") {
			check(query)
		}
	}
	for _, name := range there {
		require.True(t, used[name], "the dashboard does not show %s", name)
	}
}

// promtool runs Prometheus's own tool.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		pgtest.Missing(t, "promtool")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	require.NoError(t, err, string(out))
}

// Every alert fires when it should and is quiet when it should, and the queries of the dashboard are well-formed.
func TestAlertsFireAndAreQuiet(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("alerts_test.yml")
	require.NoError(t, err)
	var file struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	require.NoError(t, yaml.Unmarshal(data, &file))
	fires, quiet := make(map[string]bool), make(map[string]bool)
	for _, test := range file.Tests {
		for _, a := range test.AlertRuleTest {
			fires[a.Alertname] = fires[a.Alertname] || len(a.ExpAlerts) > 0
			quiet[a.Alertname] = quiet[a.Alertname] || len(a.ExpAlerts) == 0
		}
	}
	for _, r := range alertRules(t) {
		require.True(t, fires[r.Alert] && quiet[r.Alert], "%s has no test that it fires and that it does not", r.Alert)
	}
	promtool(t, "check", "rules", "alerts.yml")
	promtool(t, "test", "rules", "alerts_test.yml")

	var asRules strings.Builder
	asRules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, query := range dashboardQueries(t) {
		if !strings.Contains(query, "label_values") && strings.Contains(query, "pgstore") {
			fmt.Fprintf(&asRules, "  - {record: 'q:%d', expr: '%s'}\n", i, strings.ReplaceAll(query, "$__rate_interval", "5m"))
		}
	}
	path := filepath.Join(t.TempDir(), "dashboard.yml")
	require.NoError(t, os.WriteFile(path, []byte(asRules.String()), 0o600))
	promtool(t, "check", "rules", path)
}
