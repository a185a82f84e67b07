package pgstore

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"

	"go.mau.fi/libsignal/keys/message"
	"go.mau.fi/libsignal/state/record"
	"go.mau.fi/whatsmeow/store"
)

// Merging two sessions that were made of one, S (stored) and W (written): the result is what the two writers could have left had they run
// one after the other, and no key that left is ever ahead of it. Nothing but the two is needed, for each tells what it knew of the other.
//
// A record has states, current and archived; a state is named by its base key. Of one state in both:
//
//   - The sending chain, with its root key, is W's if W has a receiving chain that S has not: then W stepped the ratchet, and previousCounter is
//     what S had reached on the old one. Else S's, which may have been sent on: W is older, or both stepped at once.
//   - A sending chain that both have is as far as either has it. One that only a send still had goes into S's previousCounter.
//   - Receiving chains are joined. A message key below a chain's index that a record does not hold was used in it, so the result has a
//     skipped key only if neither has used it.
//   - An answer that one has received ends the pending pre-key.
//
// Which state is current: one that only W knows is a new session, and S's states go under it. One that W's writer did not know (it is
// not in W) came in meanwhile and stays. Otherwise a decrypt promotes the state that it used, and a send moves nothing. States that a decrypt
// did not use are S's: an attempt to decrypt with a state leaves a needless ratchet step in it.

// Limits of libsignal (state/record/SessionState.go and SessionRecord.go).
const (
	maxReceiverChains = 5
	maxSkippedKeys    = 2000
	maxArchivedStates = 40
)

// errUnreadable says that a record is none that libsignal could use.
var errUnreadable = errors.New("pgstore: record cannot be read")

type (
	sessionRecord = record.SessionStructure
	sessionState  = record.StateStructure
	chainState    = record.ChainStructure
)

// parseSession reads a session that has all its parts.
func parseSession(data []byte) (*sessionRecord, error) {
	parsed := new(sessionRecord)
	if json.Unmarshal(data, parsed) != nil {
		return nil, errUnreadable
	}
	for _, st := range statesOf(parsed) {
		if st == nil {
			return nil, errUnreadable
		}
		for _, c := range append([]*chainState{st.SenderChain}, st.ReceiverChains...) {
			if c == nil || c.ChainKey == nil || slices.Contains(c.MessageKeys, nil) {
				return nil, errUnreadable
			}
		}
	}
	return parsed, nil
}

// encodeSession writes a session as libsignal does, so that what it makes of this differs in nothing but what it changed.
func encodeSession(r *sessionRecord) (encoded []byte, err error) {
	defer func() {
		if recover() != nil { // libsignal does on keys of the wrong length
			encoded, err = nil, errUnreadable
		}
	}()
	session, err := record.NewSessionFromStructure(r, store.SignalProtobufSerializer.Session, store.SignalProtobufSerializer.State)
	if err != nil {
		return nil, errUnreadable
	}
	return session.Serialize(), nil
}

func statesOf(r *sessionRecord) []*sessionState {
	return append([]*sessionState{r.SessionState}, r.PreviousStates...)
}

// sameState says whether two states are versions of one session.
func sameState(a, b *sessionState) bool {
	return a.SessionVersion == b.SessionVersion && bytes.Equal(a.SenderBaseKey, b.SenderBaseKey)
}

// find returns a record's version of a state: the current one if it is, else the newest archived one.
func find(r *sessionRecord, st *sessionState) *sessionState {
	if r == nil {
		return nil
	}
	for _, candidate := range statesOf(r) {
		if sameState(candidate, st) {
			return candidate
		}
	}
	return nil
}

func sameChain(a, b *chainState) bool {
	return bytes.Equal(a.SenderRatchetKeyPublic, b.SenderRatchetKeyPublic)
}

// mergeSessions merges what is written into what is stored.
func mergeSessions(stored, written *sessionRecord, from source, before *past) (*sessionRecord, error) {
	used := written.SessionState
	theirs := find(stored, used)
	if from.by == writerSend {
		if err := unused(stored, theirs, used.SenderChain, from, before); err != nil {
			return nil, err
		}
	}
	switch {
	case theirs == nil:
		return raised(newOnTop(stored, written), stored, written), nil
	case from.by == writerSend:
		return raised(sent(stored, theirs, used, before), stored, written), nil
	default:
		return raised(received(stored, theirs, written, from.by, before), stored, written), nil
	}
}

// unused refuses a send whose message key another writer has used, or of whose chain nobody knows how far it has got.
func unused(stored *sessionRecord, theirs *sessionState, chain *chainState, from source, before *past) error {
	counter := uint64(chain.ChainKey.Index)
	if counter == 0 {
		return nil // nothing was sent on it
	}
	reached, known := before.reached(fingerprint(ratchetKeyText(chain)))
	if from.moved {
		reached, known = max(reached, from.reached), true
	}
	for _, st := range statesOf(stored) {
		if sameChain(st.SenderChain, chain) {
			reached, known = max(reached, uint64(st.SenderChain.ChainKey.Index)), true
		}
	}
	steppedOver := !known && theirs != nil && !from.began.IsZero()
	if known && reached >= counter || steppedOver {
		return ErrMessageKeyUsed
	}
	return nil
}

// ratchetKeyText is a chain's ratchet key as it stands in a record.
func ratchetKeyText(c *chainState) []byte {
	return base64.StdEncoding.AppendEncode(nil, c.SenderRatchetKeyPublic)
}

// sendingChains says how far the sending chains of a record have got, by their ratchet keys as they stand in it.
func sendingChains(r *sessionRecord) map[string]uint64 {
	chains := make(map[string]uint64)
	for _, st := range statesOf(r) {
		key := string(ratchetKeyText(st.SenderChain))
		chains[key] = max(chains[key], uint64(st.SenderChain.ChainKey.Index))
	}
	return chains
}

// newOnTop is a session that only the written record knows, with all that is stored beneath it.
func newOnTop(stored, written *sessionRecord) *sessionRecord {
	out := &sessionRecord{SessionState: written.SessionState, PreviousStates: statesOf(stored)}
	return withArchived(out, written)
}

// withArchived adds the archived states of a record that another does not have.
func withArchived(out, other *sessionRecord) *sessionRecord {
	for _, st := range other.PreviousStates {
		if find(out, st) == nil {
			out.PreviousStates = append(out.PreviousStates, st)
		}
	}
	return limited(out)
}

// sent is what is stored, and has sent a message on theirs.
func sent(stored *sessionRecord, theirs, used *sessionState, before *past) *sessionRecord {
	if !sameChain(theirs.SenderChain, used.SenderChain) && before != nil && before.chain == fingerprint(ratchetKeyText(used.SenderChain)) {
		theirs.PreviousCounter = max(theirs.PreviousCounter, lastSent(used.SenderChain)) // the ratchet was stepped meanwhile
	}
	return stored // raised sets the chain key
}

// lastSent is a chain's previousCounter: that of its last message, and 0 if there is none.
func lastSent(c *chainState) uint32 { return max(c.ChainKey.Index, 1) - 1 }

// received is what is stored, with the state that a decrypt used, or that was moved here, as that left it.
func received(stored *sessionRecord, theirs *sessionState, written *sessionRecord, by writer, before *past) *sessionRecord {
	used := written.SessionState
	merged := *used
	merged.ReceiverChains = joined(theirs.ReceiverChains, used.ReceiverChains, sameChain, mergeReceiverChain)
	merged.ReceiverChains = merged.ReceiverChains[max(0, len(merged.ReceiverChains)-maxReceiverChains):]
	if theirs.PendingPreKey == nil {
		merged.PendingPreKey = nil
	}
	_, passed := before.reached(fingerprint(ratchetKeyText(used.SenderChain)))
	switch {
	case !passed && stepped(theirs, used):
		merged.PreviousCounter = lastSent(theirs.SenderChain)
	default:
		merged.SenderChain, merged.RootKey, merged.PreviousCounter = theirs.SenderChain, theirs.RootKey, theirs.PreviousCounter
	}
	out := &sessionRecord{SessionState: stored.SessionState}
	current := stored.SessionState == theirs
	stays := !current && find(written, stored.SessionState) == nil
	switch {
	case current:
		out.SessionState = &merged
	case !stays:
		out.SessionState, out.PreviousStates = &merged, []*sessionState{stored.SessionState}
	}
	for _, st := range stored.PreviousStates {
		switch {
		case st != theirs:
			out.PreviousStates = append(out.PreviousStates, st)
		case stays:
			out.PreviousStates = append(out.PreviousStates, &merged)
		}
	}
	if by == writerMigration {
		return withArchived(out, written)
	}
	return limited(out)
}

// stepped says whether the ratchet of a state was stepped in b and not in a: b's newest receiving chain is new to a.
func stepped(a, b *sessionState) bool {
	return len(b.ReceiverChains) > 0 && !sameChain(a.SenderChain, b.SenderChain) &&
		!slices.ContainsFunc(a.ReceiverChains, func(c *chainState) bool { return sameChain(c, b.ReceiverChains[len(b.ReceiverChains)-1]) })
}

// raised moves every sending chain of the result to the furthest that the two records have it at.
func raised(out *sessionRecord, records ...*sessionRecord) *sessionRecord {
	for _, st := range statesOf(out) {
		for _, r := range records {
			for _, other := range statesOf(r) {
				if sameChain(st.SenderChain, other.SenderChain) && other.SenderChain.ChainKey.Index > st.SenderChain.ChainKey.Index {
					st.SenderChain = other.SenderChain
				}
			}
		}
	}
	return out
}

// limited drops what libsignal would: states beyond its limit, and those that a promotion has left twice.
func limited(r *sessionRecord) *sessionRecord {
	archived := r.PreviousStates
	r.PreviousStates = nil
	for _, st := range archived {
		if find(r, st) == nil {
			r.PreviousStates = append(r.PreviousStates, st)
		}
	}
	r.PreviousStates = r.PreviousStates[:min(len(r.PreviousStates), maxArchivedStates)]
	return r
}

// joined merges two versions of a list, oldest first, whose elements come and go at its ends: what both have is merged, and what one has is kept in
// its place.
func joined[T any](stored, written []T, same func(a, b T) bool, merge func(stored, written T) T) []T {
	in := func(list []T, x T) int { return slices.IndexFunc(list, func(y T) bool { return same(x, y) }) }
	common := 0 // what is written before this is older than all that is stored
	for i, w := range written {
		if in(stored, w) >= 0 {
			common = i
		}
	}
	var out []T
	for _, w := range written[:common] {
		if in(stored, w) < 0 {
			out = append(out, w)
		}
	}
	for _, s := range stored {
		if at := in(written, s); at >= 0 {
			s = merge(s, written[at])
		}
		out = append(out, s)
	}
	for _, w := range written[common:] {
		if in(stored, w) < 0 {
			out = append(out, w)
		}
	}
	return out
}

// mergeReceiverChain is the further of two versions of a receiving chain, with the skipped keys that neither has used.
func mergeReceiverChain(a, b *chainState) *chainState {
	out := *a
	if b.ChainKey.Index > a.ChainKey.Index {
		out.ChainKey = b.ChainKey
	}
	out.MessageKeys = mergeSkipped(a.MessageKeys, b.MessageKeys, a.ChainKey.Index, b.ChainKey.Index,
		func(k *message.KeysStructure) uint32 { return k.Index })
	return &out
}

// mergeSkipped merges the skipped keys of two versions of a chain, which have got to next messages nextA and nextB.
func mergeSkipped[K any](a, b []K, nextA, nextB uint32, index func(K) uint32) []K {
	held := func(keys []K) map[uint32]bool {
		indexes := make(map[uint32]bool, len(keys))
		for _, key := range keys {
			indexes[index(key)] = true
		}
		return indexes
	}
	inA, inB, inOut := held(a), held(b), make(map[uint32]bool)
	out := []K{}
	for _, key := range slices.Concat(a, b) {
		i := index(key)
		if !inOut[i] && (i >= nextA || inA[i]) && (i >= nextB || inB[i]) {
			inOut[i] = true
			out = append(out, key)
		}
	}
	slices.SortFunc(out, func(x, y K) int { return cmp.Compare(index(x), index(y)) })
	return out[max(0, len(out)-maxSkippedKeys):]
}
