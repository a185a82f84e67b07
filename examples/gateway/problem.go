package main

import (
	"encoding/json"
	"errors"
	"net/http"
)

// problem is an answer that says no (RFC 9457), and an error.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Error implements error.
func (p *problem) Error() string { return p.Title }

// Is lets errors.Is compare problems by their type, whatever their detail.
func (p *problem) Is(target error) bool {
	other, ok := target.(*problem)
	return ok && other.Type == p.Type
}

// because adds what is particular to one case.
func (p *problem) because(detail string) *problem {
	q := *p
	q.Detail = detail
	return &q
}

func newProblem(name string, status int, title string) *problem {
	return &problem{Type: "/problems/" + name, Title: title, Status: status}
}

// What the API says no with.
var (
	errUnauthorized = newProblem("unauthorized", http.StatusUnauthorized, "A valid API key is needed.")
	errForbidden    = newProblem("forbidden", http.StatusForbidden, "Requests of other sites are refused.")
	errNoRoute      = newProblem("no-such-path", http.StatusNotFound, "There is nothing at this path.")
	errMethod       = newProblem("method-not-allowed", http.StatusMethodNotAllowed, "The path does not know this method.")
	errUnknown      = newProblem("unknown-instance", http.StatusNotFound, "There is no such instance.")
	errExists       = newProblem("instance-exists", http.StatusConflict, "An instance has this name already.")
	errNotPaired    = newProblem("not-paired", http.StatusConflict, "The instance is not linked to a phone.")
	errPaired       = newProblem("already-paired", http.StatusConflict, "The instance is linked to a phone already.")
	errNoTarget     = newProblem("no-such-process", http.StatusConflict, "There is no such other process.")
	errNotMoved     = newProblem("not-moved", http.StatusBadGateway, "The other process has not taken the instance; one that has room will.")
	errInvalid      = newProblem("invalid", http.StatusBadRequest, "The request is not valid.")
	errTooLarge     = newProblem("too-large", http.StatusRequestEntityTooLarge, "The request is too large.")
	errTooMany      = newProblem("too-many-requests", http.StatusTooManyRequests, "There are too many requests.")
	errReused       = newProblem("idempotency-key-reused", http.StatusUnprocessableEntity, "The idempotency key belongs to another request.")
	errUnderWay     = newProblem("under-way", http.StatusConflict, "The request with this idempotency key is still under way.")
	errNotConnected = newProblem("not-connected", http.StatusServiceUnavailable, "The instance is not connected at the moment.")
	errHandingOver  = newProblem("handing-over", http.StatusServiceUnavailable, "No process has the instance at the moment.")
	errElsewhere    = newProblem("elsewhere", http.StatusMisdirectedRequest, "The instance is not at this process.")
	errOwnerGone    = newProblem("owner-gone", http.StatusBadGateway, "The process that has the instance went away while it was asked. What it did is not known.")
	errNotSent      = newProblem("not-sent", http.StatusBadGateway, "WhatsApp has not taken the message, or has not said so in time.")
	errInternal     = newProblem("internal", http.StatusInternalServerError, "Something went wrong.")
)

// writeProblem answers with a problem. What is none is logged and not told.
func (g *gateway) writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	var p *problem
	if !errors.As(err, &p) {
		if r.Context().Err() == nil {
			g.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		p = errInternal
	}
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
