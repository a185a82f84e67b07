package pgstore_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// exampleDSN is a database for an example, and how to drop it.
func exampleDSN() (dsn string, drop func()) {
	dsn, dropDatabase, err := pgtest.Database()
	if err != nil {
		log.Panic(err)
	}
	return dsn, func() { _ = dropDatabase(context.Background()) }
}

// scan stands for a person who scans the QR code: pairing fills in the device and saves it.
func scan(device *store.Device) {
	signaltest.FillPairing(device)
	if err := device.Save(context.Background()); err != nil {
		log.Panic(err)
	}
}

func ExampleNew() {
	ctx := context.Background()
	dsn, drop := exampleDSN() // postgres://…
	defer drop()

	for range 2 { // the second time the bot is restarted
		container, err := pgstore.New(ctx, dsn, nil)
		if err != nil {
			log.Panic(err)
		}
		device, err := container.GetFirstDevice(ctx)
		if err != nil {
			log.Panic(err)
		}
		if device.ID == nil {
			fmt.Println("scan the QR code")
			scan(device)
		} else {
			fmt.Println("still paired")
		}
		// client := whatsmeow.NewClient(device, nil), and when all is done client.Disconnect()
		if err = container.Close(); err != nil { // saves what is still in memory
			log.Panic(err)
		}
	}
	// Output:
	// scan the QR code
	// still paired
}

func ExampleNewWithConfig() {
	ctx := context.Background()
	dsn, drop := exampleDSN()
	defer drop()

	pool, err := pgxpool.New(ctx, dsn) // the application's own, also used for other things
	if err != nil {
		log.Panic(err)
	}
	defer pool.Close() // after the container
	container, err := pgstore.NewWithConfig(ctx, pgstore.Config{
		Pool:             pool,
		Schema:           "bots",
		MemoryBudget:     256 << 20,
		SynchronousTypes: []string{"message_secret"},
		DurableAcks:      true,
	})
	if err != nil {
		log.Panic(err)
	}
	defer container.Close()

	_, err = pgstore.NewWithConfig(ctx, pgstore.Config{Pool: pool, Schema: "No Name", BatchSize: -1})
	fmt.Println(err)
	// Output:
	// pgstore: invalid input: config: Schema "No Name" must match ^[a-z_][a-z0-9_]{0,62}$
	// BatchSize is -1, must be positive
}

func ExampleContainer_Instance() {
	ctx := context.Background()
	dsn, drop := exampleDSN()
	defer drop()
	container, err := pgstore.New(ctx, dsn, nil)
	if err != nil {
		log.Panic(err)
	}
	defer container.Close()

	device, err := container.Instance(ctx, "shop-42") // the gateway's own name, known before there is a phone
	if err != nil {
		log.Panic(err)
	}
	scan(device)

	instances, err := container.Instances(ctx) // looks, and takes nothing
	if err != nil {
		log.Panic(err)
	}
	for _, i := range instances {
		fmt.Println(i.ID, i.JID == device.ID.String())
	}
	// Output: shop-42 true
}

func ExampleContainer_Flush() {
	ctx := context.Background()
	dsn, drop := exampleDSN()
	defer drop()
	container, err := pgstore.New(ctx, dsn, nil)
	if err != nil {
		log.Panic(err)
	}
	defer container.Close()
	device := container.NewDevice()
	scan(device)

	if _, _, err = device.Contacts.PutPushName(ctx, device.ID.ToNonAD(), "Ada"); err != nil {
		log.Panic(err)
	}
	if err = container.Flush(ctx); err != nil { // not needed for any read: only to know that it is on disk
		log.Panic(err)
	}
	fmt.Println(container.Stats().Batcher.Pending)
	// Output: 0
}

func ExampleContainer_Shutdown() {
	dsn, drop := exampleDSN()
	defer drop()
	container, err := pgstore.New(context.Background(), dsn, nil)
	if err != nil {
		log.Panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // less than what the scheduler grants
	defer cancel()
	fmt.Println(container.Shutdown(ctx))
	// Output: <nil>
}
