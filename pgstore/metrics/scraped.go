package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// one is a metric that is read from a snapshot of the container's counters.
type one struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(pgstore.Stats) float64
}

func gauge(name, help string, value func(pgstore.Stats) float64) one {
	return one{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

func counter(name, help string, value func(pgstore.Stats) float64) one {
	return one{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

// scraped are those metrics.
var scraped = []one{
	// pgstore_instances: what moves when processes come and go.
	gauge("pgstore_instances", "Instances that this process has taken.",
		func(s pgstore.Stats) float64 { return float64(s.Instances) }),
	// pgstore_stopped_instances: each needs somebody to look at it, unless another process has it now.
	gauge("pgstore_stopped_instances", "Instances that stopped by themselves and were not taken here again.",
		func(s pgstore.Stats) float64 { return float64(s.Batcher.Stopped) }),

	// pgstore_pending_keys: what a crash would lose. Usually nearly none, and growing while the database is away.
	gauge("pgstore_pending_keys", "Keys that were written and are not durable yet.",
		func(s pgstore.Stats) float64 { return float64(s.Batcher.Pending) }),
	// pgstore_pending_keys_limit: Config.PendingLimit.
	gauge("pgstore_pending_keys_limit", "Pending keys at which writers are blocked.",
		func(s pgstore.Stats) float64 { return float64(s.PendingLimit) }),
	// pgstore_pending_bytes: likewise, in memory.
	gauge("pgstore_pending_bytes", "Bytes of the keys that are not durable yet, older values on their way included.",
		func(s pgstore.Stats) float64 { return float64(s.Batcher.PendingBytes) }),
	// pgstore_pending_limit_bytes: Config.PendingBytes.
	gauge("pgstore_pending_limit_bytes", "Pending bytes at which writers are blocked.",
		func(s pgstore.Stats) float64 { return float64(s.PendingBytes) }),
	// pgstore_pending_age_seconds: below a second while the database is well.
	gauge("pgstore_pending_age_seconds", "How long the oldest of the pending keys has been waiting, counted anew with each flush of its instance.",
		func(s pgstore.Stats) float64 { return seconds(s.Batcher.Oldest) }),
	// pgstore_pending_lid_pairs: LID pairs have a queue of their own.
	gauge("pgstore_pending_lid_pairs", "Pairs of phone numbers and LIDs that are not durable yet.",
		func(s pgstore.Stats) float64 { return float64(s.PendingLID) }),
	// pgstore_blocked_writers: more than none means that messages wait.
	gauge("pgstore_blocked_writers", "Calls that wait until less is pending.",
		func(s pgstore.Stats) float64 { return float64(s.Batcher.Blocked) }),
	// pgstore_flushed_keys_total: what the database gets to write.
	counter("pgstore_flushed_keys_total", "Keys that became durable through a flush.",
		func(s pgstore.Stats) float64 { return float64(s.Batcher.Flushed) }),

	// pgstore_cache_bytes: to be compared with the next one. What is not durable may exceed it.
	gauge("pgstore_cache_bytes", "Bytes of keys in memory, overhead included.",
		func(s pgstore.Stats) float64 { return float64(s.Cache.Bytes) }),
	// pgstore_cache_budget_bytes: Config.MemoryBudget, -1 for none.
	gauge("pgstore_cache_budget_bytes", "Bytes of keys that may be in memory, -1 for no limit.",
		func(s pgstore.Stats) float64 { return float64(s.MemoryBudget) }),
	// pgstore_cache_hits_total and pgstore_cache_fetches_total: together they give the hit rate.
	counter("pgstore_cache_hits_total", "Reads that were answered from memory.",
		func(s pgstore.Stats) float64 { return float64(s.Cache.Hits) }),
	counter("pgstore_cache_fetches_total", "Trips to the database for what was not in memory.",
		func(s pgstore.Stats) float64 { return float64(s.Cache.Fetches) }),
	// pgstore_cache_evictions_total: if it moves all the time, the budget is too small.
	counter("pgstore_cache_evictions_total", "Values that had to leave memory.",
		func(s pgstore.Stats) float64 { return float64(s.Cache.Evictions) }),

	// pgstore_records_merged_total: sends and decrypts of one session overlapped. No harm was done.
	counter("pgstore_records_merged_total", "Sessions and sender keys that two changed at once, and that were merged.",
		func(s pgstore.Stats) float64 { return float64(s.Merged) }),
	// pgstore_sends_refused_total: each was a message that its caller had to send again.
	counter("pgstore_sends_refused_total", "Sends that were refused because another one had used their message key.",
		func(s pgstore.Stats) float64 { return float64(s.Refused) }),
	// pgstore_ceilings_raised_total: how often a row reserved more counters of a chain that goes on.
	counter("pgstore_ceilings_raised_total", "Rows that were written with more message keys reserved than the database knew of.",
		func(s pgstore.Stats) float64 { return float64(s.Raised) }),
	// pgstore_waiting_puts_total: a send waits only for a new chain or one that used up what was reserved.
	counter("pgstore_waiting_puts_total", "Puts of sessions and sender keys that had to wait for their flush.",
		func(s pgstore.Stats) float64 { return float64(s.Waited) }),

	// pgstore_instances_healed_total: what was published of an instance was made anew after a failover or a restore.
	counter("pgstore_instances_healed_total", "Instances that were taken from a database that had gone back, or may have.",
		func(s pgstore.Stats) float64 { return float64(s.Healed) }),
	// pgstore_instances_replayed_total: memory was newer than the database.
	counter("pgstore_instances_replayed_total", "Instances that were written again since the database went back under them, or may have.",
		func(s pgstore.Stats) float64 { return float64(s.Replayed) }),
	// pgstore_rows_set_aside_total: rows in the table set_aside are for a person to look at.
	counter("pgstore_rows_set_aside_total", "Rows that could not be read and were set aside.",
		func(s pgstore.Stats) float64 { return float64(s.SetAside) }),
	// pgstore_lease_lapses_total: others may have claimed what this process had.
	counter("pgstore_lease_lapses_total", "Times that the lease was not renewed in time.",
		func(s pgstore.Stats) float64 { return float64(s.Lapses) }),
}
