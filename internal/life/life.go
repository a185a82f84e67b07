package life

// A life: a device on a database of its own, the child that runs its client now, the server, and what was seen.

import (
	"cmp"
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var (
	roundsFlag  = flag.Int("life.rounds", 10, "how often the client is killed")
	awayFlag    = flag.Duration("life.away", 3*time.Second, "how long the database is away")
	handOvers   = flag.Int("life.handovers", 8, "how often an instance is handed over to another process")
	jumpsFlag   = flag.Bool("life.jumps", false, "clocks of the processes among which an instance is handed over jump by hours; needs the go command, and minutes to build")
	historyFlag = flag.Int("life.history", 20_000, "how many messages, people and tokens a history has")
	seedFlag    = flag.Uint64("life.seed", 0, "what random tests draw from; 0 is something new each time")
)

const (
	patience = 3 * time.Minute        // two cores are shared with much else
	tick     = 100 * time.Millisecond // between looks at the database
)

// backend is a store under test.
type backend struct {
	name string
	ours bool
}

var (
	onPgstore  = backend{name: "pgstore", ours: true}
	onSqlstore = backend{name: "sqlstore"}
)

// onBoth runs a test on pgstore and on the reference.
func onBoth(t *testing.T, test func(t *testing.T, b backend)) {
	t.Parallel()
	for _, b := range []backend{onPgstore, onSqlstore} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			test(t, b)
		})
	}
}

// life is a device's life.
type life struct {
	*process // the child that lives now

	t       testing.TB
	ctx     context.Context
	backend backend
	set     settings
	dsn     string // of the database; the child's may lead through a proxy
	db      *database
	server  *waserver.Server
	account *waserver.Account
	device  *waserver.Device // once paired

	started  int      // children
	troubles []string // causes that the test gives the child's sends to fail for a while
	warnings []string // parts of lines that the test gives somebody cause to log
	anything bool     // the mechanism is switched off, and anything may go wrong
	seen     struct {
		sync.Mutex
		events  []event
		from    int // where await begins
		changed chan struct{}
	}
}

// newLife is a life before its beginning: the settings are those that we advise, unless they are edited.
func newLife(t testing.TB, b backend, edit ...func(*settings)) *life {
	t.Helper()
	return newLifeOn(t, b, pgtest.Open(t), edit...)
}

// newLifeOn is a life on a certain database.
func newLifeOn(t testing.TB, b backend, dsn string, edit ...func(*settings)) *life {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience+time.Duration(*roundsFlag)*5*time.Second+time.Duration(*handOvers)*10*time.Second+3**awayFlag)
	t.Cleanup(cancel)
	l := &life{t: t, ctx: ctx, backend: b, dsn: dsn}
	l.db = newDatabase(t, b, l.dsn)
	l.seen.changed = make(chan struct{})
	t.Cleanup(l.requireNoTrouble)
	t.Cleanup(l.requireNoWarning)
	var err error
	log := slog.New(&serverLog{slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}), l})
	l.server, err = waserver.New(waserver.Config{Grace: 300 * time.Millisecond, Logger: log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.server.Close()) })
	l.account = l.server.NewAccount("")
	l.set = settings{Endpoint: l.server.Endpoint(), DSN: l.dsn, Ours: b.ours, Buffer: true, Synchronous: true, RetryStore: true, Durable: true}
	for _, change := range edit {
		change(&l.set)
	}
	l.anything = l.set.Off
	return l
}

// open opens another container on the database.
func (l *life) open() container {
	l.t.Helper()
	var c container
	var err error
	if l.backend.ours {
		c, err = pgstore.New(l.ctx, l.dsn, nil)
	} else {
		c, err = openSqlstore(l.ctx, l.dsn, nil, nil)
	}
	require.NoError(l.t, err)
	return c
}

// start starts a child, which is the one that lives from now on.
func (l *life) start() {
	l.t.Helper()
	l.started++
	l.look()
	l.process = startProcess(l.t, l.started, l.set, l.hear)
}

// paired is a life that has begun: the device is paired by QR code and logged in.
func paired(t testing.TB, b backend, edit ...func(*settings)) *life {
	t.Helper()
	l := newLife(t, b, edit...)
	l.start()
	l.pair()
	return l
}

// pair pairs the child with the account by QR code and waits until it has logged in.
func (l *life) pair() {
	l.t.Helper()
	l.scan()
	l.await(ofKind(saidConnected))
	require.NoError(l.t, l.device.WaitConnected(l.ctx))
}

// scan lets the account's phone scan the QR code that the child shows.
func (l *life) scan() {
	l.t.Helper()
	qr := l.await(ofKind(saidQR))
	device, err := l.account.Scan(l.ctx, qr.Text)
	require.NoError(l.t, err)
	l.device = device
}

// pairAgain pairs a child whose device was removed. One that did not learn of it in its last life does so now, and is given a
// new device.
func (l *life) pairAgain() {
	l.t.Helper()
	first := l.await(func(e event) bool { return e.Kind == saidQR || e.Kind == saidLoggedOut })
	if first.Kind == saidLoggedOut {
		l.requireNoDevice()
		l.look()
		l.do(command{Do: doReopen})
	}
	l.pair()
}

// restart kills the child and starts another one, which logs in.
func (l *life) restart() {
	l.t.Helper()
	l.kill()
	l.start()
	l.await(ofKind(saidConnected))
}

// look lets await see from now on only what comes from now on. A new child begins with it.
func (l *life) look() {
	l.seen.Lock()
	defer l.seen.Unlock()
	l.seen.from = len(l.seen.events)
}

func (l *life) hear(e event) {
	l.seen.Lock()
	defer l.seen.Unlock()
	l.seen.events = append(l.seen.events, e)
	close(l.seen.changed)
	l.seen.changed = make(chan struct{})
}

// events are those that fit, of all children.
func (l *life) events(fits func(event) bool) []event {
	l.seen.Lock()
	defer l.seen.Unlock()
	return matching(l.seen.events, fits)
}

func matching(events []event, fits func(event) bool) []event {
	var found []event
	for _, e := range events {
		if fits(e) {
			found = append(found, e)
		}
	}
	return found
}

// await waits for the first event that fits, of the child that lives now.
func (l *life) await(fits func(event) bool) event {
	l.t.Helper()
	for ended := false; ; {
		l.seen.Lock()
		changed, said := l.seen.changed, l.seen.events[l.seen.from:]
		l.seen.Unlock()
		if found := matching(said, fits); len(found) > 0 {
			return found[0]
		}
		require.False(l.t, ended, "the child ended, and said %v", said)
		select {
		case <-changed:
		case <-l.over:
			ended = true
		case <-l.ctx.Done():
			require.Fail(l.t, "an event did not come", "the child said %v", said)
		}
	}
}

// ofKind fits events of a kind.
func ofKind(kind string) func(event) bool {
	return func(e event) bool { return e.Kind == kind }
}

// message fits the handler's event for a text.
func message(text string) func(event) bool {
	return func(e event) bool { return e.Kind == saidMessage && e.Text == text }
}

// handled is how often each text came to the handler.
func (l *life) handled() map[string]int {
	count := make(map[string]int)
	for _, e := range l.events(ofKind(saidMessage)) {
		count[e.Text]++
	}
	return count
}

// say lets the child send a text.
func (l *life) say(to types.JID, text string) {
	l.t.Helper()
	l.do(command{Do: doSay, To: to, Text: text})
}

// hello lets the contact's phone send a text to the account and waits until the child has handled it.
func (l *life) hello(from *waserver.Contact, text string) {
	l.t.Helper()
	_, err := from.SendText(l.account.LID(), text)
	require.NoError(l.t, err)
	l.await(message(text))
}

// secret lets the contact's phone send a text with a message secret, and waits until the child has handled it.
func (l *life) secret(from *waserver.Contact) {
	l.t.Helper()
	const text = "with a secret"
	m := waserver.Conversation(text)
	m.MessageContextInfo = &waE2E.MessageContextInfo{MessageSecret: make([]byte, 32)}
	_, err := from.Send(l.account.LID(), m)
	require.NoError(l.t, err)
	l.await(message(text))
}

// got reports whether all devices of all these people have got a text.
func got(people []*waserver.Contact, text string) bool {
	for _, who := range people {
		received := who.Received()
		for _, d := range who.Devices() {
			if !slices.ContainsFunc(received, func(r waserver.Received) bool { return r.Text == text && r.Device == d.LID() }) {
				return false
			}
		}
	}
	return true
}

// heard waits until the contact has got a text on all its devices.
func (l *life) heard(who *waserver.Contact, text string) {
	l.t.Helper()
	for _, d := range who.Devices() {
		_, err := who.WaitReceived(l.ctx, func(r waserver.Received) bool { return r.Text == text && r.Device == d.LID() })
		require.NoError(l.t, err, "%s did not get %q", d.LID(), text)
	}
}

// talk lets the account and a contact exchange a text each.
func (l *life) talk(with *waserver.Contact, text string) {
	l.t.Helper()
	l.hello(with, "in: "+text)
	l.say(with.LID(), "out: "+text)
	l.heard(with, "out: "+text)
}

// settle waits until the client is logged in and has acknowledged everything, and nothing is on its way.
func (l *life) settle() {
	l.t.Helper()
	settled := func() bool {
		stanzas, _ := l.device.Pending()
		return stanzas == 0 && l.device.Connected()
	}
	for again := true; again; again = !settled() { // what the contacts had to do may have come to the client meanwhile
		require.NoError(l.t, l.server.Wait(l.ctx, settled))
		require.NoError(l.t, l.server.WaitIdle(l.ctx))
	}
}

// acknowledgedAndMissing is what the client has acknowledged and is not in the database, now that it is dead, by the keys of the event
// buffer. What it had written to its connection comes in first.
func (l *life) acknowledgedAndMissing() map[string]bool {
	l.t.Helper()
	require.NoError(l.t, l.server.Wait(l.ctx, func() bool { return !l.device.Connected() }))
	require.NoError(l.t, l.server.WaitPhones(l.ctx))
	stored, missing := l.db.buffered(), make(map[string]bool)
	for _, message := range l.device.Acknowledged() {
		if key := base64.RawURLEncoding.EncodeToString(message.EventKey[:]); message.Read && stored[key] == 0 {
			missing[key] = true
		}
	}
	return missing
}

// random is what a test draws from. The seed is logged.
func random(t testing.TB) *rand.Rand {
	seed := cmp.Or(*seedFlag, rand.Uint64())
	t.Logf("-life.seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// requireOnePairing requires that the device was paired once and never refused.
func (l *life) requireOnePairing() {
	l.t.Helper()
	stats := l.server.Stats()
	require.Equal(l.t, 1, stats.Pairings, "pairings")
	require.Equal(l.t, 1, stats.QRCodes, "connections with QR codes")
	require.Zero(l.t, stats.RefusedLogins, "refused logins")
	require.Zero(l.t, stats.BadIdentities, "bad identities")
	require.Empty(l.t, stats.UnknownNodes)
	require.Empty(l.t, stats.UnknownIQs)
}

// requireNobodyLeftOut requires that on pgstore the client has encrypted each message for all devices that it was for.
func (l *life) requireNobodyLeftOut() {
	l.t.Helper()
	if l.backend.ours {
		require.Zero(l.t, l.server.Stats().PHashMismatches, "messages with other recipients than there are")
	}
}

// requireNoTrouble requires that on pgstore no send failed, unless the test gave cause to. It says how many did, for which cause.
func (l *life) requireNoTrouble() {
	causes := make(map[string]int)
	for _, e := range l.events(ofKind(saidTrouble)) {
		causes[e.Cause]++
		if l.backend.ours && !l.anything && !slices.Contains(l.troubles, e.Cause) {
			l.t.Errorf("child %d could not send %q: %s", e.Process, e.Text, e.Error)
		}
	}
	if len(causes) > 0 {
		l.t.Logf("sends that failed, by cause: %v", causes)
	}
}

// requireNoKeyTwice requires that no message key was used twice. A zombie may still send on counters that its own rows had reserved: they are
// below what its successor has used since, and nobody else's.
func (l *life) requireNoKeyTwice() {
	l.t.Helper()
	for _, f := range l.server.Record().Reused() {
		require.Equal(l.t, waserver.ReusedChain, f.Kind, "%v", f)
	}
}

// requireNothingReused requires on pgstore that no key was used twice. On sqlstore it says how many were, apart from pre-keys, whose
// ids sqlstore gives out again.
func (l *life) requireNothingReused() {
	l.t.Helper()
	found := l.server.Record().Reused()
	if l.backend.ours {
		require.Empty(l.t, found)
		return
	}
	kinds := make(map[waserver.Reuse]int)
	for _, f := range found {
		kinds[f.Kind]++
	}
	if len(found) > 0 {
		l.t.Log(fmt.Sprint("sqlstore used twice: ", kinds))
	}
}

// requireNoDevice waits until nothing of the device is in the tables. The client tells that it is logged out before it deletes.
func (l *life) requireNoDevice() {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		for row := range l.db.rows() {
			if l.backend.ours || !strings.HasPrefix(row, "privacy_token ") { // sqlstore leaves them behind
				return false
			}
		}
		return true
	}, patience, tick)
}
