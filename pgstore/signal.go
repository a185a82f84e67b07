package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// PutIdentity implements [store.IdentityStore]. Storing the identity that is stored costs nothing: the client does so with every message.
func (s *deviceStore) PutIdentity(ctx context.Context, address string, key [32]byte) error {
	k := newKey(typeIdentity, address)
	if v, ok, err := s.get(ctx, k); err != nil && !errors.Is(err, ErrUnavailable) {
		return err
	} else if old, ok := found[*bytesValue](v, ok); ok && bytes.Equal(old.Value, key[:]) {
		return nil
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	return in.write(ctx, patienceNone, func(v *view) error {
		if !v.Has(k) {
			in.created(v, k)
		}
		v.Put(k, &bytesValue{Value: key[:]})
		return nil
	})
}

// DeleteAllIdentities implements [store.IdentityStore]: of the addresses "phone:*", exactly.
func (s *deviceStore) DeleteAllIdentities(ctx context.Context, phone string) error {
	return s.remove(ctx, typeIdentity, func(v *view) []string { return v.IDs(typeIdentity, escapeID(phone)+":") })
}

// DeleteIdentity implements [store.IdentityStore].
func (s *deviceStore) DeleteIdentity(ctx context.Context, address string) error {
	return s.remove(ctx, typeIdentity, one(keyID(address)))
}

// IsTrustedIdentity implements [store.IdentityStore]: an unknown identity is trusted.
func (s *deviceStore) IsTrustedIdentity(ctx context.Context, address string, key [32]byte) (bool, error) {
	v, ok, err := s.get(ctx, newKey(typeIdentity, address))
	if err != nil {
		return false, err
	}
	old, ok := found[*bytesValue](v, ok)
	return !ok || bytes.Equal(old.Value, key[:]), nil
}

// record reads a session or a sender key; nil if there is none.
func (s *deviceStore) record(ctx context.Context, k cache.Key) (*recordValue, error) {
	v, ok, err := s.get(ctx, k)
	if err != nil {
		return nil, err
	}
	rec, _ := found[*recordValue](v, ok)
	return rec, nil
}

// readable returns a copy of a record; nil for none. One that cannot be read counts as none and its row is set aside: the client would
// otherwise leave that device out of every message for ever.
func (s *deviceStore) readable(k cache.Key, rec *recordValue) []byte {
	if rec == nil {
		return nil
	}
	data, err := rec.bytes()
	if err != nil {
		if rec.aside.CompareAndSwap(false, true) {
			s.c.background(func(ctx context.Context) { s.setAside(ctx, k, rec) })
		}
		return nil
	}
	return bytes.Clone(data)
}

// forSends is readable for who may send with it: a session whose sending chain is abandoned is absent, so that the client fetches a bundle.
func (s *deviceStore) forSends(k cache.Key, rec *recordValue) []byte {
	if data := s.readable(k, rec); data != nil && rec.sendable() {
		return data
	}
	return nil
}

// handOut is what a reader of one record gets, who may put what he makes of it.
func (s *deviceStore) handOut(ctx context.Context, k cache.Key) (record []byte, err error) {
	in, err := s.instance(ctx)
	if err != nil {
		return nil, err
	}
	r, get := new(reader), s.readable
	if in.transactionOf(ctx) == nil {
		r, get = in.newReader([]cache.Key{k}, false), s.forSends
		if k.Type == typeSession {
			in.takeTurn(ctx, r, []cache.Key{k})
		}
	}
	err = in.giveRecords(ctx, r, []cache.Key{k}, func(k cache.Key, rec *recordValue) *recordValue {
		if record = get(k, rec); record == nil {
			return nil
		}
		return rec
	})
	if err != nil {
		in.forget(r)
		return nil, err
	}
	return record, nil
}

// setAside moves a record that cannot be read to where a person can look at it, unless it was replaced meanwhile.
func (s *deviceStore) setAside(ctx context.Context, k cache.Key, rec *recordValue) {
	if in, err := s.instance(ctx); err == nil {
		in.setAside(ctx, k, rec)
	}
}

// setAside is as that of a device's store.
func (in *instance) setAside(ctx context.Context, k cache.Key, rec *recordValue) {
	row := corruptRow{key: k, data: rec.form.Load().json, seq: rec.seq}
	err := in.c.moveAside(ctx, in, row)
	if err == nil {
		err = in.write(ctx, patienceNone, func(v *view) error {
			stored, ok := v.Get(k)
			if now, ok := found[*recordValue](stored, ok); ok && bytes.Equal(now.form.Load().json, row.data) {
				v.Delete(k) // in memory; the row is gone
			}
			return nil
		})
	}
	if err != nil {
		rec.aside.Store(false) // the next reader tries again
		in.c.cfg.Logger.Warn("pgstore: record not set aside", "instance", in.id, "error", err)
	}
}

// GetSession implements [store.SessionStore].
func (s *deviceStore) GetSession(ctx context.Context, address string) ([]byte, error) {
	return s.handOut(ctx, newKey(typeSession, address))
}

// HasSession implements [store.SessionStore].
func (s *deviceStore) HasSession(ctx context.Context, address string) (bool, error) {
	k := newKey(typeSession, address)
	rec, err := s.record(ctx, k)
	if in := s.in.Load(); in != nil && in.transactionOf(ctx) != nil {
		return s.readable(k, rec) != nil, err
	}
	return s.forSends(k, rec) != nil, err
}

// GetManySessions implements [store.SessionStore]: an entry for every address, nil for those without a session.
func (s *deviceStore) GetManySessions(ctx context.Context, addresses []string) (map[string][]byte, error) {
	if len(addresses) == 0 {
		return nil, nil
	}
	in, err := s.instance(ctx)
	if err != nil {
		return nil, err
	}
	keys, names := make([]cache.Key, len(addresses)), make(map[cache.Key]string, len(addresses))
	for i, address := range addresses {
		keys[i] = newKey(typeSession, address)
		names[keys[i]] = address
	}
	r := new(reader)
	if in.transactionOf(ctx) == nil {
		r = in.newReader(keys, true)
		in.takeTurn(ctx, r, keys)
	}
	sessions := make(map[string][]byte, len(addresses))
	abandoned := false
	err = in.giveRecords(ctx, r, keys, func(k cache.Key, rec *recordValue) *recordValue {
		record := s.forSends(k, rec)
		sessions[names[k]] = record
		if record == nil {
			abandoned = abandoned || rec != nil
			return nil
		}
		return rec
	})
	if err == nil && abandoned { // the client asks for their bundles now
		waiting := s.c.waits(WaitBundles, s.id)
		err = s.c.bundles.Wait(ctx)
		waiting.over(err)
		if err != nil {
			err = in.failed(fmt.Errorf("%w: %w", ErrUnavailable, err))
		}
	}
	if err != nil {
		in.forget(r)
		return nil, err
	}
	return sessions, nil
}

// PutSession implements [store.SessionStore]. Outside of DoDecryptionTxn it may be a send (a retry answer, a message to our own phone): then it
// waits as [Config].Sends says, and if another send has used its message key meanwhile it is [ErrMessageKeyUsed], and nothing is stored.
func (s *deviceStore) PutSession(ctx context.Context, address string, session []byte) error {
	if len(session) == 0 {
		return invalid("session is empty")
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	k, put := newKey(typeSession, address), newRecord(session)
	from := in.sourceOf(ctx, k, put, true)
	defer from.done()
	return in.putRecords(ctx, patienceNone, from, keyed{k, put})
}

// sameSendingChain says whether neither chain nor counter changed: with the rest, the session of a decrypt.
func sameSendingChain(old, next *recordValue) bool {
	now, ok := next.ratchet()
	before, oldOK := old.ratchet()
	return ok && oldOK && now.counter == before.counter && now.sameChain(before)
}

// sendingAdvanced says whether the sending counter of the current state grew. A new chain at
// counter 0 has not been used. What cannot be read counts as a send.
func sendingAdvanced(old, next *recordValue) bool {
	now, ok := next.ratchet()
	if !ok {
		return true
	}
	if before, ok := old.ratchet(); ok && now.sameChain(before) {
		return now.counter > before.counter
	}
	return now.counter > 0
}

// warnUnbuffered says once that a decryption came outside of DoDecryptionTxn although DurableAcks is on.
func (in *instance) warnUnbuffered() {
	if in.c.cfg.DurableAcks && in.unbuffered.CompareAndSwap(false, true) {
		in.c.cfg.Logger.Warn("pgstore: DurableAcks has no effect: set EnableDecryptedEventBuffer on the client", "instance", in.id)
	}
}

// PutManySessions implements [store.SessionStore]. The client calls it when it has encrypted and before the message leaves. If
// another send has used the message key of one session meanwhile, it is [ErrMessageKeyUsed], and none of them is stored.
func (s *deviceStore) PutManySessions(ctx context.Context, sessions map[string][]byte) error {
	records := make([]keyed, 0, len(sessions))
	for address, session := range sessions {
		if len(session) == 0 {
			return invalid("session is empty")
		}
		records = append(records, keyed{newKey(typeSession, address), newRecord(session)})
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	from := source{by: writerSend, done: func() {}}
	if r := in.whoReadMany(records); r != nil && in.transactionOf(ctx) == nil {
		from.held = &r.held
		from.done = func() {
			in.endTurns(r)
			in.forget(r)
		}
	}
	defer from.done()
	return in.putRecords(ctx, patienceNone, from, records...)
}

// DeleteAllSessions implements [store.SessionStore]: of the addresses "phone:*", exactly.
func (s *deviceStore) DeleteAllSessions(ctx context.Context, phone string) error {
	return s.removeSessions(ctx, func(v *view) []string { return v.IDs(typeSession, escapeID(phone)+":") })
}

// DeleteSession implements [store.SessionStore].
func (s *deviceStore) DeleteSession(ctx context.Context, address string) error {
	return s.removeSessions(ctx, one(keyID(address)))
}

// removeSessions deletes sessions. A send that still holds one does not bring it back.
func (s *deviceStore) removeSessions(ctx context.Context, ids func(*view) []string) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	tx := in.transactionOf(ctx)
	return in.write(ctx, patienceNone, func(v *view) error {
		for _, id := range ids(v) {
			k := cache.Key{Type: typeSession, ID: id}
			if err := in.removeRecord(v, k, cache.Key{}); err != nil {
				return err
			}
			if tx != nil {
				tx.remove(k, cache.Key{})
			}
		}
		return nil
	})
}

// MigratePNToLID implements [store.SessionStore]: sessions, identities and sender keys of the phone number's
// addresses become those of the LID, over what is there; of a session that both have, no chain goes back. A
// send that holds one of them across the move is forwarded.
func (s *deviceStore) MigratePNToLID(ctx context.Context, pn, lid types.JID) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	from, to := escapeID(pn.SignalAddressUser()), escapeID(lid.SignalAddressUser())
	in.mu.Lock()
	done := in.mu.migrated[from] == to
	in.mu.Unlock()
	if done {
		return nil
	}
	tx := in.transactionOf(ctx)
	migrated := func() { // not for one that is open: it may still be rolled back
		in.mu.Lock()
		defer in.mu.Unlock()
		in.mu.migrated[from] = to
	}
	// Nearly always there is nothing to move: then a reader's lock is enough.
	there := 0
	err = in.read(ctx, func(v *view) error {
		if there = len(addressesOf(v, from)); there == 0 && tx == nil {
			v.Then(migrated)
		}
		return nil
	})
	if err != nil || there == 0 {
		return err
	}
	err = in.write(ctx, patienceNone, func(v *view) error {
		for _, k := range addressesOf(v, from) {
			target := cache.Key{Type: k.Type, ID: to + k.ID[len(from):]}
			if err := in.move(v, k, target); err != nil {
				return err
			}
			if tx != nil && isRecordType(k.Type) {
				tx.remove(k, target)
			}
		}
		v.Then(migrated)
		return nil
	})
	if err == nil {
		s.c.cfg.Logger.Debug("pgstore: migrated phone number to LID", "instance", s.id, "moved", there)
	}
	return err
}

// addressesOf lists what is stored for the addresses of a Signal user, given escaped.
func addressesOf(v *view, user string) (found []cache.Key) {
	for _, t := range []cache.Type{typeSession, typeIdentity, typeSenderKey} {
		for _, id := range v.IDs(t, user+":") {
			found = append(found, cache.Key{Type: t, ID: id})
		}
	}
	return found
}

// senderKeyKey puts the sender first, so that a user's sender keys are found by prefix.
func senderKeyKey(group, user string) cache.Key { return newKey(typeSenderKey, user, group) }

// PutSenderKey implements [store.SenderKeyStore]. Our own is a send. One of somebody else that is new waits until
// it is durable, since the server forgets the message that brought it.
func (s *deviceStore) PutSenderKey(ctx context.Context, group, user string, session []byte) error {
	if len(session) == 0 {
		return invalid("sender key is empty")
	}
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	own, err := s.ownAddress(ctx, user)
	if err != nil {
		return err
	}
	k, put := senderKeyKey(group, user), newRecord(session)
	from := in.sourceOf(ctx, k, put, own)
	defer from.done()
	wait := patienceNone
	if own {
		from.by = writerSend
	} else if old, err := s.record(ctx, k); err != nil || !sameSenderKeyID(old, session) {
		wait = patienceOutage
	}
	return in.putRecords(ctx, wait, from, keyed{k, put})
}

// sameSenderKeyID says whether no new key was distributed.
func sameSenderKeyID(old *recordValue, next []byte) bool {
	if old == nil {
		return false
	}
	data, ok := old.read()
	return ok && bytes.Equal(senderKeyID(data), senderKeyID(next))
}

// ownAddress says whether a Signal address is this device's, as phone number or as LID.
func (s *deviceStore) ownAddress(ctx context.Context, address string) (bool, error) {
	if address == s.jid.SignalAddress().String() {
		return true, nil
	}
	v, ok, err := s.get(ctx, deviceKey)
	creds, ok := found[*credsValue](v, ok)
	if err != nil || !ok || creds.Device.LID == "" {
		return false, err
	}
	lid, err := types.ParseJID(string(creds.Device.LID))
	return err == nil && address == lid.SignalAddress().String(), nil
}

// GetSenderKey implements [store.SenderKeyStore].
func (s *deviceStore) GetSenderKey(ctx context.Context, group, user string) ([]byte, error) {
	return s.handOut(ctx, senderKeyKey(group, user))
}
