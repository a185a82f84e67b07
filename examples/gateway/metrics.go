package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	storemetrics "github.com/wataki/whatsmeow-pgstore/pgstore/metrics"
)

// metrics are a process's numbers, beside those of the store, for which there are a dashboard and alerts in pgstore/metrics. None has an instance as a
// label: there may be thousands.
type metrics struct {
	registry                      *prometheus.Registry
	received, sent, codes         prometheus.Counter
	connections, probeConnections prometheus.Gauge
	webhooks                      *prometheus.CounterVec
	requests                      *prometheus.HistogramVec
}

func newMetrics(g *gateway, registry *prometheus.Registry) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "gateway_" + name + "_total", Help: help})
	}
	connections := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "gateway_connections", Help: "Connections that are open."}, []string{"to"})
	m := &metrics{
		connections: connections.WithLabelValues("api"), probeConnections: connections.WithLabelValues("probes"),
		registry: registry,
		received: counter("messages_received", "Messages that came in."),
		sent:     counter("messages_sent", "Messages that were sent."),
		codes:    counter("codes_shown", "How often somebody had to scan a code."),
		webhooks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_webhooks_total", Help: "Attempts to deliver a webhook."}, []string{"result"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gateway_request_seconds", Help: "How long requests took.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 10),
		}, []string{"route", "code"}),
	}
	registry.MustRegister(m.received, m.sent, m.codes, connections, m.webhooks, m.requests, &instanceCollector{g},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if store, ok := g.store.(*pgstore.Container); ok {
		registry.MustRegister(storemetrics.New(store))
	}
	return m
}

// measured measures a route.
func (m *metrics) measured(pattern string, h http.Handler) http.Handler {
	return promhttp.InstrumentHandlerDuration(m.requests.MustCurryWith(prometheus.Labels{"route": pattern}), h)
}

// instanceCollector tells how many instances are here.
type instanceCollector struct{ g *gateway }

var (
	instancesDesc = prometheus.NewDesc("gateway_instances", "Instances whose client is in this process, by state.", []string{"state"}, nil)
	readyDesc     = prometheus.NewDesc("gateway_ready", "Whether this process takes its share of the instances.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (c *instanceCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements [prometheus.Collector].
func (c *instanceCollector) Collect(ch chan<- prometheus.Metric) {
	states := map[string]int{"connected": 0}
	for _, in := range c.g.all() {
		states[in.state()]++
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(instancesDesc, prometheus.GaugeValue, float64(n), state)
	}
	ready := 0.0
	if c.g.ready.Load() {
		ready = 1
	}
	ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready)
}
