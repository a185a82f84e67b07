package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// owned is an instance and who has it.
type owned struct {
	ID           string    `json:"id"`
	JID          string    `json:"jid"`
	LID          string    `json:"lid"`
	Owner        string    `json:"owner"`                 // who took it last
	Address      string    `json:"address"`               // where that process is reached
	State        string    `json:"state"`                 // owned, orphaned (its owner lives no more) or free
	Clean        bool      `json:"clean"`                 // whether it was left cleanly
	TakenAt      time.Time `json:"taken_at"`              //
	CreatedAt    time.Time `json:"created_at"`            //
	HeartbeatAge *float64  `json:"heartbeat_age_seconds"` // of its process; null if it has none
}

const (
	stateOwned    = "owned"
	stateOrphaned = "orphaned"
	stateFree     = "free"
)

const ownedQuery = `SELECT i.id, i.jid, i.lid, i.owner, coalesce(p.address, ''),
	CASE WHEN i.process IS NULL THEN 'free' WHEN p.expires > clock_timestamp() THEN 'owned' ELSE 'orphaned' END,
	i.clean_at_epoch = i.epoch, i.taken_at, i.created_at, extract(epoch FROM clock_timestamp() - p.heartbeat)::float8
	FROM {schema}.instances i LEFT JOIN {schema}.processes p ON p.id = i.process `

func (o *owned) scan(row pgx.Row) error {
	return row.Scan(&o.ID, &o.JID, &o.LID, &o.Owner, &o.Address, &o.State, &o.Clean, &o.TakenAt, &o.CreatedAt, &o.HeartbeatAge)
}

// since is for people: who has it, where, and since when.
func (o *owned) since() string {
	at := ""
	if o.Address != "" {
		at = " at " + shown(o.Address)
	}
	return fmt.Sprintf("%s%s, since %s", orDash(o.Owner), at, o.TakenAt.UTC().Format(time.RFC3339))
}

// find looks an instance up by its name or its JID.
func (db *database) find(ctx context.Context, name string) (*owned, error) {
	o := new(owned)
	err := o.scan(db.QueryRow(ctx, db.sql(ownedQuery+`WHERE i.id = $1 OR i.jid = $1 ORDER BY i.id = $1 DESC LIMIT 1`), name))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("there is no instance %s in schema %s", shown(name), db.schema)
	}
	return o, err
}

// list lists instances, in the order of their names.
func (db *database) list(ctx context.Context, where string, args ...any) ([]*owned, error) {
	rows, err := db.Query(ctx, db.sql(ownedQuery+where+` ORDER BY i.id`), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*owned, error) {
		o := new(owned)
		return o, o.scan(row)
	})
}

// taking runs fn on an instance with a container that may take it: from a living process only if that is forced. It releases it afterwards, also when fn
// fails.
func (a *app) taking(ctx context.Context, db *database, command, id string, forced bool, fn func(context.Context, *pgstore.Container) error) (err error) {
	if err = db.refuseLiving(ctx, id, forced); err != nil {
		return err
	}
	c, err := a.container(ctx, db, command, forced)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closed(ctx, c)) }()
	ctx, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	if err = fn(ctx, c); err == nil || ctx.Err() == nil {
		return err
	}
	// The time is over: perhaps because somebody has taken it since we looked, or its lease is respected.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if o, lookErr := db.find(look, id); lookErr == nil && o.State == stateOwned && o.Owner != owner(command) {
		return refused("instance %s is owned by %s, which has not let go of it within %v", shown(id), o.since(), a.wait)
	}
	return err
}

// guard ends what has no limit of its own when it waits for an instance that a living process has taken since that was looked at: the instance that wants to be taken
// is told with watch. Each --wait it looks who has it, and when that is somebody else for the second time, the context's cause is a refusal.
func (a *app) guard(ctx context.Context, db *database, command string) (guarded context.Context, watch func(id string), stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wanted atomic.Pointer[string]
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(a.wait)
		defer tick.Stop()
		before := ""
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			id := wanted.Load()
			if id == nil {
				continue
			}
			o, err := db.find(ctx, *id)
			if err != nil || o.State != stateOwned || o.Owner == owner(command) {
				before = ""
				continue
			}
			if before == *id {
				cancel(refused("instance %s is owned by %s, which has not let go of it within %v", shown(*id), o.since(), a.wait))
			}
			before = *id
		}
	})
	return ctx, func(id string) { wanted.Store(&id) }, func() { cancel(nil); looking.Wait() }
}

// causeOf is why a guarded context has ended something, or what went wrong.
func causeOf(ctx context.Context, err error) error {
	var refusal *exitError
	if cause := context.Cause(ctx); err != nil && errors.As(cause, &refusal) {
		return cause
	}
	return err
}

// refuseLiving refuses an instance that a living process has.
func (db *database) refuseLiving(ctx context.Context, id string, forced bool) error {
	o, err := db.find(ctx, id)
	if err != nil || forced || o.State != stateOwned {
		return err
	}
	return refused("instance %s is owned by %s, which lives: stop it, or say --force, and its client will fail", shown(id), o.since())
}

// forceFlag is --force of the commands that take an instance.
func forceFlag(cmd *cobra.Command, forced *bool) {
	cmd.Flags().BoolVar(forced, "force", false, "take it from a living process, too")
}
