package waserver

// App state, as far as it is not in package appstate: whose it is, who is told of changes, and what the phone does. It shares
// its keys with a client when that is there for the first time, and answers requests for keys and for recovery. Clients are
// told of a change by a notification that names the collections, and fetch them.

import (
	"context"
	"strconv"

	client "go.mau.fi/whatsmeow/appstate"
	waBinary "go.mau.fi/whatsmeow/binary"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
)

// AppState is the account's app state: what is set, in which version, what clients did wrong, and what can go wrong for them.
func (a *Account) AppState() *appstate.State { return a.state }

// Apply changes settings on the phone and tells the clients. It returns when those that are connected have been given the
// change; what they make of it takes a moment longer. Others find the notification in their mailboxes.
func (a *Account) Apply(ctx context.Context, mutations ...appstate.Mutation) error {
	changed, err := a.state.Apply(mutations...)
	if err != nil {
		return err
	}
	a.server.mu.Lock()
	a.tellAppStateLocked(nil, changed)
	a.server.mu.Unlock()
	return a.server.wait(ctx, func() bool {
		for _, d := range a.devices {
			if d.conn != nil && d.conn.active && !d.fetchedLocked(changed) {
				return false
			}
		}
		return true
	})
}

// WaitSynced waits until a client has been given every collection in its present version.
func (a *Account) WaitSynced(ctx context.Context, d *Device) error {
	return a.server.wait(ctx, func() bool { return d.fetchedLocked(client.AllPatchNames[:]) })
}

// fetchedLocked reports whether a client was given the present version of some collections.
func (d *Device) fetchedLocked(names []client.WAPatchName) bool {
	for _, name := range names {
		version, ok := d.fetched[name]
		if !ok || version < d.user.account.state.Version(name) {
			return false
		}
	}
	return true
}

// tellAppStateLocked tells the account's clients, but for the one that made the change, that collections changed.
func (a *Account) tellAppStateLocked(by *Device, changed []client.WAPatchName) {
	for _, d := range a.devicesLocked() {
		if d.phone == nil && d != by {
			d.deliverLocked(&stanza{node: a.state.Notification(a.server.nextIDLocked("notification"), changed...)})
		}
	}
}

// appState answers fetches and takes in patches.
func (s *Server) appState(q *query) ([]waBinary.Node, *iqError) {
	d := q.device
	answer, changed := d.user.account.state.Handle(q.node)
	q.after = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		d.gaveLocked(&answer)
		if len(changed) > 0 {
			d.user.account.tellAppStateLocked(d, changed)
		}
		s.happenedLocked()
	}
	return answer.GetChildren(), nil
}

// gaveLocked notes which versions a client has after an answer. Only the last page of a fetch says that there are no more.
func (d *Device) gaveLocked(answer *waBinary.Node) {
	sync := answer.GetChildByTag("sync")
	for _, c := range sync.GetChildrenByTag("collection") {
		version, err := strconv.ParseUint(attrString(&c, "version"), 10, 64)
		if err != nil || attrString(&c, "has_more_patches") != "false" {
			continue
		}
		if d.fetched == nil {
			d.fetched = make(map[client.WAPatchName]uint64)
		}
		d.fetched[client.WAPatchName(attrString(&c, "name"))] = version
	}
}

// greet is what the phone does when a client is there for the first time. History comes behind the first fetch of the app
// state, for the client saves what it learns from either on goroutines of its own, without a lock.
func (a *Account) greet(d *Device, linked func(*Device)) {
	s := a.server
	if _, err := a.SendPeer(d, a.state.KeyShare()); err != nil {
		s.log.Warn("waserver: phone could not share its keys", "error", err)
	}
	if linked != nil {
		s.spawn(func() { linked(d) })
	}
	s.mu.Lock()
	initial := a.initial
	s.mu.Unlock()
	if initial != nil {
		err := s.wait(s.ctx, func() bool { return d.conn == nil || d.fetchedLocked(client.AllPatchNames[:]) })
		if err == nil {
			err = a.sendHistory(s.ctx, d, initial)
		}
		if err != nil {
			s.log.Warn("waserver: phone could not send its history", "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.greeting = false
	s.happenedLocked()
}

// answerPeer is the phone's answer to a message that a client sent to it alone.
func (a *Account) answerPeer(from *Device, r Received) {
	answer, err := a.state.Answer(r.Message.GetProtocolMessage(), r.ID)
	if err == nil && answer != nil {
		_, err = a.SendPeer(from, answer)
	}
	if err != nil {
		a.server.log.Warn("waserver: phone could not answer its client", "error", err)
	}
}
