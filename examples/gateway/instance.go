package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const (
	sendTimeout    = 15 * time.Second // of one send; as long may a hand-over have to wait for it
	uploadTimeout  = time.Minute      // of an attachment; a hand-over breaks it off, since nothing has left yet
	connectionWait = 5 * time.Second  // for a client that has just lost its connection
	handshakeWait  = 2 * time.Second  // for a client that is logging in when it is to end
	logLength      = 100              // events that are kept for those who look later
)

// instance is one number whose client is here: its client, what is told of it, and its end.
type instance struct {
	g       *gateway
	id      string
	since   time.Time
	client  *whatsmeow.Client
	ctx     context.Context // until its end
	cancel  context.CancelFunc
	log     *stream // what happens, for those who look on
	pairing *stream // the codes, if it was not linked when it came here
	linked  atomic.Bool

	sending sync.RWMutex    // held for reading by what uses the client, for writing by who ends it
	over    bool            // written with sending and mu held
	staying context.Context // ends as soon as the instance is to end
	stay    context.CancelFunc

	leaving atomic.Bool // it is to leave, and has not been forgotten yet
	trying  sync.Mutex  // held during an attempt to let go of it
	owed    atomic.Bool // the last attempt has failed
	how     letGo       // guarded by the gateway's mu until it is set, and not changed any more

	mu     sync.Mutex
	status status // what the directory has not been told yet, and the present state
	dirty  bool
}

func newInstance(g *gateway, id string, device *store.Device) *instance {
	in := &instance{g: g, id: id, since: time.Now(), client: whatsmeow.NewClient(device, clientLog{g.log.With("instance", id)}), log: newStream(logLength)}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	in.staying, in.stay = context.WithCancel(in.ctx)
	in.client.EnableDecryptedEventBuffer = true // with the store's DurableAcks: no message whose handler returned is lost
	in.client.SynchronousAck = true             // nothing is acknowledged before its handler has returned
	in.client.UseRetryMessageStore = true       // who could not read a message may ask for it again, wherever this instance is then
	in.client.InitialAutoReconnect = true       // the first connection is tried again, as every other
	in.client.AddEventHandlerWithSuccessStatus(in.handle)
	in.status.State = "connecting"
	in.linked.Store(device.ID != nil)
	return in
}

// dial connects the client. It goes on until that has worked once; from then on the client connects again by itself.
func (in *instance) dial() {
	in.g.dialing <- struct{}{}
	defer func() { <-in.g.dialing }()
	_, err := backoff.Retry(in.ctx, func() (any, error) {
		in.mu.Lock()
		over := in.over
		in.mu.Unlock()
		if over {
			return nil, nil
		}
		err := in.g.connect(in.client, in.ctx)
		if errors.Is(err, store.ErrDeviceDeleted) || errors.Is(err, whatsmeow.ErrAlreadyConnected) {
			err = backoff.Permanent(err)
		}
		return nil, err
	}, backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, _ time.Duration) { in.set("connecting", err.Error()) }))
	if err != nil && in.ctx.Err() == nil && !errors.Is(err, whatsmeow.ErrAlreadyConnected) {
		in.set("failed", "connecting: "+err.Error())
	}
}

// tellTaken tells the directory that the instance is here, for as long as it is.
func (in *instance) tellTaken() {
	defer in.tellAgain()
	_, _ = backoff.Retry(in.ctx, func() (any, error) { return nil, in.g.dir.took(in.ctx, []string{in.id}) }, backoff.WithMaxElapsedTime(0))
}

// tellAgain tells the directory the present state, which was overwritten when it was told that the instance is here.
func (in *instance) tellAgain() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.dirty = true
}

// letGo lets another process have the instance.
func (in *instance) letGo(ctx context.Context) error { return in.g.store.Release(ctx, in.id) }

// letGoStopped does so with one that the store has stopped: if it was taken here again meanwhile, what nobody runs must not look as if it were ours.
func (in *instance) letGoStopped(ctx context.Context) error {
	if err := in.letGo(ctx); errors.Is(err, pgstore.ErrUnavailable) {
		return err
	}
	return nil // else it says why it was stopped
}

// nothingLeft is how an instance is let go of that has no keys any more, or none yet.
func nothingLeft(context.Context) error { return nil }

// handle is the client's event handler. What it returns says whether the server may forget the event.
func (in *instance) handle(event any) bool {
	switch evt := event.(type) {
	case *events.Message:
		return in.received(evt)
	case *events.Receipt:
		in.active(func(*status) {})
		in.log.publish("receipt", receipt{evt.Chat.String(), string(evt.Type), evt.MessageIDs})
	case *events.UndecryptableMessage:
		in.log.publish("undecryptable", receipt{Chat: evt.Info.Chat.String(), IDs: []types.MessageID{evt.Info.ID}})
	case *events.PairSuccess:
		in.g.log.Info("instance is linked", "instance", in.id, "jid", evt.ID.String())
	case *events.Connected:
		in.set("connected", "")
	case *events.Disconnected:
		if in.linked.Load() {
			in.set("connecting", "connection lost")
		}
	case *events.TemporaryBan:
		in.set("failed", evt.String())
	case *events.ClientOutdated:
		in.set("failed", "the server wants a newer client")
	case *events.ConnectFailure:
		in.set("failed", fmt.Sprintf("the server refuses: %s %s", evt.Reason, evt.Message))
	case *events.LoggedOut: // the phone has unlinked it, and its keys are deleted
		in.set("logged_out", "unlinked by its phone")
		in.g.later(func() { _ = in.g.leave(in.ctx, in, nothingLeft) })
	case *events.StreamReplaced: // somebody else has logged in: the new owner, or one that does not know yet that it is none any more
		in.g.later(func() { _ = in.g.leave(in.ctx, in, in.letGo) })
	}
	return true
}

// received passes a message on. It is acknowledged when it is in the table of webhooks, from which it goes out until it is taken; where the database is
// away it is tried until the client ends, and then the message comes again, here or at the next owner's.
func (in *instance) received(evt *events.Message) bool {
	if evt.Info.IsFromMe {
		return true
	}
	m := incoming(in.id, evt)
	_, err := backoff.Retry(in.ctx, func() (any, error) { return nil, in.g.hooks.enqueue(in.ctx, m) }, backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) { in.g.log.Warn("webhook not noted", "instance", in.id, "error", err) }))
	if err != nil {
		return false
	}
	in.g.metrics.received.Inc()
	in.active(func(s *status) { s.Received++ })
	in.log.publish("message", m)
	return true
}

// send sends a message under an id. It must be called by what use runs.
func (in *instance) send(ctx context.Context, to types.JID, message *waE2E.Message, id types.MessageID) (resp whatsmeow.SendResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	for range 10 {
		resp, err = in.client.SendMessage(ctx, to, message, whatsmeow.SendRequestExtra{ID: id, Timeout: sendTimeout})
		if !errors.Is(err, pgstore.ErrMessageKeyUsed) {
			break
		}
		// Another send to this chat has used the message key meanwhile. That is rare, and nothing has left: send again.
	}
	if err == nil {
		in.g.metrics.sent.Inc()
		in.active(func(s *status) { s.Sent++ })
	}
	return resp, err
}

// use lets a request use the client, while nobody ends it. ErrElsewhere says that the instance was let go of before anything has left: the
// new owner will do it.
func (in *instance) use(ctx context.Context, do func(context.Context) error) error {
	in.sending.RLock()
	defer in.sending.RUnlock()
	if in.over {
		return errElsewhere
	}
	if !in.linked.Load() {
		return errNotPaired
	}
	if !in.client.IsLoggedIn() && !in.client.WaitForConnection(connectionWait) {
		return errNotConnected
	}
	err := do(ctx)
	if gone(err) {
		return errElsewhere
	}
	return err
}

// gone says whether an error of the store means that the instance is not this process's any more.
func gone(err error) bool {
	return errors.Is(err, pgstore.ErrReleased) || errors.Is(err, pgstore.ErrOwnershipLost) || errors.Is(err, pgstore.ErrClosed)
}

// prepare makes the message that is to be sent, which may take an upload. It must be called by what use runs.
func (in *instance) prepare(ctx context.Context, message func(context.Context, *whatsmeow.Client) (*waE2E.Message, error)) (*waE2E.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	defer context.AfterFunc(in.staying, cancel)() //nolint:contextcheck // it ends ctx, which comes from elsewhere
	msg, err := message(ctx, in.client)
	if err != nil && in.staying.Err() != nil {
		err = errElsewhere // the new owner uploads it
	}
	return msg, err
}

// unlink unlinks the instance from its phone, and deletes its keys.
func (in *instance) unlink(ctx context.Context) error {
	return in.use(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		return in.client.Logout(ctx)
	})
}

// here says that the instance is linked and has not ended here.
func (in *instance) here() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.over:
		return errElsewhere
	case !in.linked.Load():
		return errNotPaired
	}
	return nil
}

// reconnect ends the connection and makes a new one.
func (in *instance) reconnect() {
	in.set("connecting", "restarted")
	in.g.later(func() {
		in.client.Disconnect()
		in.dial()
	})
}

// end waits for what is being sent and ends the client. It may be called more than once.
func (in *instance) end() {
	in.stay()
	in.sending.Lock()
	defer in.sending.Unlock()
	in.mu.Lock()
	in.over = true
	in.mu.Unlock()
	disconnected := make(chan struct{})
	go func() { // during a handshake the client is locked
		defer close(disconnected)
		in.client.Disconnect()
	}()
	select {
	case <-disconnected:
	case <-time.After(handshakeWait):
	}
	in.cancel() // not before: a handshake that is under way would wait for an answer that cannot come any more, for 20 seconds
	in.log.close()
	if in.pairing != nil {
		in.pairing.close()
	}
}

// state is what is told when the state changes.
type state struct {
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// set notes a state, unless the instance has ended: then it is somebody else's to say.
func (in *instance) set(name, detail string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.over {
		return
	}
	in.status.State, in.status.Detail, in.dirty = name, detail, true
	in.log.publish("state", state{name, detail})
}

// active notes that something was sent or received.
func (in *instance) active(what func(*status)) {
	in.mu.Lock()
	defer in.mu.Unlock()
	what(&in.status)
	in.status.Active, in.dirty = time.Now(), true
}

// changes is what the directory has not been told.
func (in *instance) changes() (status, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s, dirty := in.status, in.dirty
	in.status, in.dirty = status{State: s.State, Detail: s.Detail, Active: s.Active}, false
	return s, dirty
}

func (in *instance) state() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.status.State
}
