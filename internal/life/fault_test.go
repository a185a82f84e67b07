package life

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// lossy are the ways in which a connection may lose something.
var lossy = []struct {
	name  string
	fault waserver.Fault
}{
	{"cut before a message of a contact", waserver.Fault{Action: waserver.CutBefore}},
	{"cut after a message of a contact", waserver.Fault{Action: waserver.CutAfter}},
	{"cut before a receipt came in", waserver.Fault{Direction: waserver.FromClient, Action: waserver.CutBefore, Match: tagged("receipt")}},
	{"a receipt lost", waserver.Fault{Direction: waserver.FromClient, Action: waserver.Lose, Match: tagged("receipt")}},
	{"cut before an ack came in", waserver.Fault{Direction: waserver.FromClient, Action: waserver.CutBefore, Match: tagged("ack")}},
	{"an ack lost", waserver.Fault{Direction: waserver.FromClient, Action: waserver.Lose, Match: tagged("ack")}},
	{"cut before a message came in", waserver.Fault{Direction: waserver.FromClient, Action: waserver.CutBefore}},
	{"cut before a message was acknowledged", waserver.Fault{Direction: waserver.FromClient, Action: waserver.CutAfter}},
	{"cut after a message was acknowledged", waserver.Fault{Direction: waserver.FromClient, Action: waserver.CutAfterAck}},
	{"a message lost", waserver.Fault{Direction: waserver.FromClient, Action: waserver.Lose}},
}

func tagged(tag string) func(*waserver.Device, *waBinary.Node) bool {
	return func(_ *waserver.Device, node *waBinary.Node) bool { return node.Tag == tag }
}

// Whatever a connection loses, the client's frames that were not answered are sent again and the server's stanzas come again; each
// message is there once in the end, on both sides. Under load the handler may see one again that it was not through with when its
// connection ended.
func TestP4P7MessagesArriveOnceThroughLostConnections(t *testing.T) {
	t.Parallel()
	for _, b := range []backend{onPgstore, onSqlstore} {
		for _, grouped := range []bool{false, true} {
			for _, each := range []int{1, 8} {
				t.Run(fmt.Sprintf("%s, group %v, %d at once", b.name, grouped, each), func(t *testing.T) {
					t.Parallel()
					l := paired(t, b)
					x := &exchange{life: l, out: make(map[string]*waserver.Contact), again: each > 1 || !b.ours}
					if each > 1 {
						l.troubles = []string{noConnection}
					}
					for range 2 {
						x.people = append(x.people, l.server.NewContact(waserver.ContactConfig{Devices: 2}))
					}
					if grouped {
						x.group = l.server.NewGroup(waserver.GroupConfig{}, l.account.Contact, x.people[0], x.people[1])
					}
					x.quiet() // the phone has told the client all that a new one has to know
					for _, loss := range lossy {
						x.lose(loss.name, loss.fault, each)
					}
					x.requireOnce()
					if b.ours { // sqlstore's second handler of a message asks for it again
						require.Zero(t, l.server.Stats().RetryReceipts)
					}
				})
			}
		}
	}
}

// lose exchanges some messages, and has a connection lose something meanwhile.
func (x *exchange) lose(name string, what waserver.Fault, messages int) {
	x.t.Helper()
	fault, logins := x.server.Inject(what), x.device.Logins()
	if what.Action == waserver.Lose {
		go func() { // else nothing comes again
			if x.server.Wait(x.ctx, func() bool { return fault.Hits() == 1 }) == nil {
				x.device.Cut()
			}
		}()
	}
	for i := range messages {
		friend := x.people[i%2]
		x.receive(friend, i/2%2, fmt.Sprint("in, ", name, ", ", i))
		if messages == 1 {
			x.quiet()
		}
		x.send(friend, fmt.Sprint("out, ", name, ", ", i))
	}
	x.quiet()
	require.Equal(x.t, 1, fault.Hits(), name)
	require.Equal(x.t, logins+1, x.device.Logins(), name)
}
