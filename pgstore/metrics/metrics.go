// Package metrics shows a [pgstore.Container] to Prometheus:
//
//	prometheus.MustRegister(metrics.New(store))
//
// Of several containers in one process each gets a label of its own with [prometheus.WrapRegistererWith].
//
// What is counted anyway is read when Prometheus scrapes, and costs nothing until then. What has a length or a kind is observed where it happens
// ([pgstore.Observer]): flushes, waits, reads of the database and failures, and nothing that is answered from memory.
//
// A Grafana dashboard and alert rules are beside this package, dashboard.json and alerts.yml; alerts_test.yml says when each of them fires.
// For the connection pool there are collectors elsewhere, such as github.com/IBM/pgxpoolprometheus.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Collector is a [prometheus.Collector] of one container. Names of instances, which may be phone numbers, are in no label, unless [WithInstances] says so.
type Collector struct {
	store     *pgstore.Container
	instances bool
	observed  observed
}

// Option is an option of New.
type Option func(*Collector)

// WithInstances adds a label instance_id to the waits, fetches, stops and errors. There are as many series more as there are instances that ever did
// something: right for dozens of them, and not for thousands.
func WithInstances() Option { return func(c *Collector) { c.instances = true } }

// New makes a collector, which observes the container from now on. Register it at once, and one per container.
func New(store *pgstore.Container, options ...Option) *Collector {
	c := &Collector{store: store}
	for _, option := range options {
		option(c)
	}
	c.observed = newObserved(c.instances)
	store.Observe(pgstore.Observer{
		Flushed: c.flushed, Retried: c.retried, Waited: c.waited, Fetched: c.fetched, Stopped: c.stopped, Failed: c.failed,
	})
	return c
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	for _, s := range scraped {
		to <- s.desc
	}
	for _, collector := range c.observed.all() {
		collector.Describe(to)
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	stats := c.store.Stats()
	for _, s := range scraped {
		to <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(stats))
	}
	for _, collector := range c.observed.all() {
		collector.Collect(to)
	}
}

// labels are the values of the labels, the instance's name among them if it is wanted.
func (c *Collector) labels(instance string, values ...string) []string {
	if c.instances {
		values = append(values, instance)
	}
	return values
}

func (c *Collector) flushed(f pgstore.Flush) {
	result := resultOK
	if f.Err != nil {
		result = resultFailed
	}
	c.observed.flushDuration.WithLabelValues(result).Observe(f.Took.Seconds())
	c.observed.flushKeys.Observe(float64(f.Keys))
	c.observed.flushBytes.Observe(float64(f.Bytes))
}

func (c *Collector) retried(r pgstore.Retry) {
	c.observed.retries.WithLabelValues(string(r.Operation), r.Class).Inc()
}

func (c *Collector) waited(w pgstore.Wait) {
	labels := c.labels(w.Instance, string(w.Reason))
	c.observed.waitDuration.WithLabelValues(labels...).Observe(w.Took.Seconds())
	if w.Err != nil {
		c.observed.waitsInVain.WithLabelValues(labels...).Inc()
	}
}

func (c *Collector) fetched(f pgstore.Fetch) {
	c.observed.fetchDuration.WithLabelValues(c.labels(f.Instance, string(f.Kind))...).Observe(f.Took.Seconds())
	c.observed.fetchedKeys.WithLabelValues(c.labels(f.Instance, string(f.Kind))...).Add(float64(f.Keys))
}

func (c *Collector) stopped(s pgstore.Stop) {
	c.observed.stops.WithLabelValues(c.labels(s.Instance, pgstore.ErrorType(s.Err))...).Inc()
}

func (c *Collector) failed(f pgstore.Failure) {
	c.observed.errors.WithLabelValues(c.labels(f.Instance, pgstore.ErrorType(f.Err))...).Inc()
}

// seconds is a length as Prometheus wants it.
func seconds(d time.Duration) float64 { return d.Seconds() }
