package pgstore

import (
	"bytes"
	"context"
	"strconv"

	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// PutIdentity implements [store.IdentityStore]. Storing the identity that is stored costs nothing: the client does so with every message.
func (s *deviceStore) PutIdentity(ctx context.Context, address string, key [32]byte) error {
	k := newKey(typeIdentity, address)
	if v, ok, err := s.get(ctx, k); err != nil {
		return err
	} else if old, ok := found[*bytesValue](v, ok); ok && bytes.Equal(old.Value, key[:]) {
		return nil
	}
	return s.put(ctx, patienceNone, k, &bytesValue{Value: key[:]})
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

// record reads a session or a sender key; nil if there is none. One that cannot be read counts as none: the client would
// otherwise leave that device out of every message for ever.
func (s *deviceStore) record(ctx context.Context, k cache.Key) ([]byte, error) {
	v, ok, err := s.get(ctx, k)
	if err != nil {
		return nil, err
	}
	rec, ok := found[*recordValue](v, ok)
	if !ok {
		return nil, nil
	}
	return s.readable(k, rec), nil
}

func (s *deviceStore) readable(k cache.Key, rec *recordValue) []byte {
	data, err := rec.bytes()
	if err != nil || !plausibleRecord(data) {
		s.c.cfg.Logger.Error("pgstore: record cannot be read, counts as absent", "instance", s.id, "key_type", typeName(k.Type))
		return nil
	}
	return bytes.Clone(data)
}

// plausibleRecord is a cheap check that a record is what libsignal serialises: a JSON object with something in it. (Parsing
// each would take longer than reading it.)
func plausibleRecord(data []byte) bool {
	return len(data) > 2 && data[0] == '{' && data[len(data)-1] == '}'
}

// GetSession implements [store.SessionStore].
func (s *deviceStore) GetSession(ctx context.Context, address string) ([]byte, error) {
	return s.record(ctx, newKey(typeSession, address))
}

// HasSession implements [store.SessionStore].
func (s *deviceStore) HasSession(ctx context.Context, address string) (bool, error) {
	session, err := s.GetSession(ctx, address)
	return session != nil, err
}

// GetManySessions implements [store.SessionStore]: an entry for every address, nil for those without a session.
func (s *deviceStore) GetManySessions(ctx context.Context, addresses []string) (map[string][]byte, error) {
	if len(addresses) == 0 {
		return nil, nil
	}
	sessions := make(map[string][]byte, len(addresses))
	err := s.read(ctx, func(v *view) error {
		for _, address := range addresses {
			k := newKey(typeSession, address)
			sessions[address] = nil
			stored, ok := v.Get(k)
			if rec, ok := found[*recordValue](stored, ok); ok {
				sessions[address] = s.readable(k, rec)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sessions, nil
}

// PutSession implements [store.SessionStore]. Outside of DoDecryptionTxn it may be a send (a
// retry answer, a message to our own phone): then it waits as [Config].Sends says.
func (s *deviceStore) PutSession(ctx context.Context, address string, session []byte) error {
	if len(session) == 0 {
		return invalid("session is empty")
	}
	k := newKey(typeSession, address)
	wait := patienceNone
	if s.c.cfg.Sends == Durable {
		old, err := s.GetSession(ctx, address)
		if err != nil {
			return err
		}
		if in, _ := s.instance(ctx); in.transactionOf(ctx) == nil && sendingAdvanced(old, session) {
			wait = patienceDurable
		}
	}
	return s.put(ctx, wait, k, newRecord(session))
}

// PutManySessions implements [store.SessionStore]. The client calls it when it has encrypted and before the message leaves.
func (s *deviceStore) PutManySessions(ctx context.Context, sessions map[string][]byte) error {
	for _, session := range sessions {
		if len(session) == 0 {
			return invalid("session is empty")
		}
	}
	return s.write(ctx, typeSession, s.sendPatience(), func(v *view) error {
		for address, session := range sessions {
			v.Put(newKey(typeSession, address), newRecord(session))
		}
		return nil
	})
}

func (s *deviceStore) sendPatience() patience {
	if s.c.cfg.Sends == Durable {
		return patienceDurable
	}
	return patienceNone
}

// sendingAdvanced says whether the sending counter of the current state grew. A new chain at
// counter 0 has not been used. What cannot be read counts as a send.
func sendingAdvanced(old, next []byte) bool {
	chain, counter, ok := sendingCounter(next)
	if !ok {
		return true
	}
	if oldChain, oldCounter, ok := sendingCounter(old); ok && bytes.Equal(chain, oldChain) {
		return counter > oldCounter
	}
	return counter > 0
}

// sendingCounter finds the name and the next counter of the current sending chain. libsignal writes its fields in one order and
// the current state first, so the first "SenderChain" is the one, and a search is far cheaper than parsing.
func sendingCounter(record []byte) (chain []byte, counter uint64, ok bool) {
	_, rest, ok := bytes.Cut(record, []byte(`"SenderChain":`))
	if !ok {
		return nil, 0, false
	}
	_, key, ok1 := bytes.Cut(rest, []byte(`"SenderRatchetKeyPublic":"`))
	chain, _, ok2 := bytes.Cut(key, []byte(`"`))
	_, index, ok3 := bytes.Cut(rest, []byte(`"Index":`))
	end := bytes.IndexAny(index, ",}")
	if !ok1 || !ok2 || !ok3 || end < 0 {
		return nil, 0, false
	}
	counter, err := strconv.ParseUint(string(index[:end]), 10, 64)
	return chain, counter, err == nil
}

// DeleteAllSessions implements [store.SessionStore]: of the addresses "phone:*", exactly.
func (s *deviceStore) DeleteAllSessions(ctx context.Context, phone string) error {
	return s.remove(ctx, typeSession, func(v *view) []string { return v.IDs(typeSession, escapeID(phone)+":") })
}

// DeleteSession implements [store.SessionStore].
func (s *deviceStore) DeleteSession(ctx context.Context, address string) error {
	return s.remove(ctx, typeSession, one(keyID(address)))
}

// MigratePNToLID implements [store.SessionStore]: sessions, identities and sender keys of the phone number's
// addresses become those of the LID, over what is there.
func (s *deviceStore) MigratePNToLID(ctx context.Context, pn, lid types.JID) error {
	in, err := s.instance(ctx)
	if err != nil {
		return err
	}
	from, to := pn.SignalAddressUser(), lid.SignalAddressUser()
	in.mu.Lock()
	done := in.mu.migrated[from] == to
	in.mu.Unlock()
	if done {
		return nil
	}
	moved := 0
	err = in.write(ctx, patienceNone, func(v *view) error {
		moved = 0
		for _, t := range []cache.Type{typeSession, typeIdentity} {
			for _, id := range v.IDs(t, escapeID(from)+":") {
				if value, ok := v.Get(cache.Key{Type: t, ID: id}); ok {
					v.Delete(cache.Key{Type: t, ID: id})
					v.Put(cache.Key{Type: t, ID: escapeID(to) + id[len(escapeID(from)):]}, value)
					moved++
				}
			}
		}
		for _, id := range v.IDs(typeSenderKey, escapeID(from)+":") {
			if value, ok := v.Get(cache.Key{Type: typeSenderKey, ID: id}); ok {
				v.Delete(cache.Key{Type: typeSenderKey, ID: id})
				v.Put(cache.Key{Type: typeSenderKey, ID: escapeID(to) + id[len(escapeID(from)):]}, value)
				moved++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	in.mu.Lock()
	in.mu.migrated[from] = to
	in.mu.Unlock()
	s.c.cfg.Logger.Debug("pgstore: migrated phone number to LID", "instance", s.id, "moved", moved)
	return nil
}

// senderKeyKey puts the sender first, so that a user's sender keys are found by prefix.
func senderKeyKey(group, user string) cache.Key { return newKey(typeSenderKey, user, group) }

// PutSenderKey implements [store.SenderKeyStore]. Our own is a send. One of somebody else that is new waits until
// it is durable, since the server forgets the message that brought it.
func (s *deviceStore) PutSenderKey(ctx context.Context, group, user string, session []byte) error {
	if len(session) == 0 {
		return invalid("sender key is empty")
	}
	k := senderKeyKey(group, user)
	wait := patienceNone
	if own, err := s.ownAddress(ctx, user); err != nil {
		return err
	} else if own {
		wait = s.sendPatience()
	} else if old, err := s.record(ctx, k); err != nil {
		return err
	} else if !bytes.Equal(senderKeyID(old), senderKeyID(session)) {
		wait = patienceOutage
	}
	return s.put(ctx, wait, k, newRecord(session))
}

// senderKeyID is the text of the current state's id, which changes when a new key was distributed.
func senderKeyID(record []byte) []byte {
	_, rest, _ := bytes.Cut(record, []byte(`"KeyID":`))
	end := bytes.IndexAny(rest, ",}")
	return rest[:max(end, 0)]
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
	return s.record(ctx, senderKeyKey(group, user))
}
