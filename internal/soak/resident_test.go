package soak

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// resident is one instance with what its store has to answer, and somebody it talks to.
type resident struct {
	rng    *rand.Rand
	device *store.Device
	ours   *signaltest.Peer
	theirs *signaltest.Peer
	model  model
	events int // buffered so far
}

// maxEvents ends what grows: hashes of events stay for 14 days.
const maxEvents = 10

// model is what was put, by the name of what it is.
type model struct {
	sessions, senderKeys, secrets, names, tokens, macs map[string]string
	events, outgoing                                   map[string]string // the plaintext; of an event that was handled, nothing
	syncKeys                                           map[string]string
	syncKeyTimes                                       map[string]int64
	salt                                               string // nothing if there is none
	version                                            uint64
	preKeys                                            []uint32
}

func newModel() model {
	return model{
		sessions: map[string]string{}, senderKeys: map[string]string{}, secrets: map[string]string{}, names: map[string]string{},
		tokens: map[string]string{}, macs: map[string]string{}, events: map[string]string{}, outgoing: map[string]string{},
		syncKeys: map[string]string{}, syncKeyTimes: map[string]int64{},
	}
}

// step is one thing that a client may do. It says what was not as it should be.
type step struct {
	name string
	do   func(ctx context.Context, c *pgstore.Container, r *resident) error
}

// steps are drawn with equal chances.
var steps = []step{
	{"receive", receive},
	{"receive", receive},
	{"send", send},
	{"send", send},
	{"sessions", sessions},
	{"ended context", endedContext},
	{"sender key", senderKey},
	{"secret", secret},
	{"name", name},
	{"token", token},
	{"transaction", transaction},
	{acknowledged, acknowledge},
	{"outgoing event", outgoingEvent},
	{"sync key", syncKey},
	{"NCT salt", nctSalt},
	{"rollback", rollback(func() error { return errRollback })},
	{"panic", rollback(func() error { panic(errRollback) })},
	{"patch", patch},
	{"pre-key", preKey},
	{"LID", lidPair},
	{"look", look},
	{"megabyte", megabyte},
	{"mistake", mistake},
	{"read", func(ctx context.Context, _ *pgstore.Container, r *resident) error { return r.check(ctx) }},
}

// pairAnew makes a new device and lets it meet somebody.
func (r *resident) pairAnew(ctx context.Context, c *pgstore.Container) error {
	d := c.NewDevice()
	signaltest.FillPairing(d)
	if err := d.Save(ctx); err != nil {
		return err
	}
	r.device, r.ours, r.model, r.events = d, signaltest.NewPeer(d), newModel(), 0
	r.theirs = signaltest.NewPeer(signaltest.NewMemoryDevice(c.NewDevice()))
	first, err := r.theirs.Meet(ctx, r.ours, []byte("hello"))
	if err != nil {
		return err
	}
	if _, err = r.ours.Receive(ctx, r.theirs.Address(), first); err != nil {
		return err
	}
	return send(ctx, c, r)
}

// comeBack opens the same device on another container.
func (r *resident) comeBack(ctx context.Context, c *pgstore.Container) error {
	d, err := c.GetDevice(ctx, *r.device.ID)
	if err != nil {
		return err
	}
	if d == nil {
		return fmt.Errorf("device is gone")
	}
	r.device, r.ours = d, signaltest.NewPeer(d)
	return nil
}

func receive(ctx context.Context, _ *pgstore.Container, r *resident) error {
	want := r.text()
	sent, err := r.theirs.Send(ctx, []types.JID{r.ours.Address()}, []byte(want))
	if err != nil {
		return err
	}
	got, err := r.ours.Receive(ctx, r.theirs.Address(), sent[r.ours.Address()])
	return same(want, string(got), err)
}

func send(ctx context.Context, _ *pgstore.Container, r *resident) error {
	want := r.text()
	sent, err := r.ours.Send(ctx, []types.JID{r.theirs.Address()}, []byte(want))
	if err != nil {
		return err
	}
	got, err := r.theirs.Receive(ctx, r.ours.Address(), sent[r.theirs.Address()])
	return same(want, string(got), err)
}

func sessions(ctx context.Context, _ *pgstore.Container, r *resident) error {
	address, other := r.pick("abcdef")+":1", r.pick("abcdef")+":1"
	if r.rng.IntN(4) == 0 {
		delete(r.model.sessions, address)
		return r.device.Sessions.DeleteSession(ctx, address)
	}
	// Not records of libsignal, so nobody can tell a counter in them: they are replaced and not merged.
	r.model.sessions[address], r.model.sessions[other] = r.text(), r.text()
	many := map[string][]byte{address: []byte(r.model.sessions[address]), other: []byte(r.model.sessions[other])}
	return r.device.Sessions.PutManySessions(ctx, many)
}

// endedContext puts with a context that has ended: the caller is told, and what was put is kept.
func endedContext(ctx context.Context, _ *pgstore.Container, r *resident) error {
	address, value := r.pick("abcdef")+":1", r.text()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.device.Sessions.PutSession(ended, address, []byte(value)); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	got, err := r.device.Sessions.GetSession(ctx, address)
	if err == nil && string(got) != value && string(got) != r.model.sessions[address] { // the old one, if the backlog was full
		return fmt.Errorf("session is neither the old one nor the new one")
	}
	if got != nil {
		r.model.sessions[address] = string(got)
	}
	return err
}

func senderKey(ctx context.Context, _ *pgstore.Container, r *resident) error {
	group := r.pick("ghi")
	r.model.senderKeys[group] = r.text()
	return r.device.SenderKeys.PutSenderKey(ctx, group, "somebody:0", []byte(r.model.senderKeys[group]))
}

func secret(ctx context.Context, _ *pgstore.Container, r *resident) error {
	id := r.pick("ABCDEFGHIJKLMNOP")
	value := r.text()
	if _, known := r.model.secrets[id]; !known { // the first one counts
		r.model.secrets[id] = value
	}
	return r.device.MsgSecrets.PutMessageSecret(ctx, *r.device.ID, *r.device.ID, id, []byte(value))
}

func name(ctx context.Context, _ *pgstore.Container, r *resident) error {
	who := r.pick("123456789")
	was := r.model.names[who]
	r.model.names[who] = r.text()
	changed, previous, err := r.device.Contacts.PutPushName(ctx, types.NewJID(who, types.DefaultUserServer), r.model.names[who])
	if err == nil && (!changed || previous != was) {
		err = fmt.Errorf("changed is %t, previous %q, want %q", changed, previous, was)
	}
	return err
}

func token(ctx context.Context, _ *pgstore.Container, r *resident) error {
	who := r.pick("123456789")
	r.model.tokens[who] = r.text()
	return r.device.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{
		User: types.NewJID(who, types.DefaultUserServer), Token: []byte(r.model.tokens[who]), Timestamp: time.Now(),
	})
}

// transaction is a group of several types.
func transaction(ctx context.Context, c *pgstore.Container, r *resident) error {
	return r.device.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
		for _, part := range []func(context.Context, *pgstore.Container, *resident) error{sessions, senderKey, name} {
			if err := part(ctx, c, r); err != nil {
				return err
			}
		}
		if r.events == maxEvents {
			return nil
		}
		r.events++
		hash := eventHash(r.events)
		r.model.events[string(hash[:])] = r.text()
		return r.device.EventBuffer.PutBufferedEvent(ctx, hash, []byte(r.model.events[string(hash[:])]), time.Now())
	})
}

func eventHash(n int) (hash [32]byte) {
	binary.BigEndian.PutUint64(hash[:], uint64(n))
	return hash
}

// acknowledge forgets what an event said, as the client does when the event was handled. It may be one that was never buffered.
func acknowledge(ctx context.Context, _ *pgstore.Container, r *resident) error {
	hash := eventHash(r.rng.IntN(r.events + 1))
	if _, known := r.model.events[string(hash[:])]; known {
		r.model.events[string(hash[:])] = ""
	}
	return r.device.EventBuffer.ClearBufferedEventPlaintext(ctx, hash)
}

// outgoingEvent keeps a message for those who ask for it again, and asks for old ones to be deleted, of which there are none.
func outgoingEvent(ctx context.Context, _ *pgstore.Container, r *resident) error {
	id := r.pick("ABCDEFGHIJKLMNOP")
	r.model.outgoing[id] = r.text()
	if err := r.device.EventBuffer.AddOutgoingEvent(ctx, r.device.ID.ToNonAD(), id, "wa", []byte(r.model.outgoing[id])); err != nil {
		return err
	}
	return r.device.EventBuffer.DeleteOldOutgoingEvents(ctx)
}

// syncKey puts an app-state sync key, which replaces one that is older.
func syncKey(ctx context.Context, _ *pgstore.Container, r *resident) error {
	id, value, at := r.pick("xyz"), r.text(), 1+r.rng.Int64N(1000)
	if at > r.model.syncKeyTimes[id] {
		r.model.syncKeys[id], r.model.syncKeyTimes[id] = value, at
	}
	return r.device.AppStateKeys.PutAppStateSyncKey(ctx, []byte(id), store.AppStateSyncKey{Data: []byte(value), Fingerprint: []byte{1}, Timestamp: at})
}

func nctSalt(ctx context.Context, _ *pgstore.Container, r *resident) error {
	if r.rng.IntN(4) == 0 {
		r.model.salt = ""
		return r.device.NCTSalt.DeleteNCTSalt(ctx)
	}
	r.model.salt = r.text()
	return r.device.NCTSalt.PutNCTSalt(ctx, []byte(r.model.salt))
}

var errRollback = fmt.Errorf("rolled back")

// rollback is a transaction that fails or panics after its last write: nothing in it happened.
func rollback(end func() error) func(context.Context, *pgstore.Container, *resident) error {
	return func(ctx context.Context, c *pgstore.Container, r *resident) error {
		before, events := r.model, r.events
		r.model = before.clone()
		err := recovered(func() error {
			return r.device.EventBuffer.DoDecryptionTxn(ctx, func(ctx context.Context) error {
				if err := sessions(ctx, c, r); err != nil {
					return err
				}
				if err := name(ctx, c, r); err != nil {
					return err
				}
				return end()
			})
		})
		r.model, r.events = before, events
		if err != errRollback { //nolint:errorlint // it comes back as it was
			return fmt.Errorf("rollback: %w", err)
		}
		return nil
	}
}

// recovered returns what f returns, or the error that it panics with.
func recovered(f func() error) (err error) {
	defer func() {
		if e, ok := recover().(error); ok {
			err = e
		}
	}()
	return f()
}

func (m model) clone() model {
	for _, of := range []*map[string]string{&m.sessions, &m.senderKeys, &m.secrets, &m.names, &m.tokens, &m.macs, &m.events, &m.outgoing, &m.syncKeys} {
		*of = maps.Clone(*of)
	}
	m.syncKeyTimes, m.preKeys = maps.Clone(m.syncKeyTimes), slices.Clone(m.preKeys)
	return m
}

// macIndex has the length that it has to have.
func macIndex(name string) []byte { return bytes.Repeat([]byte(name[:1]), 32) }

// patch is an app-state patch in its three calls.
func patch(ctx context.Context, _ *pgstore.Container, r *resident) error {
	r.model.version++
	gone, put := r.pick("0123456789"), r.pick("0123456789")
	delete(r.model.macs, gone)
	value := [32]byte{}
	binary.BigEndian.PutUint64(value[:], r.rng.Uint64())
	r.model.macs[put] = string(value[:])
	if err := r.device.AppState.PutAppStateVersion(ctx, "regular", r.model.version, [128]byte{byte(r.model.version)}); err != nil {
		return err
	}
	if err := r.device.AppState.DeleteAppStateMutationMACs(ctx, "regular", [][]byte{macIndex(gone)}); err != nil {
		return err
	}
	return r.device.AppState.PutAppStateMutationMACs(ctx, "regular", r.model.version, []store.AppStateMutationMAC{{IndexMAC: macIndex(put), ValueMAC: value[:]}})
}

func preKey(ctx context.Context, _ *pgstore.Container, r *resident) error {
	if len(r.model.preKeys) > 5 {
		id := r.model.preKeys[0]
		r.model.preKeys = r.model.preKeys[1:]
		if err := r.device.PreKeys.RemovePreKey(ctx, id); err != nil {
			return err
		}
		key, err := r.device.PreKeys.GetPreKey(ctx, id)
		if err == nil && key != nil {
			err = fmt.Errorf("removed key is there")
		}
		return err
	}
	key, err := r.device.PreKeys.GenOnePreKey(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(r.model.preKeys, key.KeyID) {
		return fmt.Errorf("id %d came back", key.KeyID)
	}
	r.model.preKeys = append(r.model.preKeys, key.KeyID)
	return nil
}

func lidPair(ctx context.Context, c *pgstore.Container, r *resident) error {
	pn, lid := *r.theirs.Device.ID, r.theirs.Address()
	if err := c.LIDMap.PutLIDMapping(ctx, lid, pn); err != nil {
		return err
	}
	got, err := c.LIDMap.GetPNForLID(ctx, lid)
	return same(pn.String(), got.String(), err)
}

// look lists all devices and looks at this one, which takes nothing.
func look(ctx context.Context, c *pgstore.Container, r *resident) error {
	if r.rng.IntN(20) > 0 {
		return nil
	}
	all, err := c.GetAllDevices(ctx)
	if err == nil && !slices.ContainsFunc(all, func(d *store.Device) bool { return *d.ID == *r.device.ID }) {
		err = fmt.Errorf("not among all %d devices", len(all))
	}
	return err
}

// leave deletes the device: what is left of it answers so.
func (r *resident) leave(ctx context.Context) error {
	sessions := r.device.Sessions
	if err := r.device.Delete(ctx); err != nil {
		return err
	}
	if err := sessions.PutSession(ctx, "a:1", []byte("x")); err == nil {
		return fmt.Errorf("a deleted device stores")
	}
	return nil
}
