package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are a process's numbers. None has an instance as a label: there may be thousands.
type metrics struct {
	registry              *prometheus.Registry
	received, sent, codes prometheus.Counter
	webhooks              *prometheus.CounterVec
	requests              *prometheus.HistogramVec
}

func newMetrics(g *gateway, registry *prometheus.Registry) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "gateway_" + name + "_total", Help: help})
	}
	m := &metrics{
		registry: registry,
		received: counter("messages_received", "Messages that came in."),
		sent:     counter("messages_sent", "Messages that were sent."),
		codes:    counter("codes_shown", "How often somebody had to scan a code."),
		webhooks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gateway_webhooks_total", Help: "Attempts to deliver a webhook."}, []string{"result"}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gateway_request_seconds", Help: "How long requests took.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 10),
		}, []string{"route", "code"}),
	}
	registry.MustRegister(m.received, m.sent, m.codes, m.webhooks, m.requests, &storeCollector{g},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// measured measures a route.
func (m *metrics) measured(pattern string, h http.Handler) http.Handler {
	return promhttp.InstrumentHandlerDuration(m.requests.MustCurryWith(prometheus.Labels{"route": pattern}), h)
}

// storeCollector tells what the store tells of itself, and how many instances are here.
type storeCollector struct{ g *gateway }

var (
	instancesDesc = describe("gateway_instances", "Instances whose client is in this process, by state.", "state")
	readyDesc     = describe("gateway_ready", "Whether this process takes its share of the instances.")
	pendingDesc   = describe("pgstore_pending_keys", "Keys that are not in the database yet.")
	oldestDesc    = describe("pgstore_pending_seconds", "How long the oldest of them has been waiting.")
	blockedDesc   = describe("pgstore_blocked_writers", "Writers that wait for room.")
	flushDesc     = describe("pgstore_last_flush_seconds", "How long the last flush took.")
	flushesDesc   = describe("pgstore_flushes_total", "Statements that have saved keys.")
	flushedDesc   = describe("pgstore_flushed_keys_total", "Keys that were saved.")
	retriesDesc   = describe("pgstore_flush_retries_total", "Flushes that were tried again.")
	cachedDesc    = describe("pgstore_cached_bytes", "Keys in memory.")
	fetchesDesc   = describe("pgstore_fetches_total", "Reads that needed the database.")
	hitsDesc      = describe("pgstore_hits_total", "Reads that did not.")
	refusedDesc   = describe("pgstore_refused_sends_total", "Sends that lost their message key to another one, and were sent again.")
	healedDesc    = describe("pgstore_healed_total", "Instances that were taken from a database that had gone back.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements [prometheus.Collector].
func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements [prometheus.Collector].
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, value, labels...)
	}
	states := map[string]int{"connected": 0}
	for _, in := range c.g.all() {
		states[in.state()]++
	}
	for state, n := range states {
		send(instancesDesc, prometheus.GaugeValue, float64(n), state)
	}
	ready := 0.0
	if c.g.ready.Load() {
		ready = 1
	}
	send(readyDesc, prometheus.GaugeValue, ready)
	s := c.g.store.Stats()
	send(pendingDesc, prometheus.GaugeValue, float64(s.Batcher.Pending))
	send(oldestDesc, prometheus.GaugeValue, s.Batcher.Oldest.Seconds())
	send(blockedDesc, prometheus.GaugeValue, float64(s.Batcher.Blocked))
	send(flushDesc, prometheus.GaugeValue, s.Batcher.LastFlush.Seconds())
	send(flushesDesc, prometheus.CounterValue, float64(s.Batcher.Flushes))
	send(flushedDesc, prometheus.CounterValue, float64(s.Batcher.Flushed))
	send(retriesDesc, prometheus.CounterValue, float64(s.Batcher.Retries))
	send(cachedDesc, prometheus.GaugeValue, float64(s.Cache.Bytes))
	send(fetchesDesc, prometheus.CounterValue, float64(s.Cache.Fetches))
	send(hitsDesc, prometheus.CounterValue, float64(s.Cache.Hits))
	send(refusedDesc, prometheus.CounterValue, float64(s.Refused))
	send(healedDesc, prometheus.CounterValue, float64(s.Healed))
}
