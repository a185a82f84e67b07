package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// rotation is what rotate-key prints.
type rotation struct {
	WrappingKey string   `json:"wrapping_key"` // the id of the one that wraps now
	Rewrapped   int      `json:"rewrapped"`    // data keys that were wrapped by another one
	Rotated     []string `json:"rotated"`      // instances that have a new data key
}

func (a *app) rotateKeyCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rotate-key [ID...]",
		Short: "Wrap all data keys with the newest wrapping key, or make new data keys",
		Long: `Without names, wraps the data keys of all instances with the first key of --keys. No value changes, and nobody who has an instance notices; every process has to know the new key before.
Afterwards only backups need the earlier one. It may be repeated.

With names, makes a new data key for each of these instances, encrypts all of its values with it, and deletes the old one. It takes the instance, from a process that lives only with --force; a
program that has it does the same with Container.RotateDataKey while its client runs.

Wrapping keys are made elsewhere: echo "2027-01:$(openssl rand -base64 32)".

JSON: wrapping_key, rewrapped, rotated[].`,
		Example:           "  whatsmeow-pgstore rotate-key --keys /run/secrets/pgstore-keys\n  whatsmeow-pgstore rotate-key shop-42 --keys /run/secrets/pgstore-keys",
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			keys, err := a.keys()
			if err != nil {
				return err
			}
			if keys == nil {
				return usage("the wrapping keys are needed: --keys or %s", keysVariable)
			}
			encrypted, err := scalar[bool](ctx, db, `SELECT EXISTS (SELECT FROM {schema}.encryption)`)
			if err != nil {
				return err
			}
			if !encrypted {
				return refused("no instance of this database is encrypted: a program that has the key begins with it")
			}
			r := rotation{WrappingKey: keys.Current(), Rotated: []string{}}
			if len(args) == 0 {
				r.Rewrapped, err = a.rewrap(ctx, db)
			} else {
				r.Rotated, err = a.rotate(ctx, db, args, force)
			}
			if err != nil {
				return err
			}
			switch {
			case a.json:
				return a.printJSON(r)
			case len(args) == 0:
				a.printf("%d data keys were wrapped by another key, all are wrapped by %s now\n", r.Rewrapped, shown(r.WrappingKey))
			default:
				for _, id := range r.Rotated {
					a.printf("%s: all values are under a new data key\n", shown(id))
				}
			}
			return nil
		}),
	}
	forceFlag(cmd, &force)
	return cmd
}

func (a *app) rewrap(ctx context.Context, db *database) (n int, err error) {
	c, err := a.container(ctx, db, "rotate-key", false)
	if err != nil {
		return 0, err
	}
	n, err = c.Rewrap(ctx)
	if closeErr := closed(ctx, c); err == nil {
		err = closeErr
	}
	return n, err
}

// rotate makes new data keys, and goes on to the next instance only when one is done.
func (a *app) rotate(ctx context.Context, db *database, names []string, force bool) (done []string, err error) {
	ids, err := db.named(ctx, names)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err = db.refuseLiving(ctx, id, force); err != nil {
			return nil, err
		}
	}
	bar := a.progress(len(ids), "rotating")
	defer func() { _ = bar.Close() }()
	for _, id := range ids {
		err = a.taking(ctx, db, "rotate-key", id, force, func(ctx context.Context, c *pgstore.Container) error { return c.RotateDataKey(ctx, id) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shown(id), err)
		}
		done = append(done, id)
		_ = bar.Add(1)
	}
	return done, nil
}
