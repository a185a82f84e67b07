package life

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// Somebody has a new phone, in the middle of a conversation and while the client is away.
func TestP4AContactWithANewPhoneIsTalkedTo(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		for _, silent := range []bool{false, true} {
			l := paired(t, b)
			friend := l.server.NewContact(waserver.ContactConfig{Devices: 2})
			told := func(e event) bool { return e.Kind == saidIdentity && e.Sender == friend.LID() && !e.Implicit }
			l.talk(friend, "old phone")
			friend.Reinstall(friend.Devices()[0], silent)
			if !silent {
				l.await(told)
			}
			l.hello(friend, "new phone")
			l.await(func(e event) bool { return e.Kind == saidIdentity && e.Sender == friend.LID() && e.Implicit })
			l.say(friend.LID(), "congratulations")
			l.heard(friend, "congratulations")
			l.restart()
			l.talk(friend, "after a kill")

			l.kill()
			friend.Reinstall(friend.Devices()[0], silent)
			l.start()
			l.await(ofKind(saidConnected))
			if !silent {
				l.await(told)
			}
			l.say(friend.LID(), "are you there") // on the old session: the new phone asks for it again
			l.heard(friend, "are you there")
			l.talk(friend, "another phone")
			l.restart()
			l.talk(friend, "after another kill")
			unread := friend.Undecryptable()
			require.Len(t, unread, 1, "what came on the old session")
			require.True(t, unread[0].Recovered)
			require.Equal(t, 1, unread[0].Attempts)
			require.True(t, slices.ContainsFunc(friend.Received(), func(r waserver.Received) bool {
				return r.ID == unread[0].ID && r.Text == "are you there"
			}))
			require.Equal(t, 1, l.server.Stats().RetryAnswers)
			require.Zero(t, l.server.Stats().RetryReceipts)
			require.Empty(t, l.events(ofKind(saidUndecryptable)))
			l.requireNobodyLeftOut()
			l.requireOnePairing()
			l.requireNothingReused()
		}
	})
}

// Somebody who is known by phone number only has a new phone. Told so, the client deletes all that it has of the old one and its
// owner's other devices, and of nobody else.
func TestP9AContactKnownByNumberHasANewPhone(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", killed), func(t *testing.T) {
			onBoth(t, func(t *testing.T, b backend) {
				l := paired(t, b)
				friend := l.server.NewContact(waserver.ContactConfig{HideLID: true, Devices: 2})
				other := l.server.NewContact(waserver.ContactConfig{HideLID: true})
				write := func(from *waserver.Device, text string) {
					_, err := from.Send(l.account.LID(), waserver.Conversation(text))
					require.NoError(t, err)
					l.await(message(text))
				}
				known := func(who *waserver.Contact, want int) {
					for _, d := range who.Devices() {
						for _, kind := range []string{"session", "identity"} {
							require.Equal(t, want, l.db.about(kind, d.PN().SignalAddress().String()), "%s of %s", kind, d.PN())
						}
					}
				}
				for i, d := range slices.Concat(friend.Devices(), other.Devices()) {
					write(d, fmt.Sprint("old phone ", i))
				}
				l.settle()
				l.do(command{Do: doFlush})
				known(friend, 1)
				known(other, 1)

				friend.Reinstall(friend.Devices()[0], false)
				l.await(func(e event) bool { return e.Kind == saidIdentity && e.Sender == friend.PN() && !e.Implicit })
				l.do(command{Do: doFlush})
				if killed {
					l.kill()
				}
				known(friend, 0)
				known(other, 1)
				if killed {
					l.start()
					l.await(ofKind(saidConnected))
				}
				for i, d := range friend.Devices() {
					write(d, fmt.Sprint("new phone ", i))
				}
				l.say(friend.PN(), "congratulations")
				l.heard(friend, "congratulations")
				l.talk(other, "and you")
				require.Empty(t, l.events(func(e event) bool { return e.Kind == saidIdentity && e.Implicit }), "who is new is not another one")
				require.Empty(t, friend.Undecryptable())
				l.requireOnePairing()
				l.requireNothingReused()
				l.requireNobodyLeftOut()
			})
		})
	}
}

// Somebody is known by phone number, and then by LID, while both sides write.
func TestP4AConversationMovesFromPhoneNumberToLID(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", killed), func(t *testing.T) {
			onBoth(t, func(t *testing.T, b backend) {
				l := paired(t, b)
				x := &exchange{life: l, out: make(map[string]*waserver.Contact), byNumber: true}
				friend := l.server.NewContact(waserver.ContactConfig{HideLID: true, Devices: 2})
				x.people = []*waserver.Contact{friend}
				group := l.server.NewGroup(waserver.GroupConfig{Addressing: types.AddressingModePN}, l.account.Contact, friend)
				both := func(phase string) {
					for i := range 20 {
						x.group = []*waserver.Group{nil, group}[i%2]
						x.receive(friend, i/2%2, fmt.Sprint("in ", phase, i))
						x.send(friend, fmt.Sprint("out ", phase, i))
					}
					if x.sent(); killed {
						x.quiet()
						l.restart()
					}
				}
				for i, d := range friend.Devices() {
					for _, x.group = range []*waserver.Group{nil, group} {
						x.receive(friend, i, fmt.Sprintf("from %s, group %v", d.PN(), x.group != nil))
					}
				}
				x.quiet()
				l.do(command{Do: doFlush})
				for _, d := range friend.Devices() { // before the client sends anything, which makes it ask for the LID
					require.Equal(t, 1, l.db.about("session", d.PN().SignalAddress().String()), "of %s", d.PN())
					require.Equal(t, 1, l.db.senderKeys(group.JID(), d.PN()), "of %s", d.PN())
				}
				both("by number ")
				friend.RevealLID()
				both("with the LID ")
				friend.UseLID()
				both("by LID ")
				x.requireOnce()
				l.do(command{Do: doFlush})
				for _, d := range friend.Devices() {
					require.Equal(t, 1, l.db.senderKeys(group.JID(), d.LID()), "of %s", d.LID())
					require.Zero(t, l.db.senderKeys(group.JID(), d.PN()), "of %s", d.PN())
					for _, kind := range []string{"session", "identity"} {
						require.Equal(t, 1, l.db.about(kind, d.LID().SignalAddress().String()), "%s of %s", kind, d.LID())
						require.Zero(t, l.db.about(kind, d.PN().SignalAddress().String()), "%s of %s", kind, d.PN())
					}
				}
			})
		})
	}
}

func TestP4DevicesOfAContactComeAndGo(t *testing.T) {
	onBoth(t, func(t *testing.T, b backend) {
		l := paired(t, b)
		friend := l.server.NewContact(waserver.ContactConfig{})
		l.talk(friend, "one device")
		for i := range 3 {
			tablet := friend.AddDevice(i == 2) // the last one is not announced: the server's hash tells of it
			require.NoError(t, l.server.WaitIdle(l.ctx))
			if i == 2 {
				l.say(friend.LID(), "to those that are known")
			}
			l.talk(friend, fmt.Sprint("two devices ", i))
			if i == 1 {
				l.restart()
			}
			_, err := tablet.Send(l.account.LID(), waserver.Conversation(fmt.Sprint("from the tablet ", i)))
			require.NoError(t, err)
			l.await(message(fmt.Sprint("from the tablet ", i)))
			friend.RemoveDevice(tablet, false)
			require.NoError(t, l.server.WaitIdle(l.ctx))
			l.talk(friend, fmt.Sprint("one device again ", i))
		}
		require.Equal(t, 1, l.server.Stats().PHashMismatches)
		require.Zero(t, l.server.Stats().Undeliverable)
		require.Empty(t, friend.Undecryptable())
		l.requireOnePairing()
		l.requireNothingReused()
	})
}
