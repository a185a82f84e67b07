package encryption_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

func Example() {
	ctx := context.Background()
	dsn, drop, err := pgtest.Database() // postgres://…
	if err != nil {
		log.Panic(err)
	}
	defer drop(ctx)
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		log.Panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "keys") // /run/secrets/pgstore-keys

	first, err := encryption.NewKey("2026-07") // made once, and kept where no backup of the database is
	if err != nil {
		log.Panic(err)
	}
	open := func(file string) *pgstore.Container {
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			log.Panic(err)
		}
		keys, err := encryption.FromFile(path)
		if err != nil {
			log.Panic(err)
		}
		store, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Encryption: encryption.New(keys)})
		if err != nil {
			log.Panic(err)
		}
		return store
	}
	store := open(first)
	device := store.NewDevice()
	signaltest.FillPairing(device) // a person scans the QR code
	if err = device.Save(ctx); err != nil {
		log.Panic(err)
	}
	store.Close()

	// Half a year later: the new key comes first, the old one is still there.
	second, err := encryption.NewKey("2027-01")
	if err != nil {
		log.Panic(err)
	}
	store = open(second + "\n" + first)
	rewrapped, err := store.Rewrap(ctx)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println("data keys that are wrapped by the new key:", rewrapped)
	if err = store.RotateDataKey(ctx, device.ID.String()); err != nil { // only if the old one may be known to somebody
		log.Panic(err)
	}
	store.Close()

	store = open(second) // the old one is needed no more
	defer store.Close()
	again, err := store.GetDevice(ctx, *device.ID)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println("still paired:", *again.NoiseKey.Priv == *device.NoiseKey.Priv)

	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		log.Panic(err)
	}
	defer conn.Close(ctx)
	var plain int
	if err = conn.QueryRow(ctx, `SELECT count(*) FROM whatsmeow.auth_keys WHERE NOT data ? 'enc'`).Scan(&plain); err != nil {
		log.Panic(err)
	}
	fmt.Println("plain rows:", plain)
	// Output:
	// data keys that are wrapped by the new key: 1
	// still paired: true
	// plain rows: 0
}
