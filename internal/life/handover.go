package life

// How the child takes, lets go of and loses its instance.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// moments are when something began and ended. Children and parent are on one machine and have one clock.
type moments struct{ Began, Ended time.Time }

// take waits for the instance and connects a client with it. The moments are those of the wait.
func (c *child) take() (m moments, err error) {
	m.Began = now()
	device, err := c.device()
	m.Ended = now()
	if err != nil {
		return m, err
	}
	return m, c.connect(device)
}

// letGo disconnects the client and lets go. The moments are those of the latter.
func (c *child) letGo(how func() error) (m moments, err error) {
	c.bot.Load().Disconnect()
	m.Began = now()
	err = how()
	m.Ended = now()
	return m, err
}

func (c *child) release() error {
	ours, ok := c.store.(*pgstore.Container)
	if !ok {
		return errors.New("only pgstore can let go of an instance")
	}
	return ours.Release(c.ctx, pgstore.InstanceID(c.bot.Load().Store))
}

// stopped is [pgstore.Config].OnStop.
func (c *child) stopped(s pgstore.Stop) {
	unsaved, _ := json.Marshal(len(s.Unsaved))
	c.say(event{Kind: saidStopped, Error: s.Err.Error(), Value: unsaved})
	if c.Idle { // it has lost its instance so that another process of the test runs it
		c.bot.Load().Disconnect()
	}
}

// owner is what this process is called in the database.
func owner() string { return fmt.Sprint("child ", os.Getpid()) }

// replaced connects again if the instance is still ours: then somebody has logged in who has lost it and does not know. One that is cut off
// from the database cannot be told, and its client connects again as often as it loses its connection. So the database says who gives way;
// who cannot ask stays away until he can.
func (c *child) replaced(b *bot) {
	ours, ok := c.store.(*pgstore.Container)
	if !ok {
		return
	}
	for c.ctx.Err() == nil && c.bot.Load() == b {
		all, err := ours.Instances(c.ctx)
		if err == nil {
			if len(all) != 1 || all[0].Owner != owner() {
				return
			}
			b.Disconnect()
			b.over.Store(false)
			if err = b.Connect(); err == nil {
				return
			}
		}
		c.log.Warnf("not connected again: %v", err)
		time.Sleep(tick)
	}
}

// marks is how many rows mark writes.
const marks = 20

// mark writes rows that nobody else writes, and returns how many were refused at once.
func (b *bot) mark(name string) (refused int) {
	for i := range marks {
		err := b.Store.Identities.PutIdentity(b.child.ctx, fmt.Sprintf("%s-%d:0", name, i), [32]byte{1})
		if errors.Is(err, pgstore.ErrOwnershipLost) {
			refused++
		}
	}
	return refused
}
