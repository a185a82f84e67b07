package main

import (
	"bytes"
	"net/http"
	"os"
	"regexp"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// The dashboard and the alert rules of pgstore/metrics fit the gateway: it serves every metric of the store that they use.
func TestTheStoresDashboardAndAlertsFitTheGateway(t *testing.T) {
	t.Parallel()
	served := newBench(t).gateway("one").served(t)
	for _, file := range []string{"dashboard.json", "alerts.yml"} {
		text, err := os.ReadFile("../../pgstore/metrics/" + file)
		require.NoError(t, err)
		used := regexp.MustCompile(`\bpgstore_[a-z_]+`).FindAllString(string(text), -1)
		require.NotEmpty(t, used)
		for _, name := range used {
			require.Contains(t, served, name, file)
		}
	}
}

// served are the names of all series at /metrics.
func (g *runningGateway) served(t *testing.T) map[string]bool {
	t.Helper()
	body := g.ask(t, http.StatusOK, http.MethodGet, "/metrics", nil, nil).body
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	names := make(map[string]bool)
	for name, family := range families {
		names[name] = true
		for _, m := range family.GetMetric() {
			if m.GetHistogram() != nil {
				names[name+"_bucket"], names[name+"_sum"], names[name+"_count"] = true, true, true
			}
		}
	}
	return names
}
