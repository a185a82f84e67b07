package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// keySize is how much there is of one key type.
type keySize struct {
	KeyType   string     `json:"key_type"`
	Keys      int64      `json:"keys"`
	Bytes     int64      `json:"bytes"`
	LastWrite *time.Time `json:"last_write"`
}

// instanceDetails is what instances show prints.
type instanceDetails struct {
	owned
	Epoch          int64     `json:"epoch"`
	Seq            int64     `json:"seq"`
	StepThrough    int64     `json:"step_through"`
	AbandonThrough int64     `json:"abandon_through"`
	Timeline       string    `json:"timeline"`
	System         string    `json:"system"`
	ToHeal         int64     `json:"chains_to_heal"` // rows whose sending chains are abandoned when they are next used
	SetAside       int64     `json:"set_aside"`
	Sizes          []keySize `json:"sizes"`
}

func (a *app) instancesCommand() *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List instances and who has them",
		Long: `Lists instances and who has them, and takes none. Its state is owned (by a process that lives), orphaned (by one that does not) or free.

JSON: instances[]: id, jid, lid, owner, address, state, clean, taken_at, created_at, heartbeat_age_seconds.`,
		Example: "  whatsmeow-pgstore instances list\n  whatsmeow-pgstore instances list --state orphaned --json | jq -r '.instances[].id'",
		Args:    cobra.NoArgs,
	}
	var state string
	list.Flags().StringVar(&state, "state", "", "only those that are owned, orphaned or free")
	_ = list.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{stateOwned, stateOrphaned, stateFree}, cobra.ShellCompDirectiveNoFileComp))
	list.RunE = a.run(func(ctx context.Context, db *database, _ []string) error {
		if state != "" && state != stateOwned && state != stateOrphaned && state != stateFree {
			return usage("--state is %q, must be owned, orphaned or free", state)
		}
		all, err := db.list(ctx, ``)
		if err != nil {
			return err
		}
		wanted := []*owned{}
		for _, o := range all {
			if state == "" || o.State == state {
				wanted = append(wanted, o)
			}
		}
		return a.printInstances(wanted)
	})
	show := &cobra.Command{
		Use:   "show ID",
		Short: "Show one instance, and no secret of it",
		Long: `Shows one instance, by its name or its JID: who has it, how it was left, what there is of each key type. No key material.

JSON: as for list, and epoch, seq, step_through, abandon_through, timeline, system, chains_to_heal, set_aside, sizes[]: key_type, keys, bytes, last_write.`,
		Example:           "  whatsmeow-pgstore instances show shop-42",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			d, err := db.details(ctx, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(d)
			}
			a.printDetails(d)
			return nil
		}),
	}
	return group("instances", "List instances, or show one", "Lists instances, or shows one. No instance is taken.",
		"  whatsmeow-pgstore instances list\n  whatsmeow-pgstore instances show shop-42", list, show)
}

func (a *app) printInstances(all []*owned) error {
	if a.json {
		return a.printJSON(map[string]any{"instances": all})
	}
	var rows [][]any
	for _, o := range all {
		rows = append(rows, []any{shown(o.ID), shown(o.JID), paintState(o.State), left(o), orDash(o.Owner), o.TakenAt.UTC().Format(time.RFC3339)})
	}
	columns(a.out, []any{"id", "jid", "state", "left", "last owner", "taken at"}, rows)
	return nil
}

func paintState(state string) string {
	switch state {
	case stateOwned:
		return green(state)
	case stateOrphaned:
		return yellow(state)
	}
	return state
}

// left says how the last owner left an instance.
func left(o *owned) string {
	switch {
	case o.State == stateOwned:
		return "-"
	case o.Clean:
		return "cleanly"
	}
	return yellow("uncleanly")
}

func (db *database) details(ctx context.Context, name string) (*instanceDetails, error) {
	o, err := db.find(ctx, name)
	if err != nil {
		return nil, err
	}
	d := &instanceDetails{owned: *o}
	err = db.QueryRow(ctx, db.sql(`SELECT i.epoch, i.seq, i.step_through, i.abandon_through, i.timeline, i.system, `+chainsToHeal+`,
		(SELECT count(*) FROM {schema}.set_aside s WHERE s.instance_id = i.id) FROM {schema}.instances i WHERE i.id = $1`), o.ID).
		Scan(&d.Epoch, &d.Seq, &d.StepThrough, &d.AbandonThrough, &d.Timeline, &d.System, &d.ToHeal, &d.SetAside)
	if err != nil {
		return nil, err
	}
	d.Sizes, err = collect[keySize](ctx, db, `SELECT key_type, keys, bytes, last_write FROM {schema}.instance_sizes WHERE instance_id = $1 ORDER BY key_type`, o.ID)
	return d, err
}

// chainsToHeal counts the rows of instance i whose sending chains are abandoned when they are next used.
const chainsToHeal = `(SELECT count(*) FROM {schema}.auth_keys k WHERE k.instance_id = i.id AND k.key_type IN ('session', 'sender_key') AND k.seq <= i.abandon_through)`

func (a *app) printDetails(d *instanceDetails) {
	line := func(name, format string, args ...any) { a.printf("%-16s"+format+"\n", append([]any{name}, args...)...) }
	line("instance", "%s", bold(shown(d.ID)))
	line("jid", "%s", shown(d.JID))
	line("lid", "%s", orDash(d.LID))
	line("state", "%s", paintState(d.State))
	line("left", "%s", left(&d.owned))
	line("last owner", "%s", d.since())
	line("created at", "%s", d.CreatedAt.UTC().Format(time.RFC3339))
	line("epoch, seq", "%d, %d", d.Epoch, d.Seq)
	if d.ToHeal > 0 {
		line("chains to heal", "%d", d.ToHeal)
	}
	if d.SetAside > 0 {
		line("set aside", "%s", yellow(d.SetAside, " rows that could not be read (table set_aside)"))
	}
	a.printf("\n")
	a.printSizes(d.Sizes)
}

func (a *app) printSizes(sizes []keySize) {
	rows := make([][]any, 0, len(sizes))
	for _, s := range sizes {
		last := "-"
		if s.LastWrite != nil {
			last = s.LastWrite.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []any{s.KeyType, s.Keys, bytes(s.Bytes), last})
	}
	columns(a.out, []any{"key type", "keys", "bytes", "last write"}, rows, 2, 3)
}
