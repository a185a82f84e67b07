package pgstore

import (
	"bytes"
	"hash/maphash"
	"strconv"
)

// Neither whatsmeow nor libsignal locks sends against decrypts: both read a session, change it and put it back, so that what one did is
// undone by the other. A counter that goes back like that encrypts another message with a key that was used, and the
// peer drops it. So a Put of a session is checked against what is stored at that moment:
//
//  1. Nothing came in between (nearly always): what is put is what is stored.
//  2. The Put is a send, and the message key it used was used by another: it is refused with [ErrMessageKeyUsed], before the
//     second ciphertext leaves. Nothing can be tried again in here: only the caller has the plaintext.
//  3. Otherwise the two are merged (merge.go) into what they would have left one after the other.
//
// Which version a writer had read, and whether it sent or decrypted, is known for what happens in DoDecryptionTxn (a decrypt; the transaction
// notes what it read) and for PutManySessions (a send). A plain PutSession may be a retry answer, or a decrypt without the event
// buffer. A send changes nothing of a record but its sending chain key; the fingerprint of all the rest tells which
// earlier version it had read, and a record with a rest that nobody has seen is a decrypt's. For refusing, doubt means a
// decrypt.

// writer says what a Put of a session comes from.
type writer uint8

const (
	writerUnknown writer = iota
	writerSend
	writerDecrypt
	writerMigration
)

// ratchet is where a session record stands, read without parsing it.
type ratchet struct {
	chain   []byte // the sending ratchet key, base64 as in the record
	counter uint64 // the next message's, so its message key is the first that was not used
	rest    uint64 // fingerprint of all but the sending chain key
}

var fingerprints = maphash.MakeSeed() // they never leave the process

func fingerprint(b []byte) uint64 { return maphash.Bytes(fingerprints, b) }

// libsignal writes its fields in one order and the current state first, so the first "SenderChain" of a session is the current one.
// Searching is far cheaper than parsing.

// ratchetOf reads a session record.
func ratchetOf(session []byte) (r ratchet, ok bool) {
	const senderChain, publicKey, chainKey, index = `"SenderChain":{`, `"SenderRatchetKeyPublic":"`, `"ChainKey":{`, `"Index":`
	at := bytes.Index(session, []byte(senderChain))
	if at < 0 {
		return r, false
	}
	tail := session[at:]
	_, after, ok1 := bytes.Cut(tail, []byte(publicKey))
	chain, _, ok2 := bytes.Cut(after, []byte(`"`))
	from := bytes.Index(tail, []byte(chainKey))
	if !ok1 || !ok2 || from < 0 {
		return r, false
	}
	length := bytes.IndexByte(tail[from:], '}')
	if length < 0 {
		return r, false
	}
	_, digits, ok3 := bytes.Cut(tail[from:from+length], []byte(index))
	digits, _, _ = bytes.Cut(digits, []byte(`,`))
	counter, err := strconv.ParseUint(string(digits), 10, 32)
	if !ok3 || err != nil {
		return r, false
	}
	var hash maphash.Hash
	hash.SetSeed(fingerprints)
	_, _ = hash.Write(session[:at+from])
	_, _ = hash.Write(tail[from+length:])
	return ratchet{chain: chain, counter: counter, rest: hash.Sum64()}, true
}

// past is an earlier version of a session: the newest first. It is kept with the session while that is in memory.
type past struct {
	rest    uint64
	chain   uint64 // fingerprint of its sending ratchet key
	counter uint64
	prev    *past
}

// pastLimit is how many decrypts a retry answer may be overtaken by and still be recognized. A send adds no version.
const pastLimit = 32

const pastSize = 40

// then is the past of a record that follows one that stood at r.
func (p *past) then(r ratchet) *past {
	newest := &past{rest: r.rest, chain: fingerprint(r.chain), counter: r.counter}
	last := newest
	for n := 1; p != nil && n < pastLimit; p, n = p.prev, n+1 { // a copy, so that what is forgotten is freed
		node := *p
		node.prev = nil
		last.prev = &node
		last = &node
	}
	return newest
}

func (p *past) size() (n int) {
	for ; p != nil; p = p.prev {
		n += pastSize
	}
	return n
}

// version finds the version with that rest and sending chain.
func (p *past) version(r ratchet) bool {
	chain := fingerprint(r.chain)
	for ; p != nil; p = p.prev {
		if p.rest == r.rest && p.chain == chain {
			return true
		}
	}
	return false
}

// furthest is the highest counter that a chain is known to have reached.
func (p *past) furthest(chain []byte) (counter uint64, known bool) {
	of := fingerprint(chain)
	for ; p != nil; p = p.prev {
		if p.chain == of {
			counter, known = max(counter, p.counter), true
		}
	}
	return counter, known
}
