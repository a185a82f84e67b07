package migrate_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"filippo.io/age"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// A bot that ran on sqlstore with SQLite moves in.
func ExampleFromSqlstore() {
	ctx := context.Background()
	dir, _ := os.MkdirTemp("", "bot")
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "bot.db")+"?_pragma=foreign_keys(1)")
	if err != nil {
		log.Panic(err)
	}
	defer db.Close()
	pairedOnSqlstore(ctx, db)

	dsn, drop, err := pgtest.Database() // postgres://…
	if err != nil {
		log.Panic(err)
	}
	defer drop(ctx)
	c, err := pgstore.New(ctx, dsn, nil)
	if err != nil {
		log.Panic(err)
	}
	defer c.Close()
	// The client that used it is stopped, and will not be started again.
	results, err := migrate.FromSqlstore(ctx, c, migrate.Sqlstore{DB: db, Dialect: "sqlite3"}, migrate.Options{Exact: true})
	if err != nil {
		log.Panic(err)
	}
	for _, r := range results {
		fmt.Println("exact:", r.Exact, "pre-keys:", r.Counts["pre_key"], "left out:", len(r.Skipped))
	}
	device, err := c.GetFirstDevice(ctx) // from here on as with sqlstore
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(device.PushName)
	// Output:
	// exact: true pre-keys: 5 left out: 0
	// Ada's bot
}

// A bot leaves, to sqlstore.
func ExampleToSqlstore() {
	ctx := context.Background()
	c, device, end := pairedHere(ctx)
	defer end()
	dir, _ := os.MkdirTemp("", "bot")
	defer os.RemoveAll(dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "bot.db")+"?_pragma=foreign_keys(1)")
	if err != nil {
		log.Panic(err)
	}
	defer db.Close()
	result, err := migrate.ToSqlstore(ctx, c, pgstore.InstanceID(device), migrate.Sqlstore{DB: db, Dialect: "sqlite3"}, migrate.ExportOptions{})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println("pre-keys:", result.Counts["pre_key"])
	theirs, err := sqlstore.NewWithDB(db, "sqlite3", nil).GetFirstDevice(ctx)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(theirs.PushName)
	// Output:
	// pre-keys: 5
	// Ada's bot
}

// An instance moves to another database, in a file that only the holder of a key can read.
func ExampleWriteArchive() {
	ctx := context.Background()
	c, device, end := pairedHere(ctx)
	defer end()
	other, _, endOther := pairedHere(ctx)
	defer endOther()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		log.Panic(err)
	}
	var file bytes.Buffer
	_, err = migrate.WriteArchive(ctx, c, pgstore.InstanceID(device), &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{key.Recipient()}, Move: true})
	if err != nil {
		log.Panic(err)
	}
	result, err := migrate.ReadArchive(ctx, other, &file, migrate.ReadArchiveOptions{Identities: []age.Identity{key}, Instance: "shop-42", Exact: true})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(result.Instance, "exact:", result.Exact)
	// Output: shop-42 exact: true
}

// A bot that ran on Baileys moves in.
func ExampleFromBaileys() {
	ctx := context.Background()
	c, _, end := pairedHere(ctx)
	defer end()
	folder := os.DirFS("../../testdata/baileys/paired") // auth_info_baileys
	result, err := migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{Instance: "shop-42", Exact: true})
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(result.JID, "pre-keys:", result.Counts["pre_key"])
	for _, s := range result.Skipped {
		if s.Kind == "session" {
			fmt.Println("left:", s.Kind, s.Name)
		}
	}
	// Output:
	// 491700000001:7@s.whatsapp.net pre-keys: 24
	// left: session 100000000000002_1.0
}

// save gives a device what pairing would, and pre-keys.
func save(ctx context.Context, d *store.Device) {
	signaltest.FillPairing(d)
	d.PushName = "Ada's bot"
	if err := d.Save(ctx); err != nil {
		log.Panic(err)
	}
	if _, err := d.PreKeys.GetOrGenPreKeys(ctx, 5); err != nil {
		log.Panic(err)
	}
}

func pairedOnSqlstore(ctx context.Context, db *sql.DB) {
	theirs := sqlstore.NewWithDB(db, "sqlite3", nil)
	if err := theirs.Upgrade(ctx); err != nil {
		log.Panic(err)
	}
	save(ctx, theirs.NewDevice())
}

func pairedHere(ctx context.Context) (c *pgstore.Container, d *store.Device, end func()) {
	dsn, drop, err := pgtest.Database()
	if err != nil {
		log.Panic(err)
	}
	if c, err = pgstore.New(ctx, dsn, nil); err != nil {
		log.Panic(err)
	}
	d = c.NewDevice()
	save(ctx, d)
	return c, d, func() {
		_ = c.Close()
		_ = drop(ctx)
	}
}
