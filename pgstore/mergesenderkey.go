package pgstore

import (
	"bytes"
	"encoding/json"
	"slices"

	groupratchet "go.mau.fi/libsignal/groups/ratchet"
	groups "go.mau.fi/libsignal/groups/state/record"
)

// Merging two sender keys that were made of one, S (stored) and W (written). A record has states, the newest first, each named by its id and
// signing key; each is as far as either has it, with the skipped keys that neither has used. A state that one
// has and the other has not keeps its place.
//
// Our own is put by sends. One whose message key was used is refused, and so is a new key (iteration 0, nothing was sent with it) where
// another was made at once: the one that was stored first is what the other send would use without having distributed it.
//
// A migration replaces a key that has nothing in common with the one that is moved, as sqlstore does.

// maxSenderKeyStates is libsignal's limit (groups/state/record/SenderKeyRecord.go).
const maxSenderKeyStates = 5

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
		if st == nil || st.SenderChainKey == nil || slices.Contains(st.Keys, nil) {
			return nil, errUnreadable
		}
	}
	return parsed, nil
}

func sameSenderKey(a, b *senderKeyState) bool {
	return a.KeyID == b.KeyID && bytes.Equal(a.SigningKeyPublic, b.SigningKeyPublic)
}

// mergeSenderKeys merges a sender key that is written into one that is stored.
func mergeSenderKeys(stored, written *senderKeyRecord, by writer) (*senderKeyRecord, error) {
	if by == writerSend {
		used := written.SenderKeyStates[0]
		at := slices.IndexFunc(stored.SenderKeyStates, func(s *senderKeyState) bool { return sameSenderKey(s, used) })
		if at < 0 || used.SenderChainKey.Iteration <= stored.SenderKeyStates[at].SenderChainKey.Iteration {
			return nil, ErrMessageKeyUsed
		}
	}
	if by == writerMigration && !slices.ContainsFunc(written.SenderKeyStates, func(w *senderKeyState) bool {
		return slices.ContainsFunc(stored.SenderKeyStates, func(s *senderKeyState) bool { return sameSenderKey(s, w) })
	}) {
		return written, nil
	}
	merged := joined(oldestFirst(stored), oldestFirst(written), true, sameSenderKey, mergeSenderKeyState)
	slices.Reverse(merged)
	return &senderKeyRecord{SenderKeyStates: merged[:min(len(merged), maxSenderKeyStates)]}, nil
}

// oldestFirst lists the states that libsignal can find: of one id the newest. A key that was distributed again is there twice.
func oldestFirst(r *senderKeyRecord) (states []*senderKeyState) {
	for _, st := range r.SenderKeyStates {
		if !slices.ContainsFunc(states, func(newer *senderKeyState) bool { return newer.KeyID == st.KeyID }) {
			states = append(states, st)
		}
	}
	slices.Reverse(states)
	return states
}

func mergeSenderKeyState(a, b *senderKeyState) *senderKeyState {
	out := *a
	if b.SenderChainKey.Iteration > a.SenderChainKey.Iteration {
		out.SenderChainKey = b.SenderChainKey
	}
	out.Keys = mergeSkipped(a.Keys, b.Keys, a.SenderChainKey.Iteration, b.SenderChainKey.Iteration,
		func(k *groupratchet.SenderMessageKeyStructure) uint32 { return k.Iteration })
	return &out
}
