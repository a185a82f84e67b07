package cache_test

import (
	"context"
	"fmt"
	"log"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

func Example() {
	ctx := context.Background()
	c := cache.New(cache.Config[string]{
		Residency: func(cache.Type) cache.Residency { return cache.Resident },
		Size:      func(v string) int { return len(v) },
	})
	inst, err := c.Open(ctx, "ada", nil, func(_ context.Context, fill *cache.Filler[string]) error {
		fill.Add(cache.Key{ID: "greeting"}, "hello") // from wherever it is durable
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	save := func(writes []cache.Write[string]) error { // queue them: it must not block
		fmt.Println("to be saved:", writes[0].Key.ID, writes[0].Value)
		return nil
	}
	err = inst.Update(ctx, nil, save, func(v *cache.View[string]) error {
		greeting, _ := v.Get(cache.Key{ID: "greeting"})
		v.Put(cache.Key{ID: "greeting"}, greeting+" world")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	value, found, err := inst.Get(ctx, nil, cache.Key{ID: "greeting"})
	fmt.Println(value, found, err)
	// Output:
	// to be saved: greeting hello world
	// hello world true <nil>
}
