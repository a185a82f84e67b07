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
	answerTurn = 10 * time.Millisecond  // many times what encrypting one message takes

	turnAge   = 5 * time.Minute // a send that has not put by then is not remembered
	turnsMost = 64              // the client sends one message after the other
)

// turn is a send that holds sessions.
type turn struct {
	keys  []cache.Key
	many  bool // from GetManySessions
	began time.Time
	until time.Time // how long the others wait; guarded by the instance's mu
	done  chan struct{}
}

// beginTurn notes that a send is about to read sessions, and waits until nobody of the other kind holds one of them.
func (in *instance) beginTurn(ctx context.Context, many bool, keys ...cache.Key) {
	waits := in.transacted.Load() && (!many || len(keys) > 1)
	if in.transactionOf(ctx) != nil || !many && !waits {
		return
	}
	patience, length := answerTurn, manyTurn
	if !many {
		patience, length = manyTurn, answerTurn
	}
	now := time.Now()
	mine := &turn{keys: keys, many: many, began: now, done: make(chan struct{})}
	if waits {
		mine.until = now.Add(patience + length)
	}
	in.mu.Lock()
	in.mu.turns = slices.DeleteFunc(in.mu.turns, func(t *turn) bool {
		return now.After(t.until) && !t.many || now.Sub(t.began) > turnAge
	})
	in.mu.turns = in.mu.turns[max(0, len(in.mu.turns)-turnsMost):]
	var others []*turn
	for _, t := range in.mu.turns {
		if waits && t.many != many && now.Before(t.until) && t.holdsOneOf(mine) {
			others = append(others, t)
		}
	}
	in.mu.turns = append(in.mu.turns, mine)
	in.mu.Unlock()
	if len(others) == 0 {
		return
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for _, other := range others {
		select {
		case <-other.done:
			continue
		case <-limit.C:
		case <-ctx.Done():
		}
		break
	}
	in.mu.Lock()
	mine.until = time.Now().Add(length)
	in.mu.Unlock()
}

// holdsOneOf says whether a send to many and an answer hold the same session; the answer holds one.
func (t *turn) holdsOneOf(other *turn) bool {
	return slices.Contains(t.keys, other.keys[0]) || slices.Contains(other.keys, t.keys[0])
}

// turnOf is the oldest send, to many or not, that holds a session which is being put; nil if nobody has read one.
func (in *instance) turnOf(put map[cache.Key]*recordValue, many bool) *turn {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, t := range in.mu.turns {
		if t.many != many {
			continue
		}
		for _, k := range t.keys {
			if _, putting := put[k]; putting {
				return t
			}
		}
	}
	return nil
}

// endTurn lets the others go on.
func (in *instance) endTurn(t *turn) {
	if t == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if at := slices.Index(in.mu.turns, t); at >= 0 {
		in.mu.turns = slices.Delete(in.mu.turns, at, at+1)
		close(t.done)
	}
}
