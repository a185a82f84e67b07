package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// healing is what heal prints.
type healing struct {
	Instance string `json:"instance"`
	Before   *owned `json:"before"` // who had it
	Chains   int64  `json:"chains"` // rows whose sending chains are abandoned when they are next used
}

func (a *app) healCommand() *cobra.Command {
	var yes, force bool
	cmd := &cobra.Command{
		Use:   "heal ID",
		Short: "Heal an instance as after a database that went back",
		Long: `Heals an instance as after a database that went back, although the database does not say so: a snapshot of a volume was put back while no process lived. All its sending
chains are abandoned and made anew when chats are next answered, a bundle each; pre-keys and app state are made anew. Nobody scans a QR code. Instances on a database that was
restored or promoted need no such thing: who takes them heals them.

It takes the instance and lets go of it, healed. From a process that lives it takes it only with --force.

JSON: instance, before (as of instances list), chains.`,
		Example:           "  whatsmeow-pgstore heal shop-42\n  whatsmeow-pgstore heal shop-42 --yes --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			before, err := db.find(ctx, args[0])
			if err != nil {
				return err
			}
			if err = db.refuseLiving(ctx, before.ID, force); err != nil {
				return err
			}
			if err = a.confirm(yes, fmt.Sprintf("All sending chains of %s will be abandoned. Go on?", shown(before.ID))); err != nil {
				return err
			}
			err = a.taking(ctx, db, "heal", before.ID, force, func(ctx context.Context, c *pgstore.Container) error { return c.Heal(ctx, before.ID) })
			if err != nil {
				return err
			}
			h := healing{Instance: before.ID, Before: before}
			if h.Chains, err = scalar[int64](ctx, db, `SELECT `+chainsToHeal+` FROM {schema}.instances i WHERE i.id = $1`, before.ID); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(h)
			}
			a.printf("%s: healed and released, %d sending chains are abandoned; before, it was of %s\n", shown(h.Instance), h.Chains, before.since())
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	forceFlag(cmd, &force)
	return cmd
}

// releasing is what release prints.
type releasing struct {
	Instance string `json:"instance"`
	Before   *owned `json:"before"`   // who had it
	Released bool   `json:"released"` // false if nobody had it
}

func (a *app) releaseCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "release ID",
		Short: "Take an instance from whoever has it, and let it go cleanly",
		Long: `Takes an instance from whoever has it and lets it go cleanly, so that the next process can claim it at once, and says who had it. What a process that died has left
uncleanly is seen to as by every take: sending chains go to their ceilings. From a process that lives it takes the instance only with --force; that one's stores fail then, and what
it had not saved is lost.

Where the processes have agreed to respect leases, it waits for that of the owner to expire, for as long as --wait says, also with --force.

JSON: instance, before (as of instances list), released.`,
		Example:           "  whatsmeow-pgstore release shop-42\n  whatsmeow-pgstore release shop-42 --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			before, err := db.find(ctx, args[0])
			if err != nil {
				return err
			}
			r := releasing{Instance: before.ID, Before: before}
			if before.State != stateFree || !before.Clean {
				err = a.taking(ctx, db, "release", before.ID, force, func(ctx context.Context, c *pgstore.Container) error {
					if _, err := c.Instance(ctx, before.ID); err != nil {
						return err
					}
					return c.Release(ctx, before.ID)
				})
				if err != nil {
					return err
				}
				r.Released = true
			}
			switch {
			case a.json:
				return a.printJSON(r)
			case r.Released:
				a.printf("%s: released; it was of %s\n", shown(r.Instance), before.since())
			default:
				a.printf("%s: nobody has it, and it was left cleanly; last it was of %s\n", shown(r.Instance), before.since())
			}
			return nil
		}),
	}
	forceFlag(cmd, &force)
	return cmd
}
