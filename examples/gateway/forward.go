package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// Any process answers any request about an instance:
//
//  1. If the instance's client is here, the request is answered here.
//  2. Else the database says who has the instance, and the request goes there, with the secret that the processes share. Whoever gets such a request
//     and has not got the instance says so (421) and does not send it on, so it cannot go round in circles.
//  3. If it was not answered, and cannot have had an effect (421; nobody listens there any more; a process died over a request that may be
//     repeated), or if nobody has the instance at the moment, it is asked again who has it, until -wait is over: so a request that comes
//     in the middle of a hand-over is answered by the new owner.
//
// So that it can be repeated, a request is read before it is answered; guard.go says how much there may be to read.

const (
	secretHeader = "Gateway-Secret"
	askAgain     = 50 * time.Millisecond
	takePath     = "/internal/take/"
	takeTimeout  = 20 * time.Second
)

// forwardedKey marks the context of a request that another process has sent.
type forwardedKey struct{}

func forwarded(r *http.Request) bool { return r.Context().Value(forwardedKey{}) == true }

// atOwner lets the process that has the instance answer.
func (g *gateway) atOwner(answer local) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return tooLarge(err, errInvalid.because("the body cannot be read"))
		}
		id := r.PathValue("id")
		for deadline := time.Now().Add(g.cfg.wait); ; {
			r.Body = io.NopCloser(bytes.NewReader(body))
			again, err := g.tryOwner(w, r, id, answer)
			if !again {
				return err
			}
			if forwarded(r) {
				return errElsewhere
			}
			if time.Now().After(deadline) {
				return errHandingOver
			}
			select {
			case <-r.Context().Done():
				return r.Context().Err()
			case <-g.streams.Done():
				return errHandingOver
			case <-time.After(askAgain):
			}
		}
	}
}

// tryOwner answers if it can be answered now.
func (g *gateway) tryOwner(w http.ResponseWriter, r *http.Request, id string, answer local) (again bool, err error) {
	if in := g.get(id); in != nil {
		err = answer(w, r, in)
		return errors.Is(err, errElsewhere), err
	}
	info, err := g.dir.find(r.Context(), id)
	switch linked := info.JID != ""; {
	case err != nil:
		return false, err
	case linked && info.Address == "", linked && info.Address == g.cfg.advertise: // it is being handed over, to us perhaps
		return true, nil
	case !linked && (info.Address == "" || info.Address == g.cfg.advertise):
		err = answer(w, r, nil)
		return errors.Is(err, errElsewhere), err
	case forwarded(r):
		return false, errElsewhere
	default:
		return g.forward(w, r, info.Address)
	}
}

// newForwarder is the client with which processes talk to each other.
func newForwarder() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		ResponseHeaderTimeout: time.Minute,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       30 * time.Second, // less than the server's, which would close one just when it is used
	}
}

// forward sends a request on to the owner.
func (g *gateway) forward(w http.ResponseWriter, r *http.Request, address string) (again bool, err error) {
	target, err := url.Parse(address)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if r.Method == http.MethodGet {
		defer context.AfterFunc(g.streams, cancel)() //nolint:contextcheck // at our end, streams end
	}
	answered, to := false, &lastingWriter{ResponseWriter: w}
	proxy := httputil.ReverseProxy{
		Transport: g.forwarder,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Header.Del("Authorization")
			p.Out.Header.Del("Origin") // it was compared with the name that the caller used
			p.Out.Header.Set(secretHeader, g.cfg.secret)
		},
		ModifyResponse: func(response *http.Response) error {
			if response.StatusCode == http.StatusMisdirectedRequest {
				return errElsewhere
			}
			answered, to.lasts = true, response.Header.Get("Content-Type") == "text/event-stream"
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, failed error) { err = failed },
	}
	proxy.ServeHTTP(to, r.WithContext(ctx))
	switch {
	case err == nil || answered:
		return false, nil
	case errors.Is(err, errElsewhere), dialing(err):
		return true, nil
	case r.Method == http.MethodGet || r.Header.Get("Idempotency-Key") != "":
		return true, nil
	default:
		return false, errOwnerGone
	}
}

// lastingWriter passes on an answer that may last longer than the server's own time limits.
type lastingWriter struct {
	http.ResponseWriter
	lasts bool
}

// Unwrap is for [http.ResponseController].
func (w *lastingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements [http.ResponseWriter].
func (w *lastingWriter) WriteHeader(status int) {
	if w.lasts {
		_ = http.NewResponseController(w.ResponseWriter).SetReadDeadline(time.Time{})
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *lastingWriter) Write(p []byte) (int, error) {
	if w.lasts {
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	return w.ResponseWriter.Write(p)
}

// dialing says whether an error is of a connection that was not made, so that nothing was asked.
func dialing(err error) bool {
	var failed *net.OpError
	return errors.As(err, &failed) && failed.Op == "dial"
}

// askToTake asks another process to take an instance that has just been let go of.
func (g *gateway) askToTake(ctx context.Context, address, id string) error {
	ctx, cancel := context.WithTimeout(ctx, takeTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address+takePath+url.PathEscape(id), nil)
	if err != nil {
		return err
	}
	request.Header.Set(secretHeader, g.cfg.secret)
	response, err := g.forwarder.RoundTrip(request)
	if err != nil {
		return errNotMoved.because(err.Error())
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	_ = response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return errNotMoved.because("it answers " + response.Status)
	}
	return nil
}

// takeAsked is the other end of askToTake.
func (g *gateway) takeAsked(w http.ResponseWriter, r *http.Request) error {
	if !forwarded(r) {
		return errUnauthorized
	}
	if err := g.take(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
