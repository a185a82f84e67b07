// Package health serves [pgstore.Container.Health] to probes:
//
//	mux.Handle("/livez", health.Live(store))
//	mux.Handle("/readyz", health.Ready(store))
//
// Live fails when nothing helps but to start the process again: the container is closed, or its goroutines hang. It asks nobody outside of the
// process: a liveness probe that fails while the database is away kills bots that hold in memory what the database does not have.
//
// Ready fails when new work had better go elsewhere: the database does not answer, takes no writes, or has the wrong schema; writers are blocked; the lease
// has lapsed; the container is being closed. Clients that are connected go on nevertheless. A gateway that is asked to pair or to open
// instances should be taken out of its load balancer then; a bot that nobody asks for anything needs no readiness probe.
//
// The answer is 200 or 503 with a body as application/health+json (draft-inadarei-api-health-check) has it: "pass"; "warn" with what is
// not as it should be and changes neither; "fail". The keys of its checks are [pgstore.ReasonCode]s and stay the same; the text is for people. There is
// no name of an instance, no host and no key material in it.
//
// A program with reasons of its own, such as a gateway that hands over what it has, is a [Source] too: it asks its container and adds them.
//
// A kubelet gives a probe one second by default; let timeoutSeconds be 3 for Ready, which waits for the database for up to two.
package health

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Source is who is asked: a [pgstore.Container], or a program that adds to what its container says. Its methods are called by any number of
// goroutines at once, and take no longer than the probes wait.
type Source interface {
	// Health is asked by Ready.
	Health(ctx context.Context) pgstore.Health
	// Liveness is asked by Live, and asks nobody outside of the process.
	Liveness() pgstore.Health
}

// Live answers whether the sources live. With several, one that does not is enough.
func Live(sources ...Source) http.Handler {
	return handler(func(*http.Request) (all []pgstore.Health) {
		for _, source := range sources {
			all = append(all, source.Liveness())
		}
		return all
	}, func(h pgstore.Health) bool { return h.Live })
}

// Ready answers whether new work is welcome.
func Ready(sources ...Source) http.Handler {
	return handler(func(r *http.Request) (all []pgstore.Health) {
		for _, source := range sources {
			all = append(all, source.Health(r.Context()))
		}
		return all
	}, func(h pgstore.Health) bool { return h.Ready })
}

// The values of a status.
const (
	statusPass = "pass"
	statusWarn = "warn"
	statusFail = "fail"
)

// answer is the body.
type answer struct {
	Status string             `json:"status"`
	Checks map[string][]check `json:"checks,omitempty"` // by reason
}

type check struct {
	Status string `json:"status"`
	Output string `json:"output"`
}

func handler(ask func(*http.Request) []pgstore.Health, passes func(pgstore.Health) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		a := answer{Status: statusPass}
		code := http.StatusOK
		for _, h := range ask(r) {
			status := statusWarn
			if !passes(h) {
				status, code = statusFail, http.StatusServiceUnavailable
			}
			if len(h.Reasons) > 0 && a.Status != statusFail {
				a.Status = status
			}
			for _, reason := range h.Reasons {
				if a.Checks == nil {
					a.Checks = make(map[string][]check)
				}
				of := statusWarn
				if reason.Code.Unready() {
					of = status
				}
				a.Checks[string(reason.Code)] = append(a.Checks[string(reason.Code)], check{of, reason.Text})
			}
		}
		body, err := json.Marshal(a)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/health+json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		_, _ = w.Write(append(body, '\n')) // whoever asked has gone
	})
}
