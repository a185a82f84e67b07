package pgstore

import (
	"context"
	"math"
)

// Heal takes an instance as one whose database went back, whatever the database and the witness say: for a database of which a person knows that it is
// older than what has left on the wire (a snapshot that was put back while no process lived). All sending chains are abandoned, pre-keys and app state are made
// anew (replay.go), and the instance is released, healed and cleanly left, for the next who takes it. No QR code is needed.
//
// Disconnect its client first: whoever has the instance loses it, as with every take; if that is this container, its stores fail with [ErrReleased]. The error is
// [ErrNoInstance] if there is no such instance. After an error it may be called again; what is healed twice costs another bundle for each chat.
func (c *Container) Heal(ctx context.Context, id string) error {
	if err := c.Release(ctx, id); err != nil {
		return err
	}
	c.rewind(id, +1)
	d, err := c.takeDevice(ctx, id)
	c.rewind(id, -1)
	switch {
	case err != nil:
		return err
	case d == nil:
		return ErrNoInstance
	}
	return c.Release(ctx, id)
}

// latest is later than every moment of an instance: what a witness would have to remember for it to be healed.
var latest = Mark{Epoch: math.MaxInt64, Seq: math.MaxInt64}

// rewind counts the calls that want an instance to be taken as one whose database went back.
func (c *Container) rewind(id string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.rewound[id] += by; c.mu.rewound[id] == 0 {
		delete(c.mu.rewound, id)
	}
}

func (c *Container) isRewound(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.rewound[id] > 0
}
