package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// tableStats is what PostgreSQL counts of a table.
type tableStats struct {
	Table          string     `json:"table"`
	Rows           int64      `json:"rows"` // estimated
	Bytes          int64      `json:"bytes"`
	IndexBytes     int64      `json:"index_bytes"`
	Updates        int64      `json:"updates"`
	HotUpdates     int64      `json:"hot_updates"`
	DeadRows       int64      `json:"dead_rows"`
	LastAutovacuum *time.Time `json:"last_autovacuum"`
	BlocksHit      int64      `json:"blocks_hit"`
	BlocksRead     int64      `json:"blocks_read"`
	Options        []string   `json:"options"` // fillfactor, autovacuum and TOAST settings of its own
	HotRate        *float64   `json:"hot_rate" db:"-"`
	CacheHitRate   *float64   `json:"cache_hit_rate" db:"-"`
}

// instanceSize is how much there is of an instance.
type instanceSize struct {
	Instance string `json:"instance"`
	Keys     int64  `json:"keys"`
	Bytes    int64  `json:"bytes"`
}

// statistics is what stats prints.
type statistics struct {
	Instances int64          `json:"instances"`
	ByType    []keySize      `json:"by_type"`
	Largest   []instanceSize `json:"largest"`
	Tables    []tableStats   `json:"tables"`
	Settings  []setting      `json:"settings"`
}

// setting is one of the server's.
type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (a *app) statsCommand() *cobra.Command {
	var largest int
	var instance string
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Show sizes, HOT rate, dead rows and the server's cache",
		Long: `Shows sizes by key type and of the largest instances, and of each table the share of heap-only (HOT) updates, dead rows, its own autovacuum settings and how much is
read from the server's cache. It reads all rows once to add up their sizes; what is of PostgreSQL's statistics counts since they were last reset.

JSON: instances, by_type[]: key_type, keys, bytes, last_write; largest[]: instance, keys, bytes; tables[]: table, rows, bytes, index_bytes, updates, hot_updates,
hot_rate, dead_rows, last_autovacuum, blocks_hit, blocks_read, cache_hit_rate, options; settings[]: name, value.`,
		Example: "  whatsmeow-pgstore stats\n  whatsmeow-pgstore stats --instance shop-42\n  whatsmeow-pgstore stats --json | jq '.tables[] | {table, hot_rate}'",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			if largest < 0 {
				return usage("--largest is %d, must be positive", largest)
			}
			s, err := db.statistics(ctx, instance, largest)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			a.printStatistics(s)
			return nil
		}),
	}
	cmd.Flags().IntVar(&largest, "largest", 10, "how many of the largest instances to list")
	cmd.Flags().StringVar(&instance, "instance", "", "sizes of this instance alone")
	_ = cmd.RegisterFlagCompletionFunc("instance", a.completeInstance)
	return cmd
}

func (db *database) statistics(ctx context.Context, instance string, largest int) (*statistics, error) {
	if instance != "" {
		o, err := db.find(ctx, instance)
		if err != nil {
			return nil, err
		}
		instance = o.ID
	}
	s := &statistics{Largest: []instanceSize{}}
	var err error
	if s.Instances, err = scalar[int64](ctx, db, `SELECT count(*) FROM {schema}.instances`); err != nil {
		return nil, err
	}
	if s.ByType, err = collect[keySize](ctx, db, `SELECT key_type, sum(keys)::bigint, sum(bytes)::bigint, max(last_write) FROM {schema}.instance_sizes
		WHERE $1 IN ('', instance_id) GROUP BY key_type ORDER BY key_type`, instance); err != nil {
		return nil, err
	}
	if instance == "" {
		if s.Largest, err = collect[instanceSize](ctx, db, `SELECT instance_id, sum(keys)::bigint, sum(bytes)::bigint FROM {schema}.instance_sizes
			GROUP BY instance_id ORDER BY 3 DESC, 1 LIMIT $1`, largest); err != nil {
			return nil, err
		}
	}
	if s.Tables, err = collect[tableStats](ctx, db, `SELECT t.relname, c.reltuples::bigint, pg_table_size(t.relid), pg_indexes_size(t.relid),
			t.n_tup_upd, t.n_tup_hot_upd, t.n_dead_tup, t.last_autovacuum, io.heap_blks_hit, io.heap_blks_read, coalesce(c.reloptions, '{}')
		FROM pg_stat_user_tables t JOIN pg_class c ON c.oid = t.relid JOIN pg_statio_user_tables io ON io.relid = t.relid
		WHERE t.schemaname = $1 AND t.relname IN ('auth_keys', 'instances', 'lid_map', 'processes', 'set_aside') ORDER BY t.relname`, db.name); err != nil {
		return nil, err
	}
	for i := range s.Tables {
		t := &s.Tables[i]
		t.HotRate, t.CacheHitRate = ratio(t.HotUpdates, t.Updates), ratio(t.BlocksHit, t.BlocksHit+t.BlocksRead)
	}
	s.Settings, err = collect[setting](ctx, db, `SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY($1) ORDER BY name`,
		[]string{"autovacuum", "autovacuum_naptime", "autovacuum_max_workers", "autovacuum_vacuum_cost_limit", "shared_buffers", "effective_cache_size"})
	return s, err
}

func (a *app) printStatistics(s *statistics) {
	a.printf("%s %d\n\n", bold("instances"), s.Instances)
	a.printSizes(s.ByType)
	if len(s.Largest) > 0 {
		a.printf("\n")
		rows := make([][]any, 0, len(s.Largest))
		for _, i := range s.Largest {
			rows = append(rows, []any{shown(i.Instance), i.Keys, bytes(i.Bytes)})
		}
		columns(a.out, []any{"largest", "keys", "bytes"}, rows, 2, 3)
	}
	a.printf("\n")
	rows := make([][]any, 0, len(s.Tables))
	for _, t := range s.Tables {
		vacuumed := "-"
		if t.LastAutovacuum != nil {
			vacuumed = t.LastAutovacuum.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []any{
			t.Table, bytes(t.Bytes), bytes(t.IndexBytes), percent(t.HotUpdates, t.Updates), t.DeadRows,
			percent(t.BlocksHit, t.BlocksHit+t.BlocksRead), vacuumed,
		})
	}
	columns(a.out, []any{"table", "size", "indexes", "HOT", "dead rows", "from cache", "autovacuum"}, rows, 2, 3, 4, 5, 6)
	a.printf("\n")
	for _, t := range s.Tables {
		for _, option := range t.Options {
			a.printf("%s: %s\n", t.Table, option)
		}
	}
	for _, v := range s.Settings {
		a.printf("%s=%s\n", v.Name, v.Value)
	}
}
