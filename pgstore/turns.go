package pgstore

import (
	"context"
	"slices"
	"time"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// A send to many devices holds their sessions from GetManySessions to PutManySessions: 20 ms for 512 devices, and longer where bundles are
// fetched. A retry answer that reads one of these sessions meanwhile uses the same message key and stores first, and then the whole send is
// refused; and after a large send many such answers are asked for. So the two take turns: a retry answer waits for the send before it
// reads, and a send to many for the answers that have begun. They wait in memory and not for long, since who reads need not put anything.
//
// Only a client that decrypts in transactions waits, for without them a plain GetSession may be a decrypt's.

const (
	manyTurn   = 250 * time.Millisecond // several times what encrypting for 512 devices takes, or one round trip to the server
	eachTurn   = 2 * time.Millisecond   // more for each session of a send: its identity may have to be read from the database
	answerTurn = 10 * time.Millisecond  // many times what encrypting one message takes
)

// turn is a reader's part in it. It is guarded by the instance's mu.
type turn struct {
	keys  []cache.Key   // what others wait for
	until time.Time     // and how long
	over  chan struct{} // nil if the reader takes no turns
}

// end lets the others go on.
func (t *turn) end() {
	if t.over != nil {
		close(t.over)
		t.over = nil
	}
}

// takeTurn waits until no reader of the other kind holds one of the sessions that r is about to read.
func (in *instance) takeTurn(ctx context.Context, r *reader, keys []cache.Key) {
	if !in.transacted.Load() || r.many() && len(keys) < 2 {
		return
	}
	patience, length := answerTurn, manyTurn+time.Duration(len(keys))*eachTurn
	if !r.many() {
		patience, length = 0, answerTurn
	}
	var others []chan struct{}
	in.mu.Lock()
	in.mu.readers.with(keys, !r.many(), func(other *reader) {
		if other.over != nil && r.began.Before(other.until) {
			others = append(others, other.over)
			if !r.many() {
				patience = max(patience, other.until.Sub(r.began))
			}
		}
	})
	r.turn = turn{keys: keys, until: r.began.Add(patience + length), over: make(chan struct{})}
	in.mu.Unlock()
	if len(others) == 0 {
		return
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	defer in.c.waits(WaitTurn, in.id).over(nil)
	for _, over := range others {
		select {
		case <-over:
			continue
		case <-limit.C:
		case <-ctx.Done():
		}
		break
	}
	in.mu.Lock()
	r.until = time.Now().Add(length)
	in.mu.Unlock()
}

// with calls fn with the readers, sends to many or plain ones, that hold one of the sessions.
func (rs *readers) with(keys []cache.Key, many bool, fn func(*reader)) {
	if many {
		for _, r := range rs.many {
			if slices.Contains(r.keys, keys[0]) { // an answer holds one
				fn(r)
			}
		}
		return
	}
	for _, k := range keys {
		for _, r := range rs.plain[k] {
			fn(r)
		}
	}
}

// endTurns lets who waits for a send, or for one that came before it and has put nothing, go on.
func (in *instance) endTurns(r *reader) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, other := range in.mu.readers.many {
		if other.over != nil && !other.began.After(r.began) && slices.ContainsFunc(other.keys, func(k cache.Key) bool {
			_, mine := r.given[k]
			return mine
		}) {
			other.end()
		}
	}
}
