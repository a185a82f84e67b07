package life

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	waBinary "go.mau.fi/whatsmeow/binary"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// A contact that cannot read a message asks for it again, and the client is killed before it hears of it. The one that is started
// next knows what was sent only if it was stored.
func TestP3AMessageIsSentAgainAfterARestartIfItWasStored(t *testing.T) {
	t.Parallel()
	for _, stored := range []bool{true, false} {
		for _, b := range []backend{onPgstore, onSqlstore} {
			t.Run(fmt.Sprintf("%s, stored %v", b.name, stored), func(t *testing.T) {
				t.Parallel()
				l := paired(t, b, func(s *settings) { s.RetryStore = stored })
				friend := l.server.NewContact(waserver.ContactConfig{})
				l.talk(friend, "hello")
				require.NoError(t, l.server.WaitIdle(l.ctx))
				friend.Devices()[0].ForgetSession(l.device)
				asked := l.server.Inject(waserver.Fault{Action: waserver.Hold, Match: func(_ *waserver.Device, node *waBinary.Node) bool {
					return node.Tag == "receipt" && node.Attrs["type"] == "retry"
				}})
				l.say(friend.LID(), "cannot be read")
				require.NoError(t, l.server.Wait(l.ctx, func() bool { return asked.Hits() == 1 }))
				if b.ours {
					l.do(command{Do: doFlush})
				}
				l.kill()
				asked.Release()
				l.start()
				l.await(ofKind(saidConnected))
				l.settle()
				require.Equal(t, stored, got([]*waserver.Contact{friend}, "cannot be read"))
				l.talk(friend, "hello again")
				l.requireOnePairing()
				l.requireNothingReused()
			})
		}
	}
}
