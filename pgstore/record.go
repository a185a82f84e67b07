package pgstore

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"sync/atomic"
)

// recordValue is a session or a sender key: {"record": text} for what libsignal's JSON serializer wrote (libsignal
// serialize/JSONSerializer.go), byte for byte, and {"record_b64": base64} for any other bytes. It is decoded at its
// first use, since a restart loads thousands of records and uses a few.
//
// Beside it is what ceilings.go and unclean.go say: {"ceiling": n, "stepped": n, "abandoned": [chain, …]}.
type recordValue struct {
	form  atomic.Pointer[recordForm]
	past  *past       // of a session: the chains that the ratchet was stepped over since it came into memory
	aside atomic.Bool // it cannot be read, and somebody is setting it aside
	from  *instance   // whose row it is, and when that was written: what has become of its chains since is found out when it is decoded
	seq   int64
	era   int64 // see instance.era; when it was stored

	version, ceiling uint64 // see reservation, whose lock guards them
}

type recordForm struct {
	json   []byte // the data column, or nil once decoded
	record []byte
	at     *ratchet // of a session, once asked for

	sends *reservation // of the key; nil for a value that was not put yet
}

type recordJSON struct {
	Record    *text    `json:"record,omitempty"`
	RecordB64 []byte   `json:"record_b64,omitempty"`
	Ceiling   *uint64  `json:"ceiling,omitempty"`
	Stepped   uint64   `json:"stepped,omitempty"`
	Abandoned []string `json:"abandoned,omitempty"`
}

func newRecord(record []byte) *recordValue {
	v := new(recordValue)
	v.form.Store(&recordForm{record: bytes.Clone(record)})
	return v
}

func (v *recordValue) load(data []byte) { v.form.Store(&recordForm{json: data}) }

// bytes returns the record; it is shared, copy it before it leaves the store. A text that is not a record is [ErrCorrupt];
// bytes in base64 were put like that and are nobody's to judge.
func (v *recordValue) bytes() ([]byte, error) {
	form := v.form.Load()
	if form.json == nil {
		return form.record, nil
	}
	var decoded recordJSON
	if err := json.Unmarshal(form.json, &decoded); err != nil {
		return nil, ErrCorrupt
	}
	record := decoded.RecordB64
	if decoded.Record != nil {
		record = []byte(*decoded.Record)
		if !looksLikeRecord(record) || !json.Valid(record) {
			return nil, ErrCorrupt
		}
	}
	if len(record) == 0 {
		return nil, ErrCorrupt
	}
	v.form.CompareAndSwap(form, v.from.markOf(v.seq).apply(record, decoded))
	return v.form.Load().record, nil
}

// decoded decodes the value, and says whether it could.
func (v *recordValue) decoded() bool {
	_, ok := v.readIfAny()
	return ok
}

// read is bytes for who does not care why there are none.
func (v *recordValue) read() (record []byte, ok bool) {
	record, err := v.bytes()
	return record, err == nil
}

// readIfAny is read for a value that may be nil.
func (v *recordValue) readIfAny() (record []byte, ok bool) {
	if v == nil {
		return nil, false
	}
	return v.read()
}

// sameText says whether two values hold one record: the same version, or one that was evicted and fetched again.
func (v *recordValue) sameText(o *recordValue) bool {
	if v == nil || o == nil || v == o {
		return v == o
	}
	a, ok1 := v.read()
	b, ok2 := o.read()
	return ok1 && ok2 && bytes.Equal(a, b)
}

// ratchet says where a session stands; false for a record that is none, or no record.
func (v *recordValue) ratchet() (ratchet, bool) {
	if v == nil {
		return ratchet{}, false
	}
	data, ok := v.read()
	if !ok {
		return ratchet{}, false
	}
	form := v.form.Load()
	if form.at == nil {
		at, ok := ratchetOf(data)
		if !ok {
			return ratchet{}, false
		}
		next := *form
		next.at = &at
		v.form.CompareAndSwap(form, &next)
		return at, true
	}
	return *form.at, true
}

// same says whether storing v in the place of o changes nothing, what is remembered beside the record included.
func (v *recordValue) same(o *recordValue) bool {
	a, b := v.form.Load(), o.form.Load()
	return v.past == o.past && a.json == nil && b.json == nil && bytes.Equal(a.record, b.record)
}

// MarshalJSON implements [json.Marshaler].
func (v *recordValue) MarshalJSON() ([]byte, error) {
	form := v.form.Load()
	if form.json != nil {
		return form.json, nil
	}
	beside := form.sends.beside(v)
	t := text(form.record)
	if !looksLikeRecord(form.record) || !json.Valid(form.record) || !t.Storable() {
		beside.RecordB64 = form.record
		return json.Marshal(beside)
	}
	quoted, err := json.Marshal(string(t)) // one pass over it: sessions are most of what is flushed
	if err != nil {
		return nil, err
	}
	rest, err := json.Marshal(beside)
	out := slices.Concat([]byte(`{"record":`), quoted, []byte{','}, rest[1:])
	if len(rest) == len("{}") {
		out = slices.Concat([]byte(`{"record":`), quoted, []byte{'}'})
	}
	return out, err
}

func (v *recordValue) size() int {
	form := v.form.Load()
	return 80 + len(form.json) + len(form.record) + v.past.size()
}

// looksLikeRecord is a cheap check that libsignal would not panic on a record: a session has a sending chain in its
// current state, and a sender key has a state.
func looksLikeRecord(record []byte) bool {
	if len(record) < 2 || record[0] != '{' || record[len(record)-1] != '}' {
		return false
	}
	if _, ok := ratchetOf(record); ok {
		return true
	}
	return bytes.Contains(record, []byte(`"SenderKeyStates":[{`)) && senderKeyID(record) != nil
}

// senderKeyIteration is the next iteration of the newest state.
func senderKeyIteration(senderKey []byte) (uint64, bool) {
	_, after, _ := bytes.Cut(senderKey, []byte(`"SenderChainKey":{"Iteration":`))
	digits, _, ok := bytes.Cut(after, []byte(","))
	n, err := strconv.ParseUint(string(digits), 10, 32)
	return n, ok && err == nil
}

// senderKeyID is the text of the newest state's id, which changes when a new key was distributed; nil if there is none.
func senderKeyID(senderKey []byte) []byte {
	_, rest, ok := bytes.Cut(senderKey, []byte(`"KeyID":`))
	end := bytes.IndexAny(rest, ",}")
	if !ok || end < 0 {
		return nil
	}
	return rest[:end]
}

// ownSenderKey says whether a sender key is one to send with: libsignal writes the private key of somebody else's as null, or, once it has read
// that, as zeros.
func ownSenderKey(senderKey []byte) bool {
	_, key, ok := bytes.Cut(senderKey, []byte(`"SigningKeyPrivate":"`))
	key, _, ended := bytes.Cut(key, []byte(`"`))
	return ok && ended && len(bytes.Trim(key, "A=")) > 0
}

// nextIteration says whether a sender key is another one after one more message.
func nextIteration(before, after []byte) bool {
	then, ok1 := senderKeyIteration(before)
	now, ok2 := senderKeyIteration(after)
	return ok1 && ok2 && now == then+1 && bytes.Equal(senderKeyID(before), senderKeyID(after))
}
