package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
)

// prunedInstance is what was let go of in one instance.
type prunedInstance struct {
	Instance       string `json:"instance"`
	BufferedEvents int    `json:"buffered_events"`
	OutgoingEvents int    `json:"outgoing_events"`
	MessageSecrets int    `json:"message_secrets"`
	Skipped        string `json:"skipped,omitempty"` // why nothing was done
}

// pruning is what prune prints.
type pruning struct {
	Instances       []prunedInstance `json:"instances"`
	AuditPartitions int              `json:"audit_partitions"`
}

// days is a flag of a time span that may also be a number of days: 36h, 90d.
type days struct{ of *time.Duration }

// String implements pflag.Value.
func (d days) String() string {
	if d.of == nil || *d.of == 0 {
		return ""
	}
	return d.of.String()
}

// Type implements pflag.Value.
func (d days) Type() string { return "age" }

// Set implements pflag.Value.
func (d days) Set(s string) (err error) {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		count, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return errors.New("must be as 36h or 90d")
		}
		*d.of = time.Duration(count) * 24 * time.Hour
		return nil
	}
	if *d.of, err = time.ParseDuration(s); err != nil || *d.of < 0 {
		return errors.New("must be as 36h or 90d")
	}
	return nil
}

func (a *app) pruneCommand() *cobra.Command {
	var keep pgstore.Retention
	var auditAge time.Duration
	var force bool
	cmd := &cobra.Command{
		Use:   "prune [ID...]",
		Short: "Delete old events and message secrets, and old months of the audit trail",
		Long: `Deletes what is older than the flags say; without one, nothing. It goes the owner's way: it takes each instance, deletes, and lets go of it cleanly. Without names it does so with all
instances that no living process has, and lists the others as skipped; a program that has them open prunes them with Container.Prune. Those that are named are refused if a living
process has them, unless --force is said.

Buffered events are needed for 14 days not to handle a message twice. Without its secret, later edits and reactions to a message cannot be read. Of the audit trail whole months are
dropped, by the role that owns it, and what remains is anchored.

JSON: instances[]: instance, buffered_events, outgoing_events, message_secrets, skipped; audit_partitions.`,
		Example:           "  whatsmeow-pgstore prune --message-secrets 180d --audit 400d\n  whatsmeow-pgstore prune shop-42 --buffered-events 14d --outgoing-events 7d",
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			if keep == (pgstore.Retention{}) && auditAge == 0 {
				return usage("nothing is named that may be deleted: --buffered-events, --outgoing-events, --message-secrets or --audit")
			}
			if force && len(args) == 0 {
				return usage("--force is for instances that are named")
			}
			p := pruning{Instances: []prunedInstance{}}
			if keep != (pgstore.Retention{}) {
				var err error
				if p.Instances, err = a.pruneInstances(ctx, db, args, keep, force); err != nil {
					return err
				}
			}
			if auditAge > 0 {
				s, err := db.settings(ctx)
				if err == nil {
					err = a.checkRealm(s)
				}
				if err == nil {
					p.AuditPartitions, err = audit.Drop(ctx, db.Pool, a.schema, time.Now().Add(-auditAge))
				}
				if err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(p)
			}
			a.printPruning(p, keep != (pgstore.Retention{}), auditAge > 0)
			return nil
		}),
	}
	flags := cmd.Flags()
	flags.Var(days{&keep.BufferedEvents}, "buffered-events", "delete hashes and plaintexts of received messages that are older")
	flags.Var(days{&keep.OutgoingEvents}, "outgoing-events", "delete sent messages, kept for retry receipts, that are older")
	flags.Var(days{&keep.MessageSecrets}, "message-secrets", "delete message secrets that are older")
	flags.Var(days{&auditAge}, "audit", "drop months of the audit trail that ended longer ago")
	forceFlag(cmd, &force)
	return cmd
}

func (a *app) pruneInstances(ctx context.Context, db *database, names []string, keep pgstore.Retention, force bool) ([]prunedInstance, error) {
	var ids []string
	for _, name := range names {
		o, err := db.find(ctx, name)
		if err != nil {
			return nil, err
		}
		if err = db.refuseLiving(ctx, o.ID, force); err != nil {
			return nil, err
		}
		ids = append(ids, o.ID)
	}
	if len(names) == 0 {
		all, err := db.list(ctx, ``)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			ids = append(ids, o.ID)
		}
	}
	c, err := a.container(ctx, db, "prune", force)
	if err != nil {
		return nil, err
	}
	defer func() { _ = closed(ctx, c) }() // each instance is released, and that tells what could not be saved
	bar := a.progress(len(ids), "pruning")
	defer func() { _ = bar.Close() }()
	done := []prunedInstance{}
	for _, id := range ids {
		p := prunedInstance{Instance: id}
		err := db.refuseLiving(ctx, id, force)
		if err == nil {
			err = a.pruneOne(ctx, c, &p, keep)
		}
		var refusal *exitError
		switch {
		case err == nil:
		case len(names) == 0 && errors.As(err, &refusal) && refusal.code == exitRefused:
			p.Skipped = "a living process has it"
		default:
			return nil, fmt.Errorf("pruning %s: %w", shown(id), err)
		}
		done = append(done, p)
		_ = bar.Add(1)
	}
	return done, nil
}

func (a *app) pruneOne(ctx context.Context, c *pgstore.Container, p *prunedInstance, keep pgstore.Retention) error {
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	counts, err := c.Prune(ctx, p.Instance, keep)
	p.BufferedEvents, p.OutgoingEvents, p.MessageSecrets = counts.BufferedEvents, counts.OutgoingEvents, counts.MessageSecrets
	return errors.Join(err, c.Release(ctx, p.Instance))
}

func (a *app) printPruning(p pruning, instances, trail bool) {
	if instances {
		var rows [][]any
		for _, i := range p.Instances {
			if i.Skipped != "" {
				rows = append(rows, []any{shown(i.Instance), "-", "-", "-", yellow("skipped: " + i.Skipped)})
				continue
			}
			rows = append(rows, []any{shown(i.Instance), i.BufferedEvents, i.OutgoingEvents, i.MessageSecrets, ""})
		}
		columns(a.out, []any{"instance", "buffered events", "outgoing events", "message secrets", ""}, rows, 2, 3, 4)
	}
	if trail {
		a.printf("%d partitions of the audit trail dropped\n", p.AuditPartitions)
	}
}
