package health_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/health"
)

func Example() {
	dsn, drop, err := pgtest.Database() // postgres://…
	if err != nil {
		log.Panic(err)
	}
	defer drop(context.Background())
	store, err := pgstore.New(context.Background(), dsn, nil)
	if err != nil {
		log.Panic(err)
	}
	defer store.Close()
	mux := http.NewServeMux()
	mux.Handle("/livez", health.Live(store))
	mux.Handle("/readyz", health.Ready(store))

	for _, path := range []string{"/livez", "/readyz"} {
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, http.NoBody))
		body, _ := io.ReadAll(answer.Body)
		fmt.Print(answer.Code, " ", string(body))
	}
	// Output:
	// 200 {"status":"pass"}
	// 200 {"status":"pass"}
}
