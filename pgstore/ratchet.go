package pgstore

import (
	"bytes"
	"hash/maphash"
	"strconv"
)

// Neither whatsmeow nor libsignal locks sends against decrypts: both read a session, change it and put it back, so that what one did is
// undone by the other. A counter that goes back like that encrypts another message with a key that was used, and the
// peer drops it. So every Put of a session is checked against what is stored at that moment, under the instance's lock (reconcile.go):
//
//  1. Nothing came in between (nearly always): what is put is stored as it is.
//  2. The Put is a send, and the message key it used was used by another: it is refused with [ErrMessageKeyUsed], before the
//     second ciphertext leaves. Nothing can be tried again in here: the message was encrypted before the Put, and only the
//     caller has its plaintext. Nor can two sends be given different keys when they read, since a read answers what was
//     put. That it is rare is the work of turns.go.
//  3. Otherwise the two are merged (merge.go) into what they would have left one after the other.
//
// What a writer had read, and whether it sends or decrypts (reads.go): PutManySessions is a send; what happens in DoDecryptionTxn is a
// decrypt, and the transaction notes what it read. A plain PutSession is a retry answer, a message to our own phone, or a decrypt
// without the event buffer. A send changes nothing of a record but the sending chain key, so it is one if all the rest is what a
// plain GetSession handed out a moment ago, or what is stored; else it is a decrypt. So for refusing, doubt means a decrypt.
//
// How far a chain has got is in the stored record as long as one of its states has the chain. It is remembered
// beside the record when the ratchet was stepped over it (past), and when the session was deleted or moved by a migration while somebody
// may hold it (gone.go). A send on a chain of which nobody knows how far it has got is refused: it was stepped over long ago.
//
// Values in the cache are never changed, so that a version is told by its pointer. What is remembered lives as long
// as the process: who takes an instance has no reader that began before.

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
	session []byte // the current state's base key, which names it, base64 as in the record
	chain   []byte // the sending ratchet key, likewise
	counter uint64 // the next message's, so its message key is the first that was not used
	rest    uint64 // fingerprint of all but the sending chain key
}

func (r ratchet) sameChain(o ratchet) bool { return bytes.Equal(r.chain, o.chain) }

// sentFrom says whether a record that stands at r is one that stood at o and has sent a message.
func (r ratchet) sentFrom(o ratchet) bool {
	return r.rest == o.rest && r.sameChain(o) && r.counter == o.counter+1
}

var fingerprints = maphash.MakeSeed() // they never leave the process

func fingerprint(b []byte) uint64 { return maphash.Bytes(fingerprints, b) }

// ratchetOf reads a session record. libsignal writes its fields in one order and the current state first, so the first "SenderChain"
// of a session is the current one. Searching is far cheaper than parsing.
func ratchetOf(session []byte) (r ratchet, ok bool) {
	const baseKey, senderChain, publicKey, chainKey, index = `"SenderBaseKey":"`, `"SenderChain":{`, `"SenderRatchetKeyPublic":"`, `"ChainKey":{`, `"Index":`
	at := bytes.Index(session, []byte(senderChain))
	if at < 0 {
		return r, false
	}
	_, named, _ := bytes.Cut(session[:at], []byte(baseKey))
	name, _, _ := bytes.Cut(named, []byte(`"`))
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
	return ratchet{session: name, chain: chain, counter: counter, rest: hash.Sum64()}, true
}

// past is how far sending chains had got that are in a session no more, the newest first.
type past struct {
	chain   uint64 // fingerprint of the sending ratchet key
	counter uint64
	prev    *past
}

// pastLimit is over how many steps of the ratchet a send may hold a session; after that it is refused. A receiver keeps the
// chains of its last five steps, so it could not read more.
const pastLimit = maxReceiverChains - 1

const pastSize = 32

// then is the past after one more chain has gone. Who holds the older past is not disturbed.
func (p *past) then(chain, counter uint64) *past {
	newest := &past{chain: chain, counter: counter}
	last := newest
	for n := 1; p != nil && n < pastLimit; p = p.prev {
		if p.chain != chain {
			node := *p
			last.prev, last = &node, &node
			n++
		} else {
			newest.counter = max(newest.counter, p.counter)
		}
	}
	last.prev = nil
	return newest
}

func (p *past) size() (n int) {
	for ; p != nil; p = p.prev {
		n += pastSize
	}
	return n
}

// reached is how far a chain had got.
func (p *past) reached(chain uint64) (counter uint64, known bool) {
	for ; p != nil; p = p.prev {
		if p.chain == chain {
			return p.counter, true
		}
	}
	return 0, false
}
