package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What a worker tells its parent, a line each.
const (
	reportPaired     = "paired"
	reportNegotiated = "negotiated"
	reportMessage    = "message"
)

// worker opens both devices and lets them talk.
func worker(ctx context.Context) (err error) {
	container, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: os.Getenv(workerEnv), Schema: schema})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, container.Close()) }() //nolint:contextcheck // also after Ctrl-C
	alice, err := open(ctx, container, "alice")
	if err != nil {
		return err
	}
	bob, err := open(ctx, container, "bob")
	if err != nil {
		return err
	}
	known, err := alice.Device.Sessions.HasSession(ctx, bob.Address().SignalAddress().String())
	if err != nil {
		return err
	}
	if !known {
		fmt.Println(reportNegotiated)
		first, err := alice.Meet(ctx, bob, []byte("Hello Bob"))
		if err != nil {
			return err
		}
		if _, err = bob.Receive(ctx, alice.Address(), first); err != nil {
			return err
		}
	}
	for n := range enough {
		from, to := alice, bob
		if n%3 == 2 { // Bob says less
			from, to = bob, alice
		}
		if err = say(ctx, from, to, fmt.Sprintf("message %d", n)); err != nil {
			return err
		}
		fmt.Println(reportMessage)
	}
	return nil
}

// open returns the device with our own name for it, and pairs it if it is new. A real bot would show a QR code instead.
func open(ctx context.Context, container *pgstore.Container, name string) (*signaltest.Peer, error) {
	device, err := container.Instance(ctx, name)
	if err != nil {
		return nil, err
	}
	if device.ID == nil {
		if err = pair(ctx, device); err != nil {
			return nil, err
		}
	}
	return signaltest.NewPeer(device), nil
}

func pair(ctx context.Context, device *store.Device) error {
	fmt.Println(reportPaired)
	signaltest.FillPairing(device)
	return device.Save(ctx)
}

// say encrypts a message as the client does when it sends one, and decrypts it as the client does when one comes in.
func say(ctx context.Context, from, to *signaltest.Peer, text string) error {
	sent, err := from.Send(ctx, []types.JID{to.Address()}, []byte(text))
	if err != nil {
		return err
	}
	got, err := to.Receive(ctx, from.Address(), sent[to.Address()])
	if err == nil && string(got) != text {
		err = fmt.Errorf("sent %q, received %q", text, got)
	}
	return err
}
