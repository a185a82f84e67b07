package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mdp/qrterminal/v3"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// pair links a device by QR code and leaves it to the workers.
func pair(ctx context.Context, dsn string, logger waLog.Logger) (err error) {
	store, err := pgstore.New(ctx, dsn, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }() //nolint:contextcheck // also after Ctrl-C
	return link(ctx, store, logger, (*whatsmeow.Client).ConnectContext, func(code string) { qrterminal.GenerateHalfBlock(code, qrterminal.L, os.Stdout) })
}

// link returns when the new device has logged in. Then the workers may have it.
func link(ctx context.Context, store *pgstore.Container, logger waLog.Logger, connect func(*whatsmeow.Client, context.Context) error, show func(code string)) error {
	client := whatsmeow.NewClient(store.NewDevice(), logger)
	client.EnableDecryptedEventBuffer, client.SynchronousAck = true, true // what comes now and is not handled here is handled by a worker
	connected := make(chan struct{}, 1)
	client.AddEventHandlerWithSuccessStatus(func(evt any) bool {
		switch evt := evt.(type) {
		case *events.Connected:
			select {
			case connected <- struct{}{}:
			default:
			}
		case *events.Message:
			return evt.Info.IsFromMe
		}
		return true
	})
	codes, err := client.GetQRChannel(ctx)
	if err != nil {
		return err
	}
	if err = connect(client, ctx); err != nil {
		return err
	}
	defer client.Disconnect()
	for item := range codes {
		switch item.Event {
		case whatsmeow.QRChannelEventCode:
			show(item.Code)
		case whatsmeow.QRChannelSuccess.Event:
		default:
			return fmt.Errorf("pairing has failed: %w", cmp.Or(item.Error, errors.New(item.Event)))
		}
	}
	select {
	case <-connected:
		return store.Release(ctx, pgstore.InstanceID(client.Store))
	case <-ctx.Done():
		return ctx.Err()
	}
}
