package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.mau.fi/libsignal/ecc"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
)

// drilled is what became of one instance.
type drilled struct {
	Instance string `json:"instance"`
	OK       bool   `json:"ok"`
	JID      string `json:"jid"`
	Healed   bool   `json:"healed"`    // its database had gone back, as that of a copy has
	Chains   int64  `json:"chains"`    // rows whose sending chains are abandoned when they are next used
	SetAside int64  `json:"set_aside"` // rows that could not be read
	Error    string `json:"error,omitempty"`
}

// drill is what drill prints.
type drill struct {
	OK        bool          `json:"ok"`
	Migrated  int           `json:"migrations_run"`
	Audit     *verification `json:"audit"` // null if the copy has no trail
	Instances []drilled     `json:"instances"`
	Seconds   float64       `json:"seconds"`
}

const drillOwners = "whatsmeow-pgstore drill on " // begins what owner makes of drill

func (a *app) drillCommand() *cobra.Command {
	var iKnow bool
	cmd := &cobra.Command{
		Use:   "drill [ID...]",
		Short: "Rehearse a restore: open every instance of a restored copy",
		Long: `Rehearses a restore on a copy of the database that was restored from a backup: verifies the audit trail as it was restored, migrates the copy if this version is newer, opens each
instance as the first process after a disaster would, checks that its credentials can be read and that its keys fit together, counts what is healed, and lets go of it. Nothing outside of the
copy is changed, no client connects, no message leaves. Drop the copy afterwards: it must never be used by clients while production lives.

A database that looks like production is refused, unless --i-know is said: one with a process that lives, and one on which its instances were last taken, since a restored copy is on another
timeline, or another system. Give the copy a realm of its own (table settings) and say it with --realm, and one that has another realm is refused, too.

Exit code 3 says that an instance could not be opened or that the trail is broken. JSON: ok, migrations_run, audit (as of audit verify), instances[]: instance, ok, jid, healed, chains, set_aside,
error; seconds.`,
		Example:           "  whatsmeow-pgstore drill --dsn postgres://restore-host/bots\n  whatsmeow-pgstore drill --realm drill --json",
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			s, err := db.settings(ctx)
			if err != nil {
				return err
			}
			if err = a.checkRealm(s); err != nil {
				return err
			}
			if sign, err := db.production(ctx); err != nil {
				return err
			} else if sign != "" && !iKnow {
				return refused("this looks like production: %s; a drill takes every instance. If it is a copy, say --i-know", sign)
			}
			d, err := a.drill(ctx, db, args)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(d)
			} else {
				a.printDrill(d)
			}
			if err == nil && !d.OK {
				err = errFound
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&iKnow, "i-know", false, "go on although it looks like production")
	return cmd
}

// production says what makes a database look like one that is in use, if anything does. The columns are asked for by name, since the copy may be of an older version.
func (db *database) production(ctx context.Context) (sign string, err error) {
	living, err := scalar[int64](ctx, db, `SELECT count(*) FROM {schema}.processes p WHERE p.expires > clock_timestamp()`)
	if missing(err) { // it is older than that
		living, err = 0, nil
	}
	if err != nil {
		return "", err
	}
	if living > 0 {
		return fmt.Sprintf("%d processes live on it", living), nil
	}
	here, err := scalar[int64](ctx, db, `SELECT count(*) FROM {schema}.instances i, (SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS timeline,
			(SELECT system_identifier FROM pg_control_system()) || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || '{schema}.instances'::regclass::oid AS system) AS db
		WHERE i.timeline = db.timeline AND coalesce(to_jsonb(i)->>'system', '') IN ('', db.system) AND NOT starts_with(i.owner, $1)`, drillOwners)
	if err != nil {
		return "", err
	}
	if here > 0 {
		return fmt.Sprintf("%d instances were last taken on this very database", here), nil
	}
	return "", nil
}

func (a *app) drill(ctx context.Context, db *database, names []string) (*drill, error) {
	began := time.Now()
	d := &drill{OK: true, Instances: []drilled{}}
	report, err := audit.Verify(ctx, db.Pool, audit.Options{Schema: a.schema})
	switch {
	case err == nil:
		d.Audit = verificationOf(report)
		d.OK = d.Audit.OK
	case !missing(err):
		return nil, err
	}
	before, err := a.migrations(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, m := range before {
		if !m.Applied {
			d.Migrated++
		}
	}
	if d.Migrated > 0 {
		if err = pgstore.Migrate(ctx, pgstore.Config{Pool: db.Pool, Schema: a.schema}); err != nil {
			return nil, err
		}
	}
	ids, err := db.named(ctx, names)
	if err != nil {
		return nil, err
	}
	c, err := a.container(ctx, db, "drill", true)
	if err != nil {
		return nil, err
	}
	bar := a.progress(len(ids), "opening")
	for _, id := range ids {
		one := a.drillOne(ctx, db, c, id)
		d.OK = d.OK && one.OK
		d.Instances = append(d.Instances, one)
		_ = bar.Add(1)
	}
	_ = bar.Close()
	d.Seconds = time.Since(began).Seconds()
	return d, closed(ctx, c)
}

// named are the instances that are called so, or all.
func (db *database) named(ctx context.Context, names []string) (ids []string, err error) {
	if len(names) == 0 {
		all, err := db.list(ctx, ``)
		for _, o := range all {
			ids = append(ids, o.ID)
		}
		return ids, err
	}
	for _, name := range names {
		o, err := db.find(ctx, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, o.ID)
	}
	return ids, nil
}

func (a *app) drillOne(ctx context.Context, db *database, c *pgstore.Container, id string) drilled {
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	one := drilled{Instance: id}
	before := c.Stats()
	device, err := c.Instance(ctx, id)
	if err == nil {
		err = fits(device)
	}
	if device != nil && device.ID != nil {
		one.JID = device.ID.String()
	}
	err = errors.Join(err, c.Release(ctx, id))
	after := c.Stats()
	one.Healed, one.SetAside = after.Healed > before.Healed, after.SetAside-before.SetAside
	if err == nil {
		one.Chains, err = scalar[int64](ctx, db, `SELECT `+chainsToHeal+` FROM {schema}.instances i WHERE i.id = $1`, id)
	}
	if err != nil {
		one.Error = a.describe(err)
	}
	one.OK = err == nil && one.SetAside == 0
	return one
}

// fits says what is wrong with the credentials of a device: its signed pre-key must be signed by its identity.
func fits(d *store.Device) error {
	switch {
	case d.ID == nil:
		return errors.New("it is not there any more")
	case d.IdentityKey == nil || d.SignedPreKey == nil || d.NoiseKey == nil || d.SignedPreKey.Signature == nil:
		return errors.New("keys are missing in its credentials")
	}
	signed := ecc.NewDjbECPublicKey(*d.SignedPreKey.Pub)
	if !ecc.VerifySignature(ecc.NewDjbECPublicKey(*d.IdentityKey.Pub), signed.Serialize(), *d.SignedPreKey.Signature) {
		return errors.New("its signed pre-key is not signed by its identity key")
	}
	return nil
}

func (a *app) printDrill(d *drill) {
	if d.Migrated > 0 {
		a.printf("%d migrations were run\n", d.Migrated)
	}
	if d.Audit != nil {
		a.printVerification(d.Audit)
	}
	rows := make([][]any, 0, len(d.Instances))
	healed, chains, bad := 0, int64(0), 0
	for _, i := range d.Instances {
		state, what := green("opens"), ""
		if i.Healed {
			healed++
			what = fmt.Sprintf("healed, %d sending chains abandoned", i.Chains)
		}
		chains += i.Chains
		if i.SetAside > 0 {
			what = fmt.Sprintf("%d rows could not be read", i.SetAside)
		}
		if !i.OK {
			bad++
			state = red("fails")
		}
		if i.Error != "" {
			what = i.Error
		}
		rows = append(rows, []any{shown(i.Instance), state, shown(what)})
	}
	a.printf("\n")
	columns(a.out, []any{"instance", "", ""}, rows)
	a.printf("\n%d instances, %d healed, %d sending chains abandoned, %d failed, in %s\n", len(d.Instances), healed, chains, bad, lasting(seconds(d.Seconds)))
}
