package metrics_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/metrics"
)

// Two containers of one process on one registry.
func ExampleNew() {
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	for _, schema := range []string{"shops", "support"} {
		dsn, drop, err := pgtest.Database() // postgres://…
		if err != nil {
			log.Panic(err)
		}
		defer drop(context.Background())
		store, err := pgstore.NewWithConfig(context.Background(), pgstore.Config{DSN: dsn, Schema: schema})
		if err != nil {
			log.Panic(err)
		}
		defer store.Close()
		prometheus.WrapRegistererWith(prometheus.Labels{"container": schema}, registry).MustRegister(metrics.New(store))
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	series, err := testutil.GatherAndCount(registry, "pgstore_instances")
	if err != nil {
		log.Panic(err)
	}
	fmt.Println(series)
	// Output: 2
}
