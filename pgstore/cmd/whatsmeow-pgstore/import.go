package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// imported is what import did with one device.
type imported struct {
	Instance     string         `json:"instance"`
	JID          string         `json:"jid"`
	Counts       map[string]int `json:"counts"` // rows by key type
	Sampled      int            `json:"sampled"`
	Skipped      []leftOut      `json:"skipped"`
	LIDPairs     int            `json:"lid_pairs"`
	LIDPairsKept int            `json:"lid_pairs_kept"`
	NextPreKeyID uint32         `json:"next_pre_key_id"`
	Exact        bool           `json:"exact"`
}

// leftOut is what could not be carried.
type leftOut struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

func leftOuts(skipped []pgstore.Skipped) []leftOut {
	out := make([]leftOut, len(skipped))
	for i, s := range skipped {
		out[i] = leftOut(s)
	}
	return out
}

// importing is what the flags of all imports say.
type importing struct {
	instance                string
	stopped, replace, force bool
}

const importHelp = `
A device has one life: stop the client that uses the source, import, start it here, and never start the old one again. --stopped is your word that it is stopped and that the source is no older
copy; then sending chains go on where they were. Without it they are abandoned, which costs a bundle for each chat and nothing else. No QR code is scanned in either case.

It may be repeated until somebody takes the instance; then it is refused, unless --replace is said, which heals the instance as after a database that went back. From a process
that lives, it is replaced only with --force.

JSON: imported[]: instance, jid, counts{key type}, sampled, skipped[]: kind, name, reason; lid_pairs, lid_pairs_kept, next_pre_key_id, exact.`

func (i *importing) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&i.instance, "instance", "", "name of the instance (default the device's JID)")
	flags.BoolVar(&i.replace, "replace", false, "import over an instance that was used here")
	forceFlag(cmd, &i.force)
}

func (i *importing) stoppedFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&i.stopped, "stopped", false, "my word: the client of the source is stopped, and this is no older copy")
}

func (a *app) importCommand() *cobra.Command {
	return group("import", "Import devices from sqlstore, Baileys or an archive", "Imports devices that were paired elsewhere. Nobody scans a QR code again.",
		"  whatsmeow-pgstore import sqlstore bot.db --stopped\n  whatsmeow-pgstore import baileys auth_info_baileys --instance shop-42 --stopped\n"+
			"  whatsmeow-pgstore import archive shop-42.age --identity key.txt --moved",
		a.importSqlstoreCommand(), a.importBaileysCommand(), a.importArchiveCommand())
}

func (a *app) importSqlstoreCommand() *cobra.Command {
	var i importing
	var devices []string
	var skipUpgrade bool
	cmd := &cobra.Command{
		Use:   "sqlstore [SOURCE]",
		Short: "Import devices from whatsmeow's sqlstore",
		Long: `Imports devices, and the LID map, from a sqlstore: SOURCE is a SQLite file or the connection string of a PostgreSQL database, or in $PGSTORE_SOURCE. The schema of an older whatsmeow is
brought up to date first, by whatsmeow's own code; --skip-upgrade leaves the source as it is.
` + importHelp,
		Example: "  whatsmeow-pgstore import sqlstore bot.db --stopped\n  PGSTORE_SOURCE=postgres://… whatsmeow-pgstore import sqlstore --device 4915112345678:3@s.whatsapp.net --instance shop-42 --stopped",
		Args:    cobra.MaximumNArgs(1),
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			opts := migrate.Options{Exact: i.stopped, Replace: i.replace, SkipUpgrade: skipUpgrade}
			for _, d := range devices {
				jid, err := types.ParseJID(d)
				if err != nil || jid.User == "" {
					return usage("--device %q is no JID", d)
				}
				opts.Devices = append(opts.Devices, jid)
			}
			if i.instance != "" && len(devices) != 1 {
				return usage("--instance names one device: say with --device which")
			}
			source, err := a.openSqlstore(args, "PGSTORE_SOURCE", true)
			if err != nil {
				return err
			}
			defer func() { _ = source.DB.Close() }()
			var refusal error
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			ctx, watch, stop := a.guard(ctx, db, "import")
			defer stop()
			opts.Instance = func(device types.JID) string {
				id := device.String()
				if i.instance != "" {
					id = i.instance
				}
				if refusal = i.mayReplace(ctx, db, id); refusal != nil {
					cancel()
				}
				if i.replace {
					watch(id)
				}
				return id
			}
			bar := a.progress(-1, "importing")
			opts.Progress = func(p migrate.Progress) { _ = bar.Set(p.Done) }
			return a.importing(ctx, db, i, func(c *pgstore.Container) ([]*pgstore.ImportResult, error) {
				defer func() { _ = bar.Finish() }()
				results, err := migrate.FromSqlstore(ctx, c, *source, opts)
				if err != nil && refusal != nil {
					return results, refusal
				}
				return results, causeOf(ctx, err)
			})
		}),
	}
	cmd.Flags().StringArrayVar(&devices, "device", nil, "JID of a device, as often as wanted (default all)")
	cmd.Flags().BoolVar(&skipUpgrade, "skip-upgrade", false, "do not bring the source's schema up to date")
	i.flags(cmd)
	i.stoppedFlag(cmd)
	return cmd
}

func (a *app) importBaileysCommand() *cobra.Command {
	var i importing
	cmd := &cobra.Command{
		Use:   "baileys FOLDER",
		Short: "Import a device from a folder of Baileys",
		Long: `Imports a device from the folder that useMultiFileAuthState of Baileys has written. What its formats do not carry is listed: sessions are begun anew, while credentials stay.
` + importHelp,
		Example: "  whatsmeow-pgstore import baileys auth_info_baileys --instance shop-42 --stopped",
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			if err := i.named(ctx, db); err != nil {
				return err
			}
			ctx, watch, stop := a.guard(ctx, db, "import")
			defer stop()
			if i.replace {
				watch(i.instance)
			}
			return a.importing(ctx, db, i, func(c *pgstore.Container) ([]*pgstore.ImportResult, error) {
				return one(ctx)(migrate.FromBaileys(ctx, c, os.DirFS(args[0]), migrate.BaileysOptions{Instance: i.instance, Exact: i.stopped, Replace: i.replace}))
			})
		}),
	}
	i.flags(cmd)
	i.stoppedFlag(cmd)
	return cmd
}

func (a *app) importArchiveCommand() *cobra.Command {
	var i importing
	var k archiveKeys
	cmd := &cobra.Command{
		Use:   "archive FILE",
		Short: "Import an instance from an archive",
		Long: `Imports an instance from an archive that 'export archive' has written. --moved is your word that it was written with --move and has been read nowhere else: then sending chains go on where
they were. Of an archive that is a copy that is refused.
` + importHelp,
		Example: "  whatsmeow-pgstore import archive shop-42.age --identity key.txt --moved",
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			identities, err := k.identities()
			if err != nil {
				return err
			}
			if err = i.named(ctx, db); err != nil {
				return err
			}
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			ctx, watch, stop := a.guard(ctx, db, "import")
			defer stop()
			if i.replace {
				watch(i.instance)
			}
			bar := a.progress(-1, "importing")
			return a.importing(ctx, db, i, func(c *pgstore.Container) ([]*pgstore.ImportResult, error) {
				defer func() { _ = bar.Finish() }()
				return one(ctx)(migrate.ReadArchive(ctx, c, file, migrate.ReadArchiveOptions{
					Identities: identities, Instance: i.instance, Exact: i.stopped, Replace: i.replace,
					Progress: func(p migrate.Progress) { _ = bar.Set(p.Done) },
				}))
			})
		}),
	}
	i.flags(cmd)
	cmd.Flags().BoolVar(&i.stopped, "moved", false, "my word: it was written with --move, and has been read nowhere else")
	k.identityFlags(cmd)
	return cmd
}

// one makes a list of the result of a single import under a guard.
func one(ctx context.Context) func(*pgstore.ImportResult, error) ([]*pgstore.ImportResult, error) {
	return func(r *pgstore.ImportResult, err error) ([]*pgstore.ImportResult, error) {
		if err != nil {
			return nil, causeOf(ctx, err)
		}
		return []*pgstore.ImportResult{r}, nil
	}
}

// named refuses to replace what a living process has, where only the name tells before the import which instance that is.
func (i *importing) named(ctx context.Context, db *database) error {
	if i.replace && i.instance == "" {
		return usage("--replace needs --instance here")
	}
	return i.mayReplace(ctx, db, i.instance)
}

func (i *importing) mayReplace(ctx context.Context, db *database, id string) error {
	if !i.replace || i.force {
		return nil
	}
	there, err := scalar[bool](ctx, db, `SELECT EXISTS (SELECT FROM {schema}.instances WHERE id = $1)`, id)
	if err != nil || !there {
		return err
	}
	return db.refuseLiving(ctx, id, false)
}

// importing runs an import, and prints what was imported, also if it fails afterwards.
func (a *app) importing(ctx context.Context, db *database, i importing, fn func(*pgstore.Container) ([]*pgstore.ImportResult, error)) error {
	c, err := a.container(ctx, db, "import", i.force)
	if err != nil {
		return err
	}
	results, err := fn(c)
	err = errors.Join(err, closed(ctx, c))
	if len(results) == 0 && err != nil {
		return err
	}
	return errors.Join(a.printImported(results), err)
}

func (a *app) printImported(results []*pgstore.ImportResult) error {
	all := make([]imported, 0, len(results))
	for _, r := range results {
		all = append(all, imported{r.Instance, r.JID, r.Counts, r.Sampled, leftOuts(r.Skipped), r.LIDPairs, r.LIDPairsKept, r.NextPreKeyID, r.Exact})
	}
	if a.json {
		return a.printJSON(map[string]any{"imported": all})
	}
	for _, i := range all {
		how := "its sending chains go on"
		if !i.Exact {
			how = "its sending chains are abandoned"
		}
		a.printf("%s: imported device %s, %d keys, %s\n", bold(shown(i.Instance)), shown(i.JID), sum(i.Counts), how)
		a.printLeftOut(i.Skipped)
	}
	a.printf("%d devices imported; start their clients here, and never again where they were\n", len(all))
	return nil
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func (a *app) printLeftOut(skipped []leftOut) {
	for _, s := range skipped {
		a.printf("  %s %s %s: %s\n", yellow("left out"), s.Kind, shown(s.Name), shown(s.Reason))
	}
}

// archiveKeys are the flags that say who can read an archive.
type archiveKeys struct {
	recipients           []string
	identity, passphrase string // files
}

func (k *archiveKeys) identityFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.identity, "identity", "", "file with age's secret keys")
	k.passphraseFlag(cmd)
}

func (k *archiveKeys) passphraseFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.passphrase, "passphrase-file", "", "file whose first line is the passphrase")
}

func (k *archiveKeys) identities() ([]age.Identity, error) {
	switch {
	case k.identity != "":
		file, err := os.Open(k.identity)
		if err != nil {
			return nil, err
		}
		defer func() { _ = file.Close() }()
		identities, err := age.ParseIdentities(file)
		if err != nil { // its text may quote a line
			return nil, fmt.Errorf("%s has no secret keys of age", k.identity)
		}
		return identities, nil
	case k.passphrase != "":
		passphrase, err := firstLine(k.passphrase)
		if err != nil {
			return nil, err
		}
		identity, err := age.NewScryptIdentity(passphrase)
		return []age.Identity{identity}, err
	}
	return nil, usage("say with --identity or --passphrase-file how the archive is decrypted")
}

const longestPassphrase = 4096

func firstLine(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // it is the user who names the file
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	content, err := io.ReadAll(io.LimitReader(file, longestPassphrase))
	if err != nil {
		return "", err
	}
	line := string(content)
	for i, r := range line {
		if r == '\n' || r == '\r' {
			line = line[:i]
			break
		}
	}
	if line == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return line, nil
}
