package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

var scaleInstances = flag.Int("scale.instances", 10_000, "how many instances the test of many instances has; the long form is 100000")

const scaleProcesses = 20

// statement is one of those that processes send all the time, or whose cost may depend on how many instances there are.
type statement struct {
	name, sql string
	args      []any
	before    string  // what happens before it
	a, per    float64 // it is sent a times each per seconds by each process; 0 if only when something happens
	counts    bool    // it has to look at all instances, and is sent only when something happens
	blocks    int     // how many pages it may look at, whatever the number of instances
}

// With very many instances, what the processes do all the time does not depend on how many there are: it finds its rows by an index, in a bounded number of
// pages. What it takes is logged, and so is what comes of it for the database altogether.
func TestP6WhatProcessesDoAllTheTimeDoesNotDependOnTheNumberOfInstances(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c, err := NewWithConfig(ctx, Config{DSN: pgtest.Open(t), Lease: DefaultLease})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	one := fillScale(t, c)
	each := *scaleInstances / scaleProcesses
	dies := `UPDATE {schema}.processes SET expires = now() - interval '1 second' WHERE owner = 'process 7'`
	owns := func() (ids []string, epochs []int64) {
		rows, err := c.pool.Query(ctx, c.sql(`SELECT id, epoch FROM {schema}.instances WHERE process = (SELECT id FROM {schema}.processes WHERE owner = 'process 7')`))
		require.NoError(t, err)
		var id string
		var epoch int64
		_, err = pgx.ForEachRow(rows, []any{&id, &epoch}, func() error {
			ids, epochs = append(ids, id), append(epochs, epoch)
			return nil
		})
		require.NoError(t, err)
		return ids, epochs
	}
	ids, epochs := owns()
	require.Len(t, ids, each)
	beat := DefaultLease.Seconds() / 3
	all := []statement{
		{name: "sign of life", sql: renewStatement, args: []any{c.process, "", 15.0, "", true, 0, 0.0, 0}, a: 1, per: beat, blocks: 20},
		{name: fmt.Sprintf("which of %d were lost", each), sql: lostStatement, args: []any{ids, epochs, c.process}, a: 1, per: beat, blocks: 10 * each},
		{name: "situation", sql: situationStatement, a: 1, per: watchInterval.Seconds(), blocks: 20 * scaleProcesses},
		{name: "share, when that changes", sql: shareStatement, args: []any{[]string{}}, counts: true, a: 1, per: countInterval.Seconds()},
		{name: "situation, one has died", sql: situationStatement, before: dies, blocks: 20*scaleProcesses + 2*each},
		{name: "claim of 50, one has died", sql: claimStatement, args: []any{c.process, 50, []string{}}, before: dies, blocks: 2000},
		{name: "take of one", sql: takeStatement, args: []any{one.id, "", c.process, true, true, int64(0), int64(0), true}, blocks: 100},
		{name: "flush of one row", sql: flushStatement, args: []any{
			[]string{one.id},
			[]int64{one.epoch},
			[]int64{one.seq},
			[]string{one.timeline},
			[]string{one.id},
			[]string{"identity"},
			[]string{"1:0"},
			[]int16{0},
			[]string{`{}`},
		}, blocks: 100},
		{name: "view owners, one instance", sql: `SELECT * FROM {schema}.owners WHERE id = $1`, args: []any{one.id}, blocks: 20},
		{name: "view instance_sizes, one instance", sql: `SELECT * FROM {schema}.instance_sizes WHERE instance_id = $1`, args: []any{one.id}, blocks: 20},
		{name: "view process_load", sql: `SELECT * FROM {schema}.process_load`, counts: true},
		{name: "view owners, all", sql: `SELECT * FROM {schema}.owners`, counts: true},
	}
	var load float64 // of the database, in seconds a second
	for _, s := range all {
		var took []time.Duration
		var p plan
		for range 5 {
			p = explain(t, c, s)
			took = append(took, p.took())
		}
		slices.Sort(took)
		t.Logf("%-36s %9v %6d pages", s.name, took[2], p.Plan.Hit+p.Plan.Read)
		if s.a > 0 {
			load += took[2].Seconds() * s.a / s.per * scaleProcesses
		}
		if !s.counts {
			require.Empty(t, p.Plan.scanned(), "%s: tables that are read from end to end", s.name)
			require.LessOrEqual(t, p.Plan.Hit+p.Plan.Read, s.blocks, s.name)
		}
	}
	t.Logf("%d instances, %d processes: what all do while nothing happens keeps %.1f %% of one core of the database busy", *scaleInstances, scaleProcesses, 100*load)

	// A process dies, and this one claims what is its share of that.
	_, err = c.pool.Exec(ctx, c.sql(dies))
	require.NoError(t, err)
	began := time.Now()
	devices, err := c.Claim(ctx, max(1, each/scaleProcesses))
	require.NoError(t, err)
	require.Len(t, devices, max(1, each/scaleProcesses))
	t.Logf("one process of %d instances has died: another one claims, takes and loads its share, %d, in %v", each, len(devices), time.Since(began).Round(time.Millisecond))
}

// fillScale makes instances, owned by processes that live, which were all flushed once since the table was vacuumed, as is usual. It returns one.
func fillScale(t testing.TB, c *Container) (one struct {
	id, timeline string
	epoch, seq   int64
},
) {
	ctx := context.Background()
	d := c.NewDevice()
	signaltest.FillPairing(d)
	require.NoError(t, d.Save(ctx))
	require.NoError(t, c.Release(ctx, d.ID.String()))
	_, err := c.pool.Exec(ctx, c.sql(`INSERT INTO {schema}.processes (id, owner, expires, claims)
		SELECT gen_random_uuid(), 'process ' || n, now() + interval '1 day', true FROM generate_series(1, $1::int) AS n`), scaleProcesses)
	require.NoError(t, err)
	for _, fill := range []string{
		`INSERT INTO {schema}.instances (id, jid, epoch, clean_at_epoch, timeline, system, process)
			SELECT 'instance ' || n, (4900000000 + n) || ':7@s.whatsapp.net', i.epoch, i.epoch, i.timeline, i.system, p.ids[n % cardinality(p.ids) + 1]
			FROM {schema}.instances i, (SELECT array_agg(id) AS ids FROM {schema}.processes WHERE owner LIKE 'process %') AS p, generate_series(1, $1) AS n`,
		`INSERT INTO {schema}.auth_keys (instance_id, key_type, key_id, data, seq)
			SELECT i.id, k.key_type, k.key_id, CASE k.key_id WHEN 'device' THEN jsonb_set(k.data, '{device,jid}', to_jsonb(i.jid)) ELSE k.data END, 0
			FROM {schema}.auth_keys k, {schema}.instances i WHERE i.id LIKE 'instance %' AND $1 > 0`,
	} {
		_, err = c.pool.Exec(ctx, c.sql(fill), *scaleInstances)
		require.NoError(t, err)
	}
	_, err = c.pool.Exec(ctx, c.sql(`VACUUM ANALYZE {schema}.instances, {schema}.auth_keys, {schema}.processes`))
	require.NoError(t, err)
	_, err = c.pool.Exec(ctx, c.sql(`UPDATE {schema}.instances SET seq = seq + 1`))
	require.NoError(t, err)
	err = c.pool.QueryRow(ctx, c.sql(`SELECT id, epoch, seq, timeline FROM {schema}.instances WHERE id = 'instance 77'`)).Scan(&one.id, &one.epoch, &one.seq, &one.timeline)
	require.NoError(t, err)
	return one
}

// plan is what EXPLAIN says.
type plan struct {
	Plan      planNode
	Planning  float64 `json:"Planning Time"`
	Execution float64 `json:"Execution Time"`
}

func (p plan) took() time.Duration {
	return time.Duration((p.Planning + p.Execution) * float64(time.Millisecond)).Round(10 * time.Microsecond)
}

type planNode struct {
	Type     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Loops    int    `json:"Actual Loops"`
	Hit      int    `json:"Shared Hit Blocks"`
	Read     int    `json:"Shared Read Blocks"`
	Plans    []planNode
}

// scanned lists the tables with rows for each instance that are read from end to end.
func (n planNode) scanned() (tables []string) {
	if strings.Contains(n.Type, "Seq Scan") && n.Loops > 0 && slices.Contains([]string{"instances", "auth_keys"}, n.Relation) {
		tables = append(tables, n.Relation)
	}
	for _, below := range n.Plans {
		tables = append(tables, below.scanned()...)
	}
	return tables
}

// explain executes a statement, and takes back what it did.
func explain(t testing.TB, c *Container, s statement) plan {
	t.Helper()
	ctx := context.Background()
	var plans []plan
	undone := errors.New("undone")
	err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		if s.before != "" {
			if _, err := tx.Exec(ctx, c.sql(s.before)); err != nil {
				return err
			}
		}
		var answer []byte
		err := tx.QueryRow(ctx, `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+c.sql(s.sql), append([]any{pgx.QueryExecModeExec}, s.args...)...).Scan(&answer)
		if err != nil {
			return err
		}
		return errors.Join(json.Unmarshal(answer, &plans), undone)
	})
	require.ErrorIs(t, err, undone, s.name)
	require.Len(t, plans, 1, s.name)
	return plans[0]
}
