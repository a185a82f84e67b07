package pgstore_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// Many that hold one session, and what happens to it while they do.

func (t *talk) deleteSession() {
	require.NoError(t, t.ours.Device.Sessions.DeleteSession(ctx, t.address()))
}

// Any number of retry receipts is answered at once.
func TestP4OfManyAnswersWithOneMessageKeyOneLeaves(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	var answers []call
	for range 200 {
		answers = append(answers, talk.begin(anAnswer, talk.answerTo(talk.to)))
	}
	left := 0
	for _, answer := range answers {
		if answer.end() == nil {
			left++
		}
	}
	require.Equal(t, 1, left)
}

// Each of our messages to a group leaves a reader behind of which no Put comes.
func TestP4AnswersAreKnownAfterManyOtherReads(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	_, err := talk.ours.JoinGroup(ctx, talk.group)
	require.NoError(t, err)
	one, two := talk.begin(anAnswer, talk.answerTo(talk.to)), talk.begin(anAnswer, talk.answerTo(talk.to))
	for range 200 {
		_, err := talk.ours.SendGroup(ctx, talk.group, []byte("to all"))
		require.NoError(t, err)
	}
	require.NoError(t, one.end())
	talk.refused(two.end())
}

// While a send to many goes on, so many answers wait for their turn as there are devices.
func TestP4AnswersThatWaitedForABigSendAreKnown(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	all := []types.JID{talk.to}
	for _, p := range memoryPeers(70) {
		signaltest.Meet(t, p, talk.ours)
		all = append(all, p.Address())
	}
	sending := talk.begin(aSend, talk.sendTo(all...))
	held, others := make(chan call, 2), make(chan error, len(all)-1)
	for range 2 {
		go func() { held <- talk.begin(anAnswer, talk.answerTo(talk.to)) }()
	}
	for _, to := range all[1:] {
		go func() { others <- talk.answerTo(to)(ctx) }()
	}
	require.NoError(t, sending.end())
	one, two := <-held, <-held
	for range all[1:] {
		require.NoError(t, <-others)
	}
	require.NoError(t, one.end())
	talk.refused(two.end())
}

func TestP4ASessionThatIsDeletedTwiceForgetsNoSend(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	one, two := talk.begin(anAnswer, talk.answerTo(talk.to)), talk.begin(aSend, talk.sendTo(talk.to))
	require.NoError(t, one.end())
	talk.deleteSession()
	talk.do(talk.read(talk.writtenAnew()))
	talk.deleteSession()
	talk.refused(two.end())
}

func TestP4AChainThatWasSteppedOverOftenAndThenDeletedIsNotUsed(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	one, two := talk.begin(anAnswer, talk.answerTo(talk.to)), talk.begin(aSend, talk.sendTo(talk.to))
	require.NoError(t, one.end())
	for range 6 {
		talk.do(talk.read(talk.written()), talk.send)
	}
	talk.deleteSession()
	talk.refused(two.end())
}

// Without the event buffer it may not be clear which version a decrypt had read; that all of them are gone is.
func TestP9AnUnclearDecryptBringsNoDeletedSessionBack(t *testing.T) {
	t.Parallel()
	talk := newUnbufferedTalk(t)
	talk.introduce()
	for range 3 {
		talk.do(talk.read(talk.written()))
		_, err := talk.ours.Device.Sessions.GetSession(ctx, talk.address()) // an answer that comes to nothing
		require.NoError(t, err)
	}
	reading := talk.begin(anAnswer, talk.read(talk.written()))
	talk.do(talk.send, talk.send)
	talk.deleteSession()
	require.NoError(t, reading.end())
	require.Empty(t, talk.stored())
}

// A send that found no session fetches a bundle; the LID that becomes known meanwhile finds the new session all the same.
func TestASessionThatIsBegunWhileItsNumberIsMigratedIsMoved(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	pn, lid := *talk.theirs.Device.ID, talk.theirs.Address()
	sessions := talk.ours.Device.Sessions
	_, err := sessions.GetManySessions(ctx, []string{pn.SignalAddress().String()})
	require.NoError(t, err)
	elsewhere := memoryPeers(1)[0]
	_, err = elsewhere.Meet(ctx, talk.theirs, []byte("first"))
	require.NoError(t, err)
	begun, err := elsewhere.Device.Sessions.GetSession(ctx, lid.SignalAddress().String())
	require.NoError(t, err)
	require.NoError(t, sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD()))
	require.NoError(t, sessions.PutManySessions(ctx, map[string][]byte{pn.SignalAddress().String(): begun}))
	require.NoError(t, talk.ours.Device.Identities.PutIdentity(ctx, pn.SignalAddress().String(), [32]byte{1}))
	require.NoError(t, sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD()), "every later message asks again")
	has, err := sessions.HasSession(ctx, lid.SignalAddress().String())
	require.NoError(t, err)
	require.True(t, has)
	trusted, err := talk.ours.Device.Identities.IsTrustedIdentity(ctx, lid.SignalAddress().String(), [32]byte{2})
	require.NoError(t, err)
	require.False(t, trusted, "the identity was moved, too")
}

// Distribution messages are taken in outside of transactions.
func TestTwoFirstSenderKeysOfOneSenderAreBothKept(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	var joins []func(context.Context) error
	var letters []letter
	for range 2 {
		distribution, err := talk.theirs.JoinGroup(ctx, talk.group)
		require.NoError(t, err)
		joins = append(joins, func(ctx context.Context) error {
			return talk.ours.Welcome(ctx, talk.group, talk.theirs.Address(), distribution)
		})
		node, err := talk.theirs.SendGroup(ctx, talk.group, []byte("to all"))
		require.NoError(t, err)
		letters = append(letters, letter{talk.theirs.Address(), "to all", node})
		talk.theirs.Device.SenderKeys = memoryPeers(1)[0].Device.SenderKeys // it has lost its key
	}
	first := talk.begin("PutSenderKey", joins[0])
	talk.do(joins[1])
	require.NoError(t, first.end())
	for _, l := range letters {
		got, err := talk.ours.ReceiveGroup(ctx, talk.group, l.from, l.node)
		require.NoError(t, err)
		require.Equal(t, l.text, string(got))
	}
}

// One record of a send was changed meanwhile, and another call of GetManySessions has read the changes and come to nothing.
func TestP4ASendToManyIsNotTakenForALaterOne(t *testing.T) {
	t.Parallel()
	for range 10 { // whichever record is looked at first
		talk := introduced(t)
		other := memoryPeers(1)[0]
		signaltest.Meet(t, other, talk.ours)
		sending := talk.begin(aSend, talk.sendTo(talk.to, other.Address()))
		talk.do(talk.answerTo(talk.to))
		_, err := talk.ours.Device.Sessions.GetManySessions(ctx, []string{talk.address(), other.Address().SignalAddress().String()})
		require.NoError(t, err)
		talk.refused(sending.end())
	}
}
