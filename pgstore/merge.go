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
// did not use are S's, but for what was read on their receiving chains: an attempt to decrypt with a state leaves a needless ratchet step in it.

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

// merging is two sessions that are to become one.
type merging struct {
	by      writer
	stored  *sessionRecord
	written *sessionRecord
	base    *sessionRecord // what the writer had read, nil for none or if that is not known
	known   bool           // whether it is
	past    *past          // the chains that stored was stepped over
	reached uint64         // how far the written chain had got, at the least
}

func (m *merging) merge() (*sessionRecord, error) {
	used := m.written.SessionState
	theirs := find(m.stored, used)
	if m.by == writerSend {
		if err := m.unused(theirs); err != nil {
			return nil, err
		}
	}
	var out *sessionRecord
	switch {
	case theirs == nil:
		out = newOnTop(m.stored, m.written)
	case m.by == writerSend && (m.known || m.reachedBefore() != nil):
		out = m.sent(theirs)
	default: // a decrypt, or what nobody had read
		out = m.received(theirs)
	}
	if m.by != writerSend {
		caughtUp(out, m.written)
	}
	return raised(out, m.stored, m.written), nil
}

// unused refuses a send if another writer has used one of its message keys, or if nobody knows any more how far its chain has got.
func (m *merging) unused(theirs *sessionState) error {
	chain := m.written.SessionState.SenderChain
	if chain.ChainKey.Index == 0 {
		return nil // nothing was sent on it
	}
	reached := m.reachedBefore()
	if reached == nil && theirs != nil && m.known {
		return ErrMessageKeyUsed // it was stepped over too long ago
	}
	last := uint64(chain.ChainKey.Index) - 1 // the last message key that the send used
	used := last                             // the first one, as far as is known
	if m.known {
		used = 0
		if m.base != nil {
			for _, c := range chainsOf(m.base) {
				if sameChain(c, chain) {
					used = min(last, uint64(c.ChainKey.Index)) // what is taken for the base may be a later version
				}
			}
		}
	}
	if m.reached > used || reached != nil && *reached > used {
		return ErrMessageKeyUsed
	}
	return nil
}

// reachedBefore is how far the written sending chain had got, nil if that is not known.
func (m *merging) reachedBefore() *uint64 {
	chain := m.written.SessionState.SenderChain
	var found *uint64
	if counter, ok := m.past.reached(chainID(chain)); ok {
		found = &counter
	}
	for _, c := range chainsOf(m.stored) {
		if counter := uint64(c.ChainKey.Index); sameChain(c, chain) && (found == nil || *found < counter) {
			found = &counter
		}
	}
	return found
}

// chainID names a sending chain, like the fingerprint of a ratchet's.
func chainID(c *chainState) uint64 {
	return fingerprint(base64.StdEncoding.AppendEncode(nil, c.SenderRatchetKeyPublic))
}

// chainsOf lists the sending chains of a record, the current one last.
func chainsOf(r *sessionRecord) []*chainState {
	var chains []*chainState
	for _, st := range slices.Backward(statesOf(r)) {
		chains = append(chains, st.SenderChain)
	}
	return chains
}

func hasChain(chains []*chainState, chain *chainState) bool {
	return slices.ContainsFunc(chains, func(c *chainState) bool { return sameChain(c, chain) })
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
func (m *merging) sent(theirs *sessionState) *sessionRecord {
	chain := m.written.SessionState.SenderChain
	if !sameChain(theirs.SenderChain, chain) && m.past != nil && m.past.chain == chainID(chain) {
		theirs.PreviousCounter = max(theirs.PreviousCounter, lastSent(chain)) // the ratchet was stepped meanwhile
	}
	return m.stored // raised sets the chain key
}

// lastSent is a chain's previousCounter: that of its last message, and 0 if there is none.
func lastSent(c *chainState) uint32 { return max(c.ChainKey.Index, 1) - 1 }

// received is what is stored, with the state that a decrypt used, or that was moved here, as that left it.
func (m *merging) received(theirs *sessionState) *sessionRecord {
	used := m.written.SessionState
	stepped := m.stepped(theirs)
	merged := *used
	merged.ReceiverChains = joined(theirs.ReceiverChains, used.ReceiverChains, stepped, sameChain, mergeReceiverChain)
	merged.ReceiverChains = merged.ReceiverChains[max(0, len(merged.ReceiverChains)-maxReceiverChains):]
	if theirs.PendingPreKey == nil {
		merged.PendingPreKey = nil
	}
	if stepped {
		merged.PreviousCounter = lastSent(theirs.SenderChain)
	} else {
		merged.SenderChain, merged.RootKey, merged.PreviousCounter = theirs.SenderChain, theirs.RootKey, theirs.PreviousCounter
	}
	out := &sessionRecord{SessionState: m.stored.SessionState}
	current := m.stored.SessionState == theirs
	stays := !current && find(m.written, m.stored.SessionState) == nil
	switch {
	case current:
		out.SessionState = &merged
	case !stays:
		out.SessionState, out.PreviousStates = &merged, []*sessionState{m.stored.SessionState}
	}
	for _, st := range m.stored.PreviousStates {
		switch {
		case st != theirs:
			out.PreviousStates = append(out.PreviousStates, st)
		case stays:
			out.PreviousStates = append(out.PreviousStates, &merged)
		}
	}
	if m.by == writerMigration {
		return withArchived(out, m.written)
	}
	return limited(out)
}

// stepped says whether the written record has stepped the ratchet of a state that the stored one has not. Its writer did if the
// state has another sending chain than it had read, and then nobody else did if that one is stored. Where it is not known what
// was read, it did if its newest receiving chain is new and others are not.
func (m *merging) stepped(theirs *sessionState) bool {
	used := m.written.SessionState
	if sameChain(theirs.SenderChain, used.SenderChain) {
		return false
	}
	if read := find(m.base, used); m.known && read != nil {
		return !sameChain(read.SenderChain, used.SenderChain) && sameChain(read.SenderChain, theirs.SenderChain)
	}
	if _, passed := m.past.reached(chainID(used.SenderChain)); passed || len(used.ReceiverChains) == 0 {
		return false
	}
	stored := func(c *chainState) bool { return hasChain(theirs.ReceiverChains, c) }
	newest := used.ReceiverChains[len(used.ReceiverChains)-1]
	return !stored(newest) && (slices.ContainsFunc(used.ReceiverChains, stored) || len(theirs.ReceiverChains) == 0)
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

// caughtUp moves the receiving chains of the result on to where another record has them, in states that its writer did not use, too: what he
// had read is not read again.
func caughtUp(out, other *sessionRecord) {
	for _, st := range statesOf(out) {
		with := find(other, st)
		if with == nil || with == st {
			continue
		}
		for i, chain := range st.ReceiverChains {
			if at := slices.IndexFunc(with.ReceiverChains, func(c *chainState) bool { return sameChain(c, chain) }); at >= 0 {
				st.ReceiverChains[i] = mergeReceiverChain(chain, with.ReceiverChains[at])
			}
		}
	}
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

// joined merges two versions of a list, oldest first, whose elements come and go at its ends: what both have is merged, and what only one has is kept
// in its place. What is written and not stored is older than all that is stored, or, if the writer has added something, also newer.
func joined[T any](stored, written []T, added bool, same func(a, b T) bool, merge func(stored, written T) T) []T {
	in := func(list []T, x T) int { return slices.IndexFunc(list, func(y T) bool { return same(x, y) }) }
	older := len(written)
	if added { // what comes after the last that both have
		for older = len(written); older > 0 && in(stored, written[older-1]) < 0; older-- {
		}
	}
	missing := func(list []T) (out []T) {
		for _, w := range list {
			if in(stored, w) < 0 {
				out = append(out, w)
			}
		}
		return out
	}
	out := missing(written[:older])
	for _, s := range stored {
		if at := in(written, s); at >= 0 {
			s = merge(s, written[at])
		}
		out = append(out, s)
	}
	return append(out, written[older:]...)
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
