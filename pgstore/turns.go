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
)

// turn is a send that holds sessions.
type turn struct {
	keys  map[cache.Key]struct{}
	many  bool
	until time.Time // guarded by the instance's mu
	done  chan struct{}
}

// beginTurn notes that a send is about to read sessions, and waits until nobody of the other kind holds one of them.
func (in *instance) beginTurn(ctx context.Context, many bool, keys ...cache.Key) {
	if !in.transacted.Load() || in.transactionOf(ctx) != nil || many && len(keys) == 1 {
		return
	}
	mine := &turn{keys: make(map[cache.Key]struct{}, len(keys)), many: many, done: make(chan struct{})}
	for _, k := range keys {
		mine.keys[k] = struct{}{}
	}
	patience, length := answerTurn, manyTurn
	if !many {
		patience, length = manyTurn, answerTurn
	}
	mine.until = time.Now().Add(patience + length)
	in.mu.Lock()
	in.mu.turns = slices.DeleteFunc(in.mu.turns, func(t *turn) bool { return time.Now().After(t.until) })
	others := slices.DeleteFunc(slices.Clone(in.mu.turns), func(t *turn) bool { return t.many == many || !t.holdsOneOf(mine) })
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

func (t *turn) holdsOneOf(other *turn) bool {
	small, large := t.keys, other.keys
	if len(small) > len(large) {
		small, large = large, small
	}
	for k := range small {
		if _, held := large[k]; held {
			return true
		}
	}
	return false
}

// endTurn ends the oldest send, to many or not, that holds a session which has been put.
func (in *instance) endTurn(put map[cache.Key]*recordValue, many bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	at := slices.IndexFunc(in.mu.turns, func(t *turn) bool {
		for k := range put {
			if _, held := t.keys[k]; held && t.many == many {
				return true
			}
		}
		return false
	})
	if at >= 0 {
		close(in.mu.turns[at].done)
		in.mu.turns = slices.Delete(in.mu.turns, at, at+1)
	}
}
