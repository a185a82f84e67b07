package batcher_test

import (
	"context"
	"fmt"
	"log"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

func Example() {
	ctx := context.Background()
	b, err := batcher.New(batcher.Config{}, func(_ context.Context, segments []batcher.Segment[string, string, int]) ([]error, error) {
		for _, s := range segments {
			fmt.Println("durable:", s.Lane, s.Ops)
		}
		return nil, nil
	})
	if err != nil {
		log.Fatal(err)
	}
	lane := b.Lane("ada")
	for i := range 3 { // of one key the last one is saved
		if err = lane.Reserve(ctx, batcher.Room{Ops: 1}); err != nil { // blocks while too much is pending
			log.Fatal(err)
		}
		if _, err = lane.Add(batcher.Room{Ops: 1}, []batcher.Op[string, int]{{Kind: batcher.Put, Key: "counter", Value: i}}); err != nil {
			log.Fatal(err)
		}
	}
	if err = b.Close(ctx); err != nil { // or says what it could not save
		log.Fatal(err)
	}
	// Output: durable: ada [{0 counter 2 0}]
}
