package pgstore

import (
	"encoding/base64"
	"encoding/json"
	"slices"

	groupratchet "go.mau.fi/libsignal/groups/ratchet"
	"go.mau.fi/libsignal/kdf"
	"go.mau.fi/libsignal/keys/chain"
)

// What an unclean end does to the rows that were written before it, when they are first used (see ceilings.go).
//
// Steps that follow one another with nothing delivered add up to one gap, so they are counted per chain, and before it is wider than a
// receiver bridges the chain is abandoned instead. So is one that has no ceiling.
//
// An abandoned chain is never sent on again, whoever owns the instance: its name is written with the row. While it is the current one the
// session is absent for sends, so that the client fetches a bundle, and there for decrypts; a decrypt that steps the ratchet makes the
// session well again. An own sender key is absent, so that the client makes and distributes a new one.

// mark is what is to be done with a row's sending chains before they are used.
type mark uint8

const (
	markNone    mark = iota
	markStep         // the row may be behind what has left, by less than its ceiling
	markAbandon      // or by more
)

// widestGap is how many message keys a receiver skips: 2,000 (libsignal session/SessionCipher.go, maxFutureMessages; groups/GroupCipher.go).
const widestGap = 2000

// markOf says what is to be done with a row that was written at seq.
func (in *instance) markOf(seq int64) mark {
	switch {
	case in == nil || in.c.ignoreMarks: // who only looks does not send, and what was put is as it is
		return markNone
	case seq <= in.abandonThrough.Load():
		return markAbandon
	case seq <= in.stepThrough.Load():
		return markStep
	}
	return markNone
}

// apply is a row as it is used.
func (m mark) apply(record []byte, row recordJSON) *recordForm {
	form := &recordForm{record: record, sends: &reservation{abandoned: row.Abandoned}}
	probe := new(recordValue)
	probe.form.Store(form)
	name, counter := probe.sendingChain()
	if name == nil {
		return form
	}
	chain, ceiling := fingerprint(name), counter
	if row.Ceiling != nil {
		ceiling = max(ceiling, *row.Ceiling)
	}
	form.sends.row, form.sends.stepped = reached{chain, ceiling}, reached{chain, row.Stepped}
	if m == markNone {
		return form
	}
	form.sends.abandoned = slices.Concat(row.Abandoned, archivedChains(record))
	if slices.Contains(row.Abandoned, string(name)) {
		return form
	}
	gap := row.Stepped + ceiling - counter
	if m == markStep && row.Ceiling != nil && gap < widestGap {
		if stepped, err := stepTo(record, ceiling); err == nil {
			form.record, form.sends.stepped.counter = stepped, gap
			return form
		}
	}
	form.sends.abandoned = append(form.sends.abandoned, string(name))
	return form
}

// archivedChains names the sending chains of a session's archived states.
func archivedChains(record []byte) (names []string) {
	parsed, err := parseSession(record)
	if err != nil {
		return nil
	}
	for _, st := range parsed.PreviousStates {
		names = append(names, base64.StdEncoding.EncodeToString(st.SenderChain.SenderRatchetKeyPublic))
	}
	return names
}

// sendingChains names all sending chains of a session, or that of an own sender key.
func sendingChains(record []byte) []string {
	probe := new(recordValue)
	probe.form.Store(&recordForm{record: record})
	name, _ := probe.sendingChain()
	if name == nil {
		return nil
	}
	return append(archivedChains(record), string(name))
}

// stepTo moves the sending chain of a session or an own sender key to a counter.
func stepTo(record []byte, counter uint64) ([]byte, error) {
	if _, ok := ratchetOf(record); ok {
		parsed, err := parseSession(record)
		if err != nil {
			return nil, err
		}
		key := chain.NewKeyFromStruct(parsed.SessionState.SenderChain.ChainKey, kdf.DeriveSecrets)
		for uint64(key.Index()) < counter {
			key = key.NextKey()
		}
		parsed.SessionState.SenderChain.ChainKey = chain.NewStructFromKey(key)
		return encodeSession(parsed)
	}
	parsed, err := parseSenderKey(record)
	if err != nil {
		return nil, err
	}
	key := groupratchet.NewSenderChainKeyFromStruct(parsed.SenderKeyStates[0].SenderChainKey)
	for uint64(key.Iteration()) < counter {
		key = key.Next()
	}
	parsed.SenderKeyStates[0].SenderChainKey = groupratchet.NewStructFromSenderChainKey(key)
	return json.Marshal(parsed)
}

// sendable says whether a record may be sent with.
func (v *recordValue) sendable() bool {
	name, _ := v.sendingChain()
	return name == nil || v.mayUse(name)
}

// mayUse says whether a sending chain of a record is not abandoned.
func (v *recordValue) mayUse(name []byte) bool {
	sends := v.form.Load().sends
	return sends == nil || sends.mayUse(name)
}
