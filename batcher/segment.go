package batcher

import "context"

// OpKind is what an operation does.
type OpKind uint8

const (
	// Put sets a value.
	Put OpKind = iota
	// PutIfAbsent sets a value if there is none.
	PutIfAbsent
	// Delete removes a value.
	Delete
)

// Op is one write.
type Op[K comparable, V any] struct {
	Kind  OpKind
	Key   K
	Value V
	Size  int // bytes that it counts for while it is pending
}

// Room is what operations take up in the backlog.
type Room struct {
	Ops   int
	Bytes int64 // the sum of their sizes
}

func roomOf[K comparable, V any](ops []Op[K, V]) Room {
	r := Room{Ops: len(ops)}
	for _, o := range ops {
		r.Bytes += int64(o.Size)
	}
	return r
}

func (r Room) plus(o Room) Room  { return Room{r.Ops + o.Ops, r.Bytes + o.Bytes} }
func (r Room) minus(o Room) Room { return Room{r.Ops - o.Ops, r.Bytes - o.Bytes} }

// holds says whether o fits in r.
func (r Room) holds(o Room) bool { return o.Ops <= r.Ops && o.Bytes <= r.Bytes }

// Segment is what one flush makes durable for one lane, atomically. Each key occurs once.
type Segment[L any, K comparable, V any] struct {
	Lane L
	Ops  []Op[K, V]
}

// part is a segment in the queue of its lane, guarded by the batcher's lock until it is sealed.
type part[K comparable, V any] struct {
	ops    []Op[K, V]
	bytes  int64 // of all ops
	index  map[K]int
	sealed bool
	wanted bool // somebody waits for it
	done   chan struct{}
	err    error // set before done is closed
}

func newPart[K comparable, V any]() *part[K, V] {
	return &part[K, V]{index: make(map[K]int), done: make(chan struct{})}
}

// add coalesces a group into the segment.
func (p *part[K, V]) add(ops []Op[K, V]) {
	for _, o := range ops {
		i, ok := p.index[o.Key]
		if !ok {
			p.index[o.Key] = len(p.ops)
			p.ops = append(p.ops, o)
			p.bytes += int64(o.Size)
			continue
		}
		if o.Kind == PutIfAbsent {
			if p.ops[i].Kind != Delete {
				continue
			}
			o.Kind = Put
		}
		p.bytes += int64(o.Size - p.ops[i].Size)
		p.ops[i] = o
	}
}

func (p *part[K, V]) room() Room { return Room{len(p.ops), p.bytes} }

func (p *part[K, V]) finish(err error) {
	p.err = err
	close(p.done)
}

func (p *part[K, V]) finished() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Ticket lets a writer wait for its group. The zero Ticket is durable.
type Ticket struct {
	done <-chan struct{}
	want func()
	err  func() error
}

// Done is closed when the group is durable or its lane stopped. It is nil for the zero Ticket.
func (t Ticket) Done() <-chan struct{} { return t.done }

// Hurry makes the group's segment urgent and does not wait.
func (t Ticket) Hurry() {
	if t.done != nil {
		t.want()
	}
}

// Wait makes the group's segment urgent and waits for it. The error is the context's, or the lane's if it stopped.
func (t Ticket) Wait(ctx context.Context) error {
	if t.done == nil {
		return nil
	}
	t.want()
	select {
	case <-t.done:
		return t.err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
