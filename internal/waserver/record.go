package waserver

// The wire record: every ciphertext that any client sent, as the wire shows it and as its recipients could read it.
//
// From the wire alone one knows a ciphertext's chain, which is the ratchet key of a message between two devices or the key
// id of a sender key, and its counter on that chain. Two different ciphertexts with one counter on one chain were encrypted
// with one key, whether anybody could read them or not: whoever reads the first refuses the second. From those that were
// read one knows the key and the IV themselves, so that a key that comes back on another chain shows too.
//
// A counter that comes after a higher one of the same login and is new itself is no reuse: the client encrypts answers to
// retry receipts beside its other messages, and the wire may see them in another order. It is counted apart. Below what an
// earlier login used it is a chain that went back, whether or not the wire saw the counter before: what that login encrypted it
// also wrote before it ended, and a new one must go on from there. The order is that of the logins and not that in which
// the server came to read them, for it reads the rest of a lost connection beside the next one.

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.mau.fi/libsignal/protocol"
	"go.mau.fi/libsignal/serialize"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
)

var serializer = serialize.NewProtoBufSerializer()

// Sent is one ciphertext that a client sent.
type Sent struct {
	Time      time.Time
	Sender    types.JID // the device, by LID
	Login     int       // which login of the device it was, counted from 1
	Recipient types.JID // the device, by LID, or a group
	MessageID string
	Type      string   // msg, pkmsg or skmsg
	Hash      [32]byte // of the ciphertext
	Chain     string   // what names the sending chain on the wire
	Counter   uint32
	Used      contact.Used // what a recipient derived; empty if none could read it yet
	Read      int          // how many recipients could read it
	Failures  []string     // why others could not

	registrationID uint32 // of the sender, in first messages
	identity       [32]byte
}

// String names a ciphertext.
func (e *Sent) String() string {
	return fmt.Sprintf("%s %s from %s to %s, counter %d", e.Type, e.MessageID, e.Sender, e.Recipient, e.Counter)
}

// Reuse says what was used twice.
type Reuse string

// The kinds of findings.
const (
	// ReusedKey is a message key and IV that encrypted two different messages.
	ReusedKey Reuse = "message key"
	// ReusedCounter is a counter with two different ciphertexts on one sending chain.
	ReusedCounter Reuse = "counter"
	// ReusedChain is a sending chain on which a login began below what an earlier one had used.
	ReusedChain Reuse = "sending chain"
	// ReusedPreKey is the id of a one-time pre-key that was published with two different keys.
	ReusedPreKey Reuse = "pre-key id"
	// RepeatedPreKey is a one-time pre-key that was published again after the client must have taken note of its upload.
	RepeatedPreKey Reuse = "pre-key"
	// ReusedSignedPreKey is the id of a signed pre-key that was published with two different keys.
	ReusedSignedPreKey Reuse = "signed pre-key id"
)

// Finding is something that must not be.
type Finding struct {
	Kind          Reuse
	First, Second *Sent     // nil for pre-keys
	Device        types.JID // whose fault it is
	PreKey        uint32
}

// String describes a finding.
func (f Finding) String() string {
	switch f.Kind { //nolint:exhaustive // the others are used twice
	case ReusedPreKey, ReusedSignedPreKey:
		return fmt.Sprintf("%s %d of %s published with two keys", f.Kind, f.PreKey, f.Device)
	case RepeatedPreKey:
		return fmt.Sprintf("%s %d of %s published again after its upload was noted", f.Kind, f.PreKey, f.Device)
	case ReusedChain:
		return fmt.Sprintf("%s went back between two logins: %s; %s", f.Kind, f.First, f.Second)
	}
	return fmt.Sprintf("%s used twice: %s; %s", f.Kind, f.First, f.Second)
}

// Record is the wire record of a server. It is safe for concurrent use.
type Record struct {
	mu struct {
		sync.Mutex
		sent     []*Sent
		keys     map[string]*Sent   // by key and IV
		counters map[string]*Sent   // by chain and counter
		chains   map[string][]*Sent // those with a counter of their own
		highest  map[string]uint32
		behind   int
		findings []Finding
	}
}

func newRecord() *Record {
	r := &Record{}
	r.mu.keys = make(map[string]*Sent)
	r.mu.counters = make(map[string]*Sent)
	r.mu.chains = make(map[string][]*Sent)
	r.mu.highest = make(map[string]uint32)
	return r
}

// add notes a ciphertext that a client sent in one of its logins, and reports whether it is new: one that is sent again as it was
// has its place already.
func (r *Record) add(sender, recipient types.JID, login int, id, typ string, body []byte) (entry *Sent, isNew bool) {
	e := &Sent{
		Time: time.Now(), Sender: sender, Login: login, Recipient: recipient, MessageID: id, Type: typ, Hash: sha256.Sum256(body),
	}
	if err := e.parse(body); err != nil {
		e.Failures = append(e.Failures, err.Error())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Chain != "" {
		place := string(binary.BigEndian.AppendUint32([]byte(e.Chain), e.Counter))
		if first := r.mu.counters[place]; first == nil {
			r.mu.counters[place] = e
			r.mu.chains[e.Chain] = append(r.mu.chains[e.Chain], e)
		} else if first.Hash == e.Hash {
			first.Login = min(first.Login, login)
			return first, false
		} else {
			r.mu.findings = append(r.mu.findings, Finding{Kind: ReusedCounter, First: first, Second: e, Device: sender})
		}
		if highest, ok := r.mu.highest[e.Chain]; ok && e.Counter < highest {
			r.mu.behind++
		} else {
			r.mu.highest[e.Chain] = e.Counter
		}
	}
	r.mu.sent = append(r.mu.sent, e)
	return e, true
}

// parse reads what the wire shows of a ciphertext.
func (e *Sent) parse(body []byte) (err error) {
	defer func() {
		if cause := recover(); cause != nil { // libsignal's answer to bytes that it cannot parse
			err = fmt.Errorf("malformed: %v", cause)
		}
	}()
	var message *protocol.SignalMessage
	switch e.Type {
	case "skmsg":
		sealed, err := protocol.NewSenderKeyMessageFromBytes(body, serializer.SenderKeyMessage)
		if err != nil {
			return err
		}
		e.Chain, e.Counter = fmt.Sprintf("%s %s %d", e.Sender, e.Recipient, sealed.KeyID()), sealed.Iteration()
		return nil
	case typePreKeyMessage:
		sealed, err := protocol.NewPreKeySignalMessageFromBytes(body, serializer.PreKeySignalMessage, serializer.SignalMessage)
		if err != nil {
			return err
		}
		message = sealed.WhisperMessage()
		e.registrationID, e.identity = sealed.RegistrationID(), sealed.IdentityKey().PublicKey().PublicKey()
	case "msg":
		if message, err = protocol.NewSignalMessageFromBytes(body, serializer.SignalMessage); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown type %q", e.Type)
	}
	ratchet := message.SenderRatchetKey().PublicKey()
	e.Chain, e.Counter = fmt.Sprintf("%s %s %x", e.Sender, e.Recipient, ratchet[:]), message.Counter()
	return nil
}

// read notes what a recipient derived for a ciphertext, or why it could not.
func (r *Record) read(e *Sent, used contact.Used, failure error) {
	if e == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if failure != nil {
		e.Failures = append(e.Failures, failure.Error())
		return
	}
	e.Read++
	if used.CipherKey == nil {
		return
	}
	e.Used = used
	place := string(used.CipherKey) + string(used.IV)
	if first := r.mu.keys[place]; first == nil {
		r.mu.keys[place] = e
	} else if first.Hash != e.Hash {
		r.mu.findings = append(r.mu.findings, Finding{Kind: ReusedKey, First: first, Second: e, Device: e.Sender})
	}
}

// preKeyAgain notes that a device published the id of a pre-key again.
func (r *Record) preKeyAgain(kind Reuse, device types.JID, id uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.findings = append(r.mu.findings, Finding{Kind: kind, Device: device, PreKey: id})
}

// Reused is everything that was used twice or went back, and must not.
func (r *Record) Reused() []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := slices.Clone(r.mu.findings)
	for _, chain := range r.mu.chains {
		found = append(found, wentBack(chain)...)
	}
	return found
}

// wentBack finds what was sent on a chain with a counter below one of an earlier login.
func wentBack(chain []*Sent) (found []Finding) {
	chain = slices.Clone(chain)
	slices.SortStableFunc(chain, func(a, b *Sent) int {
		return cmp.Or(cmp.Compare(a.Login, b.Login), cmp.Compare(a.Counter, b.Counter))
	})
	var before *Sent // the highest of the logins before
	highest := chain[0]
	for i, e := range chain {
		if i > 0 && e.Login > chain[i-1].Login {
			before = highest
		}
		if before != nil && e.Counter < before.Counter {
			found = append(found, Finding{Kind: ReusedChain, First: before, Second: e, Device: e.Sender})
		}
		if e.Counter > highest.Counter {
			highest = e
		}
	}
	return found
}

// Behind is how many ciphertexts came with a counter below one that was seen on the same chain. Those whose counter is
// new are no reuse; see the comment on this file.
func (r *Record) Behind() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.behind
}

// Sent is a copy of the record, in the order in which it came in.
func (r *Record) Sent() []Sent {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Sent, len(r.mu.sent))
	for i, e := range r.mu.sent {
		all[i] = *e
		all[i].Failures = append([]string(nil), e.Failures...)
	}
	return all
}
