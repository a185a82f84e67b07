package life

// What parent and child say to each other: one JSON object a line, commands on the child's standard input, events on its
// standard output. An event is in the pipe before the child goes on, so a child that is killed has said all that it did.

import (
	"encoding/json"
	"time"

	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// settings say on what a child's client lives and how it is set.
type settings struct {
	Process  int // its number, from 1
	Endpoint waserver.Endpoint
	DSN      string
	Ours     bool   // pgstore, or else sqlstore
	Instance string // the name of the instance on pgstore, if it is to have one

	Buffer      bool   // Client.EnableDecryptedEventBuffer
	Synchronous bool   // Client.SynchronousAck
	Durable     bool   // pgstore.Config.DurableAcks
	Lazy        bool   // pgstore flushes nothing that nobody waits for
	Reserve     int    // pgstore.Config.Reserve, unless it is 0
	Trust       bool   // pgstore.Config.OnTimelineChange
	Leased      bool   // pgstore.Config.Takes
	Witness     string // a file that is pgstore.Config.Witness, if any
	Keys        string // wrapping keys, if pgstore is to encrypt
	Off         bool   // pgstore keeps no message key from coming back, to show that the judge fires
	RetryStore  bool   // Client.UseRetryMessageStore
	Answer      bool   // the handler answers every text of somebody else before it returns

	Idle     bool          // no client before doTake; pgstore only
	Lease    time.Duration // pgstore.Config.Lease
	TakeWait time.Duration // pgstore.Config.TakeWait

	binary   string // the parent's: of the child, unless it is the parent's own
	DieAfter string // the process kills itself a moment after it has called this method of the app-state store
	Count    bool   // statements are counted, on a pool of the child's own
}

// command is what a child is to do.
type command struct {
	ID   int
	Do   string
	To   types.JID `json:",omitzero"`
	Text string    `json:",omitempty"`
}

// The commands. The answer to each is an event of kind done.
const (
	doSend       = "send"       // send a text once
	doSay        = "say"        // send a text, again and again until it is out
	doPairPhone  = "pair phone" // ask for a link code for the phone number in Text
	doLogout     = "logout"
	doReopen     = "reopen"     // fetch the device from the container again, with a new client
	doForget     = "forget"     // lose the session with To
	doContact    = "contact"    // the full name of To
	doChat       = "chat"       // the settings of the chat To
	doMute       = "mute"       // set that the chat To is mute for ever
	doArchive    = "archive"    // archive the chat To
	doRecover    = "recover"    // have the phone mend the collection Text
	doStatements = "statements" // how many statements the store has sent
	doStats      = "stats"      // of the container, pgstore only
	doFlush      = "flush"      // make everything durable
	doTake       = "take"       // fetch the device, wait for its owner to let go, and connect; answers with its moments
	doRelease    = "release"    // disconnect and let go of the instance, likewise
	doMark       = "mark"       // write what the database must never see, under names with Text
	doJump       = "jump"       // have the wall clock go wrong by the duration Text from now on; see jumps_test.go
	doQuit       = "quit"       // disconnect, close the container, end; likewise
)

// event is what a child says.
type event struct {
	Kind    string
	Process int       `json:"-"` // which child said it
	At      time.Time `json:"-"`

	Command int             `json:",omitempty"` // done: which
	Error   string          `json:",omitempty"` // done, trouble
	Value   json.RawMessage `json:",omitempty"` // done: the answer; paired: what the device has saved

	Cause    string    `json:",omitempty"` // trouble: why, if it may pass
	Text     string    `json:",omitempty"`
	ID       string    `json:",omitempty"`
	Chat     types.JID `json:",omitzero"`
	Sender   types.JID `json:",omitzero"`
	FromMe   bool      `json:",omitempty"`
	Retry    int       `json:",omitempty"`
	Implicit bool      `json:",omitempty"` // identity: noticed, not told
	Recovery bool      `json:",omitempty"` // synced: by the phone
}

// The kinds of events.
const (
	saidDone          = "done"
	saidQR            = "qr"
	saidPaired        = "paired"
	saidConnected     = "connected"
	saidMessage       = "message" // said by the handler before it returns, and before it answers
	saidUndecryptable = "undecryptable"
	saidIdentity      = "identity"
	saidLoggedOut     = "logged out"
	saidReplaced      = "replaced"
	saidTrouble       = "trouble" // Text could not be sent
	saidLog           = "log"     // the client, the store or the server warned of Text
	saidSynced        = "synced"  // the collection Text was fetched whole
	saidUnsynced      = "unsynced"
	saidStopped       = "stopped" // the instance, with Error; Value is how many writes were not saved
)

// The causes of trouble that may pass.
const (
	keyUsed      = "key used"      // by a retry answer at the same time
	noConnection = "no connection" // to the server
	notOurs      = "not ours"      // the instance was lost or let go of
)
