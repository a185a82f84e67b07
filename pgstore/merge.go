package pgstore

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"

	groups "go.mau.fi/libsignal/groups/state/record"
	"go.mau.fi/libsignal/keys/message"
	"go.mau.fi/libsignal/state/record"
)

// Merging two records that were made of one, S (stored) and W (written): the result is what the two writers could have left had they run
// one after the other, and no key that left is ever ahead of it.
//
// A record has states, current and archived; a state is named by its base key. Of one state in both:
//
//   - W from a send changed the sending chain key and nothing else: S, with W's where the chain is the same. If S has stepped the ratchet
//     meanwhile, its new chain stays, and what the old one reached goes into previousCounter.
//   - W from a decrypt: W, with the further of the two sending chain keys. If W stepped the ratchet, its new chain, with
//     previousCounter from S. If S stepped too, S's chain, which may have been sent on.
//   - Receiving chains are joined. A message key below a chain's index that a record does not hold was used in it, so the result has a
//     skipped key only if neither has used it.
//
// Which state is current: one that only W knows is a new session, S's states go under it. A decrypt promotes the state that it
// used. A send moves nothing. States that a decrypt did not use are S's: an attempt to decrypt with a state leaves a
// needless ratchet step in it.

// Limits of libsignal (state/record/SessionState.go and SessionRecord.go, groups/state/record/SenderKeyRecord.go).
const (
	maxReceiverChains  = 5
	maxSkippedKeys     = 2000
	maxArchivedStates  = 40
	maxSenderKeyStates = 5
)

// errUnreadable says that a record is none that libsignal could use.
var errUnreadable = errors.New("pgstore: record cannot be read")

type (
	sessionRecord = record.SessionStructure
	sessionState  = record.StateStructure
	chainState    = record.ChainStructure
)

func parseSession(data []byte) (*sessionRecord, error) {
	parsed := new(sessionRecord)
	if json.Unmarshal(data, parsed) != nil || parsed.SessionState == nil {
		return nil, errUnreadable
	}
	for _, st := range statesOf(parsed) {
		if st == nil {
			return nil, errUnreadable
		}
		if st == parsed.SessionState && st.SenderChain == nil {
			return nil, errUnreadable
		}
		for _, c := range append([]*chainState{st.SenderChain}, st.ReceiverChains...) {
			if c != nil && (c.ChainKey == nil || slices.Contains(c.MessageKeys, nil)) {
				return nil, errUnreadable
			}
		}
		if slices.Contains(st.ReceiverChains, nil) {
			return nil, errUnreadable
		}
	}
	return parsed, nil
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
	return a != nil && b != nil && bytes.Equal(a.SenderRatchetKeyPublic, b.SenderRatchetKeyPublic)
}

// mergeSessions merges what is written into what is stored. The base is what the writer had read, nil if that is not known.
func mergeSessions(stored, written, base *sessionRecord, by writer, before *past) (*sessionRecord, error) {
	used := written.SessionState
	theirs := find(stored, used)
	switch {
	case by == writerSend && usedAlready(stored, used.SenderChain, before):
		return nil, ErrMessageKeyUsed
	case theirs == nil:
		return raised(newOnTop(stored, written), stored, written), nil
	case by == writerSend:
		return raised(sent(stored, theirs, used), stored, written), nil
	default:
		return raised(decrypted(stored, written, base, by, before), stored, written), nil
	}
}

// usedAlready says whether another writer has got to where a send stands on its chain, or beyond: then both used one message key.
func usedAlready(stored *sessionRecord, chain *chainState, before *past) bool {
	if chain.ChainKey.Index == 0 {
		return false // nothing was sent on it
	}
	reached, known := before.furthest(ratchetKeyText(chain))
	for _, st := range statesOf(stored) {
		if sameChain(st.SenderChain, chain) {
			reached, known = max(reached, uint64(st.SenderChain.ChainKey.Index)), true
		}
	}
	return known && reached >= uint64(chain.ChainKey.Index)
}

// ratchetKeyText is a chain's ratchet key as it stands in a record.
func ratchetKeyText(c *chainState) []byte {
	quoted, _ := json.Marshal(c.SenderRatchetKeyPublic) // bytes never fail
	return bytes.Trim(quoted, `"`)
}

// newOnTop is a session that only the written record knows, with all that is stored beneath it.
func newOnTop(stored, written *sessionRecord) *sessionRecord {
	out := &sessionRecord{SessionState: written.SessionState, PreviousStates: statesOf(stored)}
	for _, st := range written.PreviousStates {
		if find(out, st) == nil {
			out.PreviousStates = append(out.PreviousStates, st)
		}
	}
	return limited(out)
}

// sent is what is stored, and has sent a message on theirs.
func sent(stored *sessionRecord, theirs, used *sessionState) *sessionRecord {
	if !sameChain(theirs.SenderChain, used.SenderChain) { // the ratchet was stepped meanwhile
		theirs.PreviousCounter = max(theirs.PreviousCounter, lastSent(used.SenderChain))
	}
	return stored // raised sets the chain key
}

// lastSent is a chain's previousCounter: that of its last message, and 0 if there is none.
func lastSent(c *chainState) uint32 { return max(c.ChainKey.Index, 1) - 1 }

// decrypted is what is stored, with the state that a decryption used as that left it.
func decrypted(stored, written, base *sessionRecord, by writer, before *past) *sessionRecord {
	used := written.SessionState
	theirs, read := find(stored, used), find(base, used)
	merged := *used
	merged.ReceiverChains = mergeReceiverChains(theirs.ReceiverChains, used.ReceiverChains)
	if theirs.PendingPreKey == nil {
		merged.PendingPreKey = nil // an answer has come in
	}
	if !sameChain(theirs.SenderChain, used.SenderChain) {
		_, passed := before.furthest(ratchetKeyText(used.SenderChain))
		switch {
		case passed, read != nil && !sameChain(read.SenderChain, theirs.SenderChain):
			// What is stored has stepped the ratchet, and may have sent on its new chain.
			merged.SenderChain, merged.RootKey, merged.PreviousCounter = theirs.SenderChain, theirs.RootKey, theirs.PreviousCounter
		case theirs.SenderChain != nil:
			merged.PreviousCounter = lastSent(theirs.SenderChain)
		}
	}
	out := &sessionRecord{SessionState: stored.SessionState}
	stays := stored.SessionState == theirs ||
		by == writerDecrypt && base != nil && sameState(base.SessionState, used) // it was current, and another session came on top
	if !stays {
		out.PreviousStates = append(out.PreviousStates, stored.SessionState)
		out.SessionState = &merged
	} else if stored.SessionState == theirs {
		out.SessionState = &merged
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
		for _, st := range written.PreviousStates {
			if find(out, st) == nil {
				out.PreviousStates = append(out.PreviousStates, st)
			}
		}
	}
	return limited(out)
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

func limited(r *sessionRecord) *sessionRecord {
	r.PreviousStates = r.PreviousStates[:min(len(r.PreviousStates), maxArchivedStates)]
	return r
}

// mergeReceiverChains joins the receiving chains of two versions of a state; the newest is the last.
func mergeReceiverChains(stored, written []*chainState) []*chainState {
	var out []*chainState
	for _, s := range stored {
		if at := slices.IndexFunc(written, func(w *chainState) bool { return sameChain(s, w) }); at >= 0 {
			s = mergeReceiverChain(s, written[at])
		}
		out = append(out, s)
	}
	for _, w := range written {
		if !slices.ContainsFunc(stored, func(s *chainState) bool { return sameChain(s, w) }) {
			out = append(out, w)
		}
	}
	return out[max(0, len(out)-maxReceiverChains):]
}

// mergeReceiverChain is the further of two versions of a receiving chain, with the skipped keys that neither has used.
func mergeReceiverChain(a, b *chainState) *chainState {
	out := *a
	if b.ChainKey.Index > a.ChainKey.Index {
		out.ChainKey = b.ChainKey
	}
	unused := func(key *message.KeysStructure, in *chainState) bool {
		return key.Index >= in.ChainKey.Index ||
			slices.ContainsFunc(in.MessageKeys, func(k *message.KeysStructure) bool { return k.Index == key.Index })
	}
	out.MessageKeys = nil
	for _, key := range append(slices.Clone(a.MessageKeys), b.MessageKeys...) {
		known := slices.ContainsFunc(out.MessageKeys, func(k *message.KeysStructure) bool { return k.Index == key.Index })
		if !known && unused(key, a) && unused(key, b) {
			out.MessageKeys = append(out.MessageKeys, key)
		}
	}
	slices.SortStableFunc(out.MessageKeys, func(x, y *message.KeysStructure) int { return cmp.Compare(x.Index, y.Index) })
	out.MessageKeys = out.MessageKeys[max(0, len(out.MessageKeys)-maxSkippedKeys):]
	return &out
}

type (
	senderKeyRecord = groups.SenderKeyStructure
	senderKeyState  = groups.SenderKeyStateStructure
)

func parseSenderKey(data []byte) (*senderKeyRecord, error) {
	parsed := new(senderKeyRecord)
	if json.Unmarshal(data, parsed) != nil || len(parsed.SenderKeyStates) == 0 {
		return nil, errUnreadable
	}
	for _, st := range parsed.SenderKeyStates {
		if st == nil || st.SenderChainKey == nil {
			return nil, errUnreadable
		}
	}
	return parsed, nil
}

func sameSenderKey(a, b *senderKeyState) bool {
	return a.KeyID == b.KeyID && bytes.Equal(a.SigningKeyPublic, b.SigningKeyPublic)
}

// mergeSenderKeys merges a sender key that is written over one that is stored: the written states first, each as far as either has it.
// Of our own, a send whose message key was used is refused; an iteration of 0 is a key that nothing has been sent with.
func mergeSenderKeys(stored, written *senderKeyRecord, by writer) (*senderKeyRecord, error) {
	out := &senderKeyRecord{SenderKeyStates: slices.Clone(written.SenderKeyStates)}
	for i, w := range out.SenderKeyStates {
		for _, s := range stored.SenderKeyStates {
			if !sameSenderKey(s, w) {
				continue
			}
			reached := s.SenderChainKey.Iteration >= w.SenderChainKey.Iteration
			if by == writerSend && i == 0 && reached && w.SenderChainKey.Iteration > 0 {
				return nil, ErrMessageKeyUsed
			}
			if reached {
				out.SenderKeyStates[i] = s
			}
			break
		}
	}
	for _, s := range stored.SenderKeyStates {
		if !slices.ContainsFunc(out.SenderKeyStates, func(w *senderKeyState) bool { return sameSenderKey(s, w) }) {
			out.SenderKeyStates = append(out.SenderKeyStates, s)
		}
	}
	out.SenderKeyStates = out.SenderKeyStates[:min(len(out.SenderKeyStates), maxSenderKeyStates)]
	return out, nil
}
