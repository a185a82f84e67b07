package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// probed is who the probes ask (pgstore/health): the store, and whether this process takes part.
//
// A database that is away makes no process unready, since it is away for all of them, and what is in memory goes on. Once the lease has lapsed it does: a
// process that cannot say any more which instances are its own had better not be asked for them.
type probed struct {
	g             *gateway
	ready, living remembered
}

// The gateway's own reasons, beside the store's.
const (
	reasonStarting pgstore.ReasonCode = "starting"
	reasonLeaving  pgstore.ReasonCode = "leaving" // it hands over what it has, and ends
)

// Health implements [health.Source].
func (p *probed) Health(ctx context.Context) pgstore.Health {
	switch {
	case p.g.leaves():
		return pgstore.Health{Live: true, Reasons: []pgstore.Reason{{Code: reasonLeaving, Text: "the instances are being handed over"}}}
	case !p.g.ready.Load():
		return pgstore.Health{Live: true, Reasons: []pgstore.Reason{{Code: reasonStarting, Text: "it has not joined the other processes yet"}}}
	}
	h := p.ready.ask(func() pgstore.Health { return p.g.store.Health(context.WithoutCancel(ctx)) }) // others are told the same when who has asked is gone
	h.Ready = !slices.ContainsFunc(h.Reasons, unready)
	return h
}

// unready says whether a reason of the store's takes this process out of the load balancer.
func unready(r pgstore.Reason) bool {
	everywhere := []pgstore.ReasonCode{pgstore.ReasonDatabaseUnreachable, pgstore.ReasonDatabaseRefuses, pgstore.ReasonDatabaseReadOnly}
	return r.Code.Unready() && !slices.Contains(everywhere, r.Code)
}

// Liveness implements [health.Source]. A store that was closed because all was handed over is as it should be: requests under way come to their end.
func (p *probed) Liveness() pgstore.Health {
	if p.g.leaves() {
		return pgstore.Health{Live: true, Ready: true}
	}
	return p.living.ask(p.g.store.Liveness)
}

// remembered is what was last said, for a second: probes need no key, so strangers could keep the database busy with them.
type remembered struct {
	mu    sync.Mutex
	asked time.Time
	said  pgstore.Health
}

func (r *remembered) ask(what func() pgstore.Health) pgstore.Health {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked.IsZero() || time.Since(r.asked) >= time.Second {
		r.said = what()
		r.asked = time.Now()
	}
	return r.said
}
