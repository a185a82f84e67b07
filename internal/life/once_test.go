package life

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// exchange is a number of messages that go both ways at once, and to whom.
type exchange struct {
	*life
	people   []*waserver.Contact
	group    *waserver.Group // nil for direct messages
	byNumber bool            // the client knows people by phone number
	again    bool            // the handler may see a message again: it is not through with it when its connection ends
	in       []string
	out      map[string]*waserver.Contact // to whom; nil for all
	spoilt   map[string]bool              // texts of either side that the other one cannot read at first, since it has lost what it needs
	pending  []<-chan event
}

// receive lets a device of one of the people send a text.
func (x *exchange) receive(from *waserver.Contact, device int, text string) {
	x.t.Helper()
	to := x.account.LID()
	if x.group != nil {
		to = x.group.JID()
	}
	_, err := from.Devices()[device].Send(to, waserver.Conversation(text))
	require.NoError(x.t, err)
	x.in = append(x.in, text)
}

// send lets the child send a text, and does not wait.
func (x *exchange) send(to *waserver.Contact, text string) {
	x.t.Helper()
	cmd := command{Do: doSay, Text: text}
	if x.group != nil {
		cmd.To, to = x.group.JID(), nil
	} else if cmd.To = to.LID(); x.byNumber {
		cmd.To = to.PN()
	}
	x.out[text] = to
	x.pending = append(x.pending, x.begin(cmd))
}

// sent waits until all that was to be sent is out.
func (x *exchange) sent() {
	x.t.Helper()
	for _, done := range x.pending {
		select {
		case e := <-done:
			require.Empty(x.t, e.Error)
		case <-x.ctx.Done():
			require.Fail(x.t, "a message was not sent")
		}
	}
	x.pending = nil
}

// requireOnce requires that each message arrived once: in the handler, and on every device that it was for. Of what contacts did
// not get on sqlstore it says how much it was: the record holds what they could not read.
func (x *exchange) requireOnce() {
	x.t.Helper()
	x.sent()
	err := x.server.Wait(x.ctx, func() bool { return len(x.handled()) >= len(x.in) })
	require.NoError(x.t, err, "%d of %d came", len(x.handled()), len(x.in))
	x.settle()
	handled := x.handled()
	again := 0
	for _, text := range x.in {
		again += handled[text] - 1
		require.NotZero(x.t, handled[text], text)
	}
	if !x.again {
		require.Zero(x.t, again, "messages that were handled again")
	}
	require.Len(x.t, handled, len(x.in))
	lost := 0
	for text, to := range x.out {
		people := x.people
		if to != nil {
			people = []*waserver.Contact{to}
		}
		for _, who := range people {
			got := make(map[string]int)
			for _, r := range who.Received() {
				if r.Text == text {
					got[r.Device.String()]++
				}
			}
			for _, d := range who.Devices() {
				n := got[d.LID().String()]
				if n == 0 && !x.backend.ours {
					lost++
					continue
				}
				require.Equal(x.t, 1, n, "%q on %s", text, d.LID())
			}
		}
	}
	stats := x.server.Stats()
	if x.backend.ours {
		refused := x.events(func(e event) bool { return e.Kind == saidTrouble && e.Cause == keyUsed })
		require.LessOrEqual(x.t, len(refused), stats.RetryAnswers, "sends that were refused: a retry answer can be in the way of one")
		x.t.Logf("merged and refused: %+v", ask[struct{ Merged, Refused int }](x.life, command{Do: doStats}))
	}
	x.t.Logf("%d in, %d handled again, %d out, %d ciphertexts, %d retry receipts of the client, %d answers of it to such, %d never read by their recipients",
		len(x.in), again, len(x.out), stats.Ciphertexts, stats.RetryReceipts, stats.RetryAnswers, lost)
	x.requireOnePairing()
	x.requireNothingReused()
	x.requireNobodyLeftOut()
	if x.backend.ours {
		x.requireFewRetries()
	}
}

// requireFewRetries requires that nothing was asked for again but what was spoilt, by a contact once and by the client twice: its first
// retry receipt has no keys.
func (x *exchange) requireFewRetries() {
	x.t.Helper()
	const byClient = 2
	texts := make(map[string]string) // by message id
	for _, who := range x.people {
		for _, r := range who.Received() {
			texts[r.ID] = r.Text
		}
	}
	for _, e := range x.events(ofKind(saidMessage)) {
		texts[e.ID] = e.Text
	}
	spoilt := 0
	for _, who := range x.people {
		for _, e := range who.Undecryptable() {
			if e.Sender != x.device.LID() {
				continue // a contact's own devices tell each other what they send
			}
			spoilt++
			require.True(x.t, x.spoilt[texts[e.ID]] && e.Recovered && e.Attempts == 1, "%q could not be read: %+v", texts[e.ID], e)
		}
	}
	asked := make(map[string]int)
	for _, e := range x.events(ofKind(saidUndecryptable)) {
		asked[texts[e.ID]]++
		require.True(x.t, x.spoilt[texts[e.ID]] && asked[texts[e.ID]] <= byClient, "%q could not be read by the client", texts[e.ID])
	}
	stats := x.server.Stats()
	require.LessOrEqual(x.t, stats.RetryReceipts, byClient*len(asked))
	require.LessOrEqual(x.t, stats.RetryAnswers, spoilt)
}

func TestP1P4DirectMessagesArriveOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		rng := random(t)
		l := paired(t, b)
		l.troubles = []string{keyUsed}
		x := &exchange{life: l, out: make(map[string]*waserver.Contact), spoilt: make(map[string]bool)}
		for i := range 10 {
			x.people = append(x.people, l.server.NewContact(waserver.ContactConfig{Devices: 1 + i%3}))
		}
		began := 1 // others who began a session with the client: its phone, and contacts that write first
		faults := []waserver.Action{waserver.DeliverTwice, waserver.Late, waserver.Swap}
		for i := range 100 {
			friend := x.people[i%len(x.people)]
			device, inFirst := rng.IntN(len(friend.Devices())), (i/len(x.people)+i)%2 == 0 // whoever begins sends the first message
			in, out := fmt.Sprint("in ", i), fmt.Sprint("out ", i)
			switch i {
			case 30, 60: // the contact begins anew, and cannot read what comes until it was asked for again
				x.quiet()
				friend.Devices()[0].ForgetSession(l.device)
				inFirst, x.spoilt[out] = false, true
			case 45: // likewise with a new identity
				x.quiet()
				friend.Reinstall(friend.Devices()[0], true)
				inFirst, x.spoilt[out] = false, true
			case 52, 75: // the client begins anew
				x.quiet()
				l.do(command{Do: doForget, To: friend.LID()})
				device, inFirst, x.spoilt[in] = 0, true, true
			}
			if i%10 == 7 {
				l.server.Inject(waserver.Fault{Action: faults[rng.IntN(len(faults))], Delay: 100 * time.Millisecond})
			}
			if inFirst {
				if i < len(x.people) {
					began++
				}
				x.receive(friend, device, in)
				x.send(friend, out)
			} else {
				x.send(friend, out)
				x.receive(friend, device, in)
			}
			if x.spoilt[in] || x.spoilt[out] {
				x.quiet() // so that nothing else is
			}
			if i%len(x.people) == len(x.people)-1 {
				x.sent() // so many at once are enough
			}
		}
		x.requireOnce()
		first := 0
		for _, sent := range l.server.Record().Sent() {
			if sent.Type == "pkmsg" {
				first++
			}
		}
		require.NotZero(t, first)
		require.NotZero(t, l.server.Stats().RetryAnswers)
		require.NotZero(t, l.server.Stats().RetryReceipts)
		require.Equal(t, 1+len(x.people)/2, began)
		stats := l.server.Stats()
		require.GreaterOrEqual(t, stats.PreKeysHandedOut, began)
		require.Equal(t, stats.PreKeysUploaded-stats.PreKeysHandedOut, l.device.PreKeys(), "each was handed out once")
	})
}

// quiet waits until nothing is on its way, so that what a contact loses next is not what it needs for what was sent before.
func (x *exchange) quiet() {
	x.t.Helper()
	x.sent()
	x.settle()
}

func TestP1P4GroupMessagesArriveOnce(t *testing.T) {
	t.Parallel()
	for _, size := range []struct{ devices, messages int }{{3, 60}, {50, 34}, {512, 6}} {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(fmt.Sprintf("%d devices on %s", size.devices, b.name), func(t *testing.T) {
				t.Parallel()
				l := paired(t, b)
				l.troubles = []string{keyUsed}
				x := &exchange{life: l, out: make(map[string]*waserver.Contact), spoilt: make(map[string]bool)}
				rest := size.devices - 2 // the phone's and the client's
				for ; rest > 0; rest -= 2 {
					x.people = append(x.people, l.server.NewContact(waserver.ContactConfig{Devices: min(2, rest)}))
				}
				x.group = l.server.NewGroup(waserver.GroupConfig{}, slices.Concat([]*waserver.Contact{l.account.Contact}, x.people)...)
				started := time.Now()
				for i := range size.messages / 2 {
					friend := x.people[i*7%len(x.people)]
					if i == size.messages/4 {
						x.quiet()
						friend.Reinstall(friend.Devices()[0], true)
						x.spoilt[fmt.Sprint("out ", i)] = true
						x.send(nil, fmt.Sprint("out ", i))
						x.quiet() // it has asked for it again
						x.receive(friend, 0, fmt.Sprint("in ", i))
						continue
					}
					x.send(nil, fmt.Sprint("out ", i))
					x.receive(friend, 0, fmt.Sprint("in ", i))
					if size.devices > 100 {
						x.sent()
					}
				}
				x.requireOnce()
				t.Logf("%v", time.Since(started))
				require.NotZero(t, l.server.Stats().RetryAnswers)
			})
		}
	}
}
