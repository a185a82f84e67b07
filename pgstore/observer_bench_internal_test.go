package pgstore

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/batcher"
)

// events is each of the places that tell observers, on a container that has only what these need.
func events() map[string]func() {
	c := &Container{}
	in := &instance{c: c, id: "1"}
	pending := batcher.Flushed{Lanes: 1, Ops: 10, Bytes: 1000, Took: time.Millisecond}
	return map[string]func(){
		"a call that does not fail":  func() { _ = in.failed(nil) },
		"a commit that came already": func() { in.waits(WaitDurable, batcher.Ticket{}).over(nil) },
		"a wait":                     func() { c.waits(WaitTurn, in.id).over(nil) },
		"a flush": func() {
			c.observers.flushed(Flush{Instances: pending.Lanes, Keys: pending.Ops, Bytes: pending.Bytes, Took: pending.Took})
		},
		"a fetch":   func() { c.observers.fetched(Fetch{Kind: FetchKeys, Instance: in.id, Took: pending.Took}) },
		"a failure": func() { _ = in.failed(ErrClosed) },
	}
}

// What nobody observes costs nothing worth naming, and no allocation.
func TestNothingIsAllocatedForNobody(t *testing.T) {
	for name, event := range events() {
		require.Zero(t, testing.AllocsPerRun(1000, event), name)
	}
	observed := &Container{}
	told := 0
	observed.Observe(Observer{Waited: func(Wait) { told++ }})
	observed.Observe(Observer{Waited: func(w Wait) { told++; require.ErrorIs(t, w.Err, errAgain) }, Failed: func(Failure) { told++ }})
	observed.waits(WaitTurn, "").over(errAgain)
	observed.observers.failed("", errors.New("x"))
	require.Equal(t, 3, told)
}

func BenchmarkUnobserved(b *testing.B) {
	for name, event := range events() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				event()
			}
		})
	}
}
