package pgstore

import (
	"bytes"
	"hash/maphash"
	"strconv"
)

// ratchet is where a session record stands, read without parsing it. Its slices are parts of the record.
type ratchet struct {
	session    []byte // the current state's base key, which names it, base64 as in the record
	chain      []byte // the sending ratchet key, likewise
	counter    uint64 // the next message's, so its message key is the first that was not used
	head, tail []byte // all but the sending chain key
}

func (r ratchet) sameChain(o ratchet) bool { return bytes.Equal(r.chain, o.chain) }

// sameRest says whether two records differ in their sending chain key only.
func (r ratchet) sameRest(o ratchet) bool {
	return bytes.Equal(r.head, o.head) && bytes.Equal(r.tail, o.tail)
}

// sentFrom says whether a record that stands at r is one that stood at o and has sent a message.
func (r ratchet) sentFrom(o ratchet) bool {
	return r.counter == o.counter+1 && r.sameChain(o) && r.sameRest(o)
}

var fingerprints = maphash.MakeSeed() // they never leave the process

func fingerprint(b []byte) uint64 { return maphash.Bytes(fingerprints, b) }

// ratchetOf reads a session record. libsignal writes its fields in one order and the current state first, so the first "SenderChain"
// of a session is the current one, and its base key comes just before. Searching is far cheaper than parsing, and a name
// is searched without its first quote, since quotes are everywhere.
func ratchetOf(session []byte) (r ratchet, ok bool) {
	const baseKey, senderChain, publicKey, chainKey, index = `"SenderBaseKey":"`, `SenderChain":{`, `SenderRatchetKeyPublic":"`, `ChainKey":{`, `Index":`
	at := bytes.Index(session, []byte(senderChain))
	if at < 0 {
		return r, false
	}
	if name := bytes.LastIndex(session[:at], []byte(baseKey)); name >= 0 {
		r.session, _, _ = bytes.Cut(session[name+len(baseKey):at], []byte(`"`))
	}
	chain := session[at:]
	_, after, ok1 := bytes.Cut(chain, []byte(publicKey))
	r.chain, _, ok = bytes.Cut(after, []byte(`"`))
	from := bytes.Index(chain, []byte(chainKey))
	if !ok1 || !ok || from < 0 {
		return ratchet{}, false
	}
	length := bytes.IndexByte(chain[from:], '}')
	if length < 0 {
		return ratchet{}, false
	}
	_, digits, ok := bytes.Cut(chain[from:from+length], []byte(index))
	digits, _, _ = bytes.Cut(digits, []byte(`,`))
	counter, err := strconv.ParseUint(string(digits), 10, 32)
	if !ok || err != nil {
		return ratchet{}, false
	}
	r.counter, r.head, r.tail = counter, session[:at+from], chain[from+length:]
	return r, true
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

// after is a record that is stored as it was put: it keeps the past of the one it replaces, and the chain of that if it has been stepped over.
func (v *recordValue) after(stored *recordValue, then, now ratchet) *recordValue {
	v.past = stored.past
	if written := v.form.Load().record; !now.sameChain(then) && !bytes.Contains(written, then.chain) {
		v.past = v.past.then(fingerprint(then.chain), then.counter)
	}
	return v
}
