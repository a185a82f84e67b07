package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// exported is what export did.
type exported struct {
	Instance string         `json:"instance"`
	JID      string         `json:"jid"`
	Counts   map[string]int `json:"counts"` // entries by kind
	Skipped  []leftOut      `json:"skipped"`
	Fenced   bool           `json:"fenced"` // whether the instance here is of the past now
}

func (a *app) exportCommand() *cobra.Command {
	return group("export", "Export an instance to sqlstore or to an archive", "Exports an instance, to whatsmeow's sqlstore or to an encrypted archive.",
		"  whatsmeow-pgstore export sqlstore shop-42 bot.db\n  whatsmeow-pgstore export archive shop-42 shop-42.age --recipient age1… --move",
		a.exportSqlstoreCommand(), a.exportArchiveCommand())
}

func (a *app) exportSqlstoreCommand() *cobra.Command {
	var yes, force, replace bool
	cmd := &cobra.Command{
		Use:   "sqlstore ID [TARGET]",
		Short: "Hand an instance over to whatsmeow's sqlstore",
		Long: `Hands an instance over to a sqlstore: TARGET is a SQLite file or the connection string of a PostgreSQL database, or in $PGSTORE_TARGET; its schema is made. Sending chains are
moved above all that can have left here, and the instance is fenced: who takes it here later heals it as after a database that went back. From a process that lives it is taken
only with --force.

JSON: instance, jid, counts{kind}, skipped[]: kind, name, reason; fenced.`,
		Example:           "  whatsmeow-pgstore export sqlstore shop-42 bot.db\n  whatsmeow-pgstore export sqlstore shop-42 bot.db --replace --yes --json",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			target, err := a.openSqlstore(args[1:], "PGSTORE_TARGET", false)
			if err != nil {
				return err
			}
			defer func() { _ = target.DB.Close() }()
			return a.exporting(ctx, db, args[0], true, yes, force, func(ctx context.Context, c *pgstore.Container, id string, progress func(migrate.Progress)) (*pgstore.ExportResult, error) {
				return migrate.ToSqlstore(ctx, c, id, *target, migrate.ExportOptions{Replace: replace, Progress: progress})
			})
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&replace, "replace", false, "write over the device if the target has it")
	forceFlag(cmd, &force)
	return cmd
}

func (a *app) exportArchiveCommand() *cobra.Command {
	var yes, force, move bool
	var k archiveKeys
	cmd := &cobra.Command{
		Use:   "archive ID FILE",
		Short: "Write an instance to an encrypted archive",
		Long: `Writes an instance to a file that age encrypts, for those who are named as recipients or know the passphrase. The file must not exist yet.

Without --move it is a copy, as old as the last flush, and nothing is taken: who imports it has its sending chains abandoned. With --move the instance is handed over: it is taken and fenced here,
and the archive may be imported once with --moved.

JSON: instance, jid, counts{kind}, skipped[]: kind, name, reason; fenced.`,
		Example:           "  whatsmeow-pgstore export archive shop-42 shop-42.age --recipient age1…\n  whatsmeow-pgstore export archive shop-42 shop-42.age --passphrase-file secret.txt --move --yes",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			recipients, err := k.readers()
			if err != nil {
				return err
			}
			return a.exporting(ctx, db, args[0], move, yes, force, func(ctx context.Context, c *pgstore.Container, id string, progress func(migrate.Progress)) (result *pgstore.ExportResult, err error) {
				err = newFile(args[1], func(file *os.File) error {
					result, err = migrate.WriteArchive(ctx, c, id, file, migrate.WriteArchiveOptions{Recipients: recipients, Move: move, Progress: progress})
					return err
				})
				return result, err
			})
		}),
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&k.recipients, "recipient", nil, "age's public key of somebody who can read it, as often as wanted")
	flags.BoolVar(&move, "move", false, "hand the instance over: it is fenced here")
	flags.BoolVarP(&yes, "yes", "y", false, "do not ask")
	k.passphraseFlag(cmd)
	forceFlag(cmd, &force)
	return cmd
}

func (k *archiveKeys) readers() (readers []age.Recipient, err error) {
	if len(k.recipients) > 0 && k.passphrase != "" {
		return nil, usage("a passphrase and recipients do not go together")
	}
	if len(k.recipients) > 0 {
		if readers, err = age.ParseRecipients(strings.NewReader(strings.Join(k.recipients, "\n"))); err != nil {
			return nil, usage("--recipient is no public key of age")
		}
		return readers, nil
	}
	if k.passphrase == "" {
		return nil, usage("say with --recipient or --passphrase-file for whom it is encrypted")
	}
	passphrase, err := firstLine(k.passphrase)
	if err != nil {
		return nil, err
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	return []age.Recipient{recipient}, err
}

// newFile makes a file that nobody else may read, and that is on disk when it returns. If it fails nothing is left of it, for it could not be read.
func newFile(path string, fill func(*os.File) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // it is the user who names the file
	if err != nil {
		return err
	}
	err = fill(file)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// exporting runs an export. One that takes the instance is refused for that of a living process, and asks.
func (a *app) exporting(ctx context.Context, db *database, name string, takes, yes, force bool,
	fn func(ctx context.Context, c *pgstore.Container, id string, progress func(migrate.Progress)) (*pgstore.ExportResult, error),
) error {
	o, err := db.find(ctx, name)
	if err != nil {
		return err
	}
	if takes {
		if err = db.refuseLiving(ctx, o.ID, force); err != nil {
			return err
		}
		if err = a.confirm(yes, shown(o.ID)+" will be handed over, and is of the past here then. Go on?"); err != nil {
			return err
		}
	}
	c, err := a.container(ctx, db, "export", force)
	if err != nil {
		return err
	}
	ctx, watch, stop := a.guard(ctx, db, "export")
	defer stop()
	if takes {
		watch(o.ID)
	}
	bar := a.progress(-1, "exporting")
	result, err := fn(ctx, c, o.ID, func(p migrate.Progress) {
		if p.Total > 0 {
			bar.ChangeMax(p.Total)
		}
		_ = bar.Set(p.Done)
	})
	_ = bar.Finish()
	if err = errors.Join(causeOf(ctx, err), closed(ctx, c)); err != nil {
		return err
	}
	e := exported{result.Instance, result.JID, result.Counts, leftOuts(result.Skipped), takes}
	if a.json {
		return a.printJSON(e)
	}
	what := "copied"
	if takes {
		what = "handed over and fenced here"
	}
	a.printf("%s: device %s, %d entries %s\n", bold(shown(e.Instance)), shown(e.JID), sum(e.Counts), what)
	a.printLeftOut(e.Skipped)
	return nil
}
