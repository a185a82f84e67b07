package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const (
	resultOK     = "ok"
	resultFailed = "failed"
)

// From a flush on loopback to one that its limit ends.
var (
	durations = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	sizes     = prometheus.ExponentialBuckets(1, 4, 8)     // keys, up to some 16,000
	bytes     = prometheus.ExponentialBuckets(1<<10, 4, 9) // 1 KiB to 64 MiB
)

// observed are the metrics of what has a length or a kind.
type observed struct {
	// pgstore_flush_duration_seconds, by result: ok, or failed, after which it is tried again unless it was refused for good.
	flushDuration *prometheus.HistogramVec
	// pgstore_flush_keys: few and large ones are what write-behind is for.
	flushKeys prometheus.Histogram
	// pgstore_flush_bytes: likewise.
	flushBytes prometheus.Histogram
	// pgstore_retries_total, by operation (flush, statement) and class: that of the SQLSTATE, or connection, timeout, moved (see pgstore.Retry).
	retries *prometheus.CounterVec
	// pgstore_wait_duration_seconds, by reason (pgstore.WaitReason). What waits for nothing is not in it.
	waitDuration *prometheus.HistogramVec
	// pgstore_waits_in_vain_total, by reason: those that ended with the call's context, or with the time that the configuration grants.
	waitsInVain *prometheus.CounterVec
	// pgstore_fetch_duration_seconds, by kind: instance when one is opened, keys for what was not in memory.
	fetchDuration *prometheus.HistogramVec
	// pgstore_fetched_keys_total, likewise.
	fetchedKeys *prometheus.CounterVec
	// pgstore_stops_total, by reason: ownership_lost if another process took an instance; refused, rewound or deleted.
	stops *prometheus.CounterVec
	// pgstore_errors_total, by type (pgstore.ErrorType): calls of the stores that failed. data_key and not_encrypted are those that encryption at rest refuses.
	errors *prometheus.CounterVec
}

func newObserved(instances bool) observed {
	labels := func(names ...string) []string {
		if instances {
			names = append(names, "instance_id") // "instance" is Prometheus's own
		}
		return names
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}
	}
	total := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	o := observed{
		flushDuration: prometheus.NewHistogramVec(histogram("pgstore_flush_duration_seconds", "How long attempts at a flush took.", durations), []string{"result"}),
		flushKeys:     prometheus.NewHistogram(histogram("pgstore_flush_keys", "Keys of an attempt at a flush.", sizes)),
		flushBytes:    prometheus.NewHistogram(histogram("pgstore_flush_bytes", "Bytes of an attempt at a flush.", bytes)),
		retries:       total("pgstore_retries_total", "Failures after which something was tried again.", []string{"operation", "class"}),
		waitDuration:  prometheus.NewHistogramVec(histogram("pgstore_wait_duration_seconds", "How long calls have waited.", durations), labels("reason")),
		waitsInVain:   total("pgstore_waits_in_vain_total", "Waits that were given up.", labels("reason")),
		fetchDuration: prometheus.NewHistogramVec(histogram("pgstore_fetch_duration_seconds", "How long reads of keys took.", durations), labels("kind")),
		fetchedKeys:   total("pgstore_fetched_keys_total", "Keys that were read from the database.", labels("kind")),
		stops:         total("pgstore_stops_total", "Instances that stopped by themselves.", labels("reason")),
		errors:        total("pgstore_errors_total", "Calls of the stores that failed.", labels("type")),
	}
	o.begin(instances)
	return o
}

// begin lets series begin at zero, since the first of their events would otherwise be no increase to Prometheus.
func (o observed) begin(instances bool) {
	for _, result := range []string{resultOK, resultFailed} {
		o.flushDuration.WithLabelValues(result)
	}
	for _, operation := range []pgstore.RetryOperation{pgstore.RetryFlush, pgstore.RetryStatement} {
		for _, class := range []string{"connection", "timeout", "moved"} {
			o.retries.WithLabelValues(string(operation), class)
		}
	}
	if instances {
		return
	}
	for _, reason := range pgstore.WaitReasons() {
		o.waitDuration.WithLabelValues(string(reason))
		o.waitsInVain.WithLabelValues(string(reason))
	}
	for _, kind := range []pgstore.FetchKind{pgstore.FetchInstance, pgstore.FetchKeys} {
		o.fetchDuration.WithLabelValues(string(kind))
		o.fetchedKeys.WithLabelValues(string(kind))
	}
	for _, kind := range pgstore.ErrorTypes() {
		o.errors.WithLabelValues(kind)
	}
	for _, err := range []error{pgstore.ErrOwnershipLost, pgstore.ErrRefused, pgstore.ErrDatabaseRewound, pgstore.ErrDeviceDeleted} {
		o.stops.WithLabelValues(pgstore.ErrorType(err))
	}
}

func (o observed) all() []prometheus.Collector {
	return []prometheus.Collector{
		o.flushDuration, o.flushKeys, o.flushBytes, o.retries, o.waitDuration, o.waitsInVain, o.fetchDuration, o.fetchedKeys, o.stops, o.errors,
	}
}
