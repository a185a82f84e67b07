package waserver

// Simulated phones. A contact is a user whose devices are all simulated; of an account the first device is, the phone that
// pairs the others. They use the server as clients do, with the same nodes, but without a connection: what the server has
// for them goes into an inbox, which a goroutine works off in order and then ends.

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/appstate"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/contact"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
)

// Contact is a user. Its methods may be called at any time from any goroutine.
type Contact struct {
	server  *Server
	pn, lid types.JID
	account *Account // if the user is an account with clients

	// Guarded by Server.mu.
	name, about   string
	hidden        bool // others are told the phone number only
	byNumber      bool // messages go out by phone number
	devices       map[uint16]*Device
	nextDevice    uint16
	settings      map[string]string
	blocked       map[types.JID]bool
	answer        func(Received) *waE2E.Message
	onPeer        func(Received)
	onLinked      func(*Device)
	received      []Received
	duplicates    int
	undecryptable []*Undecryptable
	receipts      []ReceiptSeen
}

// Account is the user of one or more clients: its phone is simulated, and clients are paired with it. The phone shares its app
// state with them.
type Account struct {
	*Contact
	state *appstate.State

	// Guarded by Server.mu.
	initial *history.History // what new clients are sent, or nil
	chunks  map[string]chunk // of all histories that were sent, by their path
}

// Received is a message that a simulated phone could read.
type Received struct {
	Time    time.Time
	Device  types.JID // the device that got it, by LID
	Sender  types.JID // the device that sent it, by LID
	Chat    types.JID // the group, or the user at the other end
	ID      string
	Text    string // the conversation text, if that is what it is
	Message *waE2E.Message
	FromMe  bool   // another device of the same user sent it
	Peer    bool   // it is for the phone itself
	Type    string // of the ciphertext: msg, pkmsg or skmsg
	Retry   int    // which answer to a retry receipt it was, 0 if none
}

// Undecryptable is a message that a simulated phone could not read at first.
type Undecryptable struct {
	Device, Sender types.JID // by LID
	Chat           types.JID
	ID             string
	Err            error // the first failure
	Attempts       int   // how often it came and could not be read; [contact.ErrDuplicate] is not asked for again
	Recovered      bool  // it came again and could be read
}

// ReceiptSeen is a receipt that a simulated phone got.
type ReceiptSeen struct {
	Device, From types.JID // by LID
	ID, Type     string
}

// phone is what simulates a device.
type phone struct {
	device *Device
	user   *Contact
	sim    *contact.Device

	inbox   []*stanza // guarded by Server.mu
	working bool      // likewise

	sending sync.Mutex // held from the encryption of a message until it is on its way
	sent    map[string]sentMessage
	knows   map[types.JID]map[*Device]bool // which devices have our sender key, by group
	retries map[string]int                 // of messages that could not be read; used by the worker only
	read    map[string]bool                // messages that could be read; likewise
}

// ContactConfig says how a contact is. Its zero value is a contact with one device.
type ContactConfig struct {
	Number  string // phone number; defaults to one that nobody has
	Name    string // push name; defaults to one with a number
	Devices int    // defaults to 1
	// HideLID lets others know the contact by phone number only, until [Contact.RevealLID] and [Contact.UseLID].
	HideLID bool
}

// NewContact makes a contact.
func (s *Server) NewContact(cfg ContactConfig) *Contact {
	u := s.newUser(cfg.Number, cfg.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	u.hidden, u.byNumber = cfg.HideLID, cfg.HideLID
	for range max(cfg.Devices, 1) {
		u.addPhoneLocked()
	}
	return u
}

// NewAccount makes an account with a phone and no clients. An empty number is one that nobody has. Of the app state only the
// push name is set.
func (s *Server) NewAccount(number string) *Account {
	a := &Account{
		Contact: s.newUser(number, ""), state: appstate.New(appstate.Config{Media: s.media}), chunks: make(map[string]chunk),
	}
	if _, err := a.state.Apply(appstate.PushName(a.name)); err != nil {
		s.log.Error("waserver: push name of a new account", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.account = a
	a.addPhoneLocked()
	return a
}

func (s *Server) newUser(number, name string) *Contact {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.nextNumber++
	n := strconv.Itoa(s.mu.nextNumber)
	if number == "" {
		number = "4915" + "000000000"[len(n):] + n
	}
	if name == "" {
		name = "Contact " + n
	}
	u := &Contact{
		server: s, name: name,
		pn:      types.NewJID(number, types.DefaultUserServer),
		lid:     types.NewJID("1"+"00000000000000"[len(n):]+n, types.HiddenUserServer),
		devices: make(map[uint16]*Device), settings: make(map[string]string), blocked: make(map[types.JID]bool),
	}
	s.mu.users[u.pn], s.mu.users[u.lid] = u, u
	return u
}

func (u *Contact) addPhoneLocked() *Device {
	d := &Device{user: u, id: u.nextDevice, paired: time.Now()}
	u.nextDevice++
	d.phone = &phone{
		device: d, user: u, sim: contact.NewDevice(d.PN(), d.LID()),
		sent: make(map[string]sentMessage), knows: make(map[types.JID]map[*Device]bool), retries: make(map[string]int), read: make(map[string]bool),
	}
	u.devices[d.id] = d
	return d
}

// primary is the user's own phone.
func (u *Contact) primary() *phone {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	return u.devices[0].phone
}

// PN is the user's JID by phone number.
func (u *Contact) PN() types.JID { return u.pn }

// LID is the user's JID by LID.
func (u *Contact) LID() types.JID { return u.lid }

// User is the user with a phone number or LID, or nil.
func (s *Server) User(jid types.JID) *Contact {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.users[jid.ToNonAD()]
}

// Devices are the user's devices in the order of their ids, simulated ones and clients.
func (u *Contact) Devices() []*Device {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	return u.devicesLocked()
}

// Received is what the user's simulated phones could read, in order.
func (u *Contact) Received() []Received {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	return slices.Clone(u.received)
}

// Undecryptable is what the user's simulated phones could not read at first, with what became of it.
func (u *Contact) Undecryptable() []Undecryptable {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	all := make([]Undecryptable, len(u.undecryptable))
	for i, e := range u.undecryptable {
		all[i] = *e
	}
	return all
}

// Lost is what of that could never be read: it did not come again, or not so that it could be read.
func (u *Contact) Lost() []Undecryptable {
	return slices.DeleteFunc(u.Undecryptable(), func(e Undecryptable) bool { return e.Recovered })
}

// Duplicates is how many messages came to the user's simulated phones that these had read before.
func (u *Contact) Duplicates() int {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	return u.duplicates
}

// Receipts are the receipts that the user's simulated phones got.
func (u *Contact) Receipts() []ReceiptSeen {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	return slices.Clone(u.receipts)
}

// WaitReceived waits for the first message that fits and returns it.
func (u *Contact) WaitReceived(ctx context.Context, fits func(Received) bool) (Received, error) {
	var found Received
	next := 0
	err := u.server.wait(ctx, func() bool {
		for ; next < len(u.received); next++ {
			if fits(u.received[next]) {
				found = u.received[next]
				return true
			}
		}
		return false
	})
	return found, err
}

// Text fits messages with a text.
func Text(text string) func(Received) bool {
	return func(r Received) bool { return r.Text == text }
}

// Answer lets the user's own phone answer each message with what the function makes of it; nil answers nothing. The answer
// goes to where the message came from. Messages of the user's other devices, and what is no message but control, are not
// answered.
func (u *Contact) Answer(answer func(Received) *waE2E.Message) {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	u.answer = answer
}

// OnPeer has a function called for each message that a client of the account sends to the account's own phone, in order. What
// asks for keys or recovery of app state is answered before.
func (a *Account) OnPeer(do func(Received)) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.onPeer = do
}

// OnLinked has a function called, in a goroutine of its own, when a new client of the account has logged in for the first time
// and takes messages. The phone has sent it the keys of the app state by then.
func (a *Account) OnLinked(do func(*Device)) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.onLinked = do
}

// Echo lets the user's own phone answer each text with the same text behind a prefix.
func (u *Contact) Echo(prefix string) {
	u.Answer(func(r Received) *waE2E.Message {
		if r.Text == "" {
			return nil
		}
		return Conversation(prefix + r.Text)
	})
}

// Conversation is a message with a text.
func Conversation(text string) *waE2E.Message { return &waE2E.Message{Conversation: &text} }

// receive puts a stanza into the inbox. Server.mu must be held.
func (p *phone) receive(st *stanza) {
	p.inbox = append(p.inbox, st)
	if !p.working {
		p.working = p.user.server.spawnLocked(p.work)
	}
}

// busy reports whether there is work for the phone. Server.mu must be held.
func (p *phone) busy() bool { return p.working }

// work works off the inbox.
func (p *phone) work() {
	s := p.user.server
	for {
		s.mu.Lock()
		inbox := p.inbox
		p.inbox = nil
		if len(inbox) == 0 || s.mu.closed {
			p.working = false
			s.happenedLocked()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, st := range inbox {
			switch st.node.Tag {
			case "message":
				p.message(st)
			case "receipt":
				p.receipt(&st.node)
			}
		}
	}
}
