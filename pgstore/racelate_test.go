package pgstore_test

import (
	"context"
	"log/slog"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// Puts that come late: what they were made of was deleted, moved or left far behind.

func (t *talk) address() string { return t.to.SignalAddress().String() }

// stored is the session as no send reads it.
func (t *talk) stored() string {
	var record string
	require.NoError(t, t.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
		got, err := t.ours.Device.Sessions.GetSession(inside, t.address())
		record = string(got)
		return err
	}))
	return record
}

// sendTo and answerTo send to an address, whoever reads it.
func (t *talk) sendTo(to ...types.JID) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := t.ours.Send(ctx, to, []byte("x"))
		return err
	}
}

func (t *talk) answerTo(to types.JID) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := t.ours.Answer(ctx, to, []byte("x"))
		return err
	}
}

// introduced is a talk that has begun.
func introduced(t *testing.T) *talk {
	talk := newTalk(t)
	talk.introduce()
	return talk
}

// underNumber is one that has begun under the peer's phone number, and what migrates it.
func underNumber(talk *talk) (pn, lid types.JID, migrate func(context.Context) error) {
	pn, lid = *talk.theirs.Device.ID, talk.theirs.Address()
	talk.to = pn
	talk.do(talk.read(talk.writtenAnew()), talk.send, talk.read(talk.written()), talk.send)
	return pn, lid, func(ctx context.Context) error {
		talk.to = lid
		return talk.ours.Device.Sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD())
	}
}

// An identity that is not trusted: libsignal reads the session, the client deletes it, and the new one is decrypted, all in
// one transaction (message.go, decryptDM).
func TestP9ASessionDeletedInATransactionThatMakesANewOneStaysDeleted(t *testing.T) {
	t.Parallel()
	for name, readsFirst := range map[string]bool{"read before": true, "not read before": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			talk := introduced(t)
			sending := talk.begin(aSend, talk.sendTo(talk.to))
			answering := talk.begin(anAnswer, talk.answerTo(talk.to))
			first := talk.writtenAnew()
			require.NoError(t, talk.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
				if readsFirst {
					_, err := talk.ours.Device.Sessions.GetSession(inside, talk.address())
					require.NoError(t, err)
				}
				require.NoError(t, talk.ours.Device.Sessions.DeleteSession(inside, talk.address()))
				return talk.read(first)(inside)
			}))
			fresh := talk.stored()
			require.Contains(t, fresh, `"PreviousStates":[]`, "nothing of the deleted session is beneath the new one")
			require.NoError(t, sending.end())
			talk.refused(answering.end())
			require.Equal(t, fresh, talk.stored())
			talk.goOn()
		})
	}
}

func TestP9LateSendsBringNothingBack(t *testing.T) {
	t.Parallel()
	t.Run("deleted, begun anew and deleted", func(t *testing.T) {
		t.Parallel()
		talk := introduced(t)
		sending := talk.begin(aSend, talk.send)
		require.NoError(t, talk.ours.Device.Sessions.DeleteSession(ctx, talk.address()))
		talk.do(talk.read(talk.writtenAnew()))
		require.NoError(t, talk.ours.Device.Sessions.DeleteSession(ctx, talk.address()))
		require.NoError(t, sending.end())
		require.Empty(t, talk.stored())
	})
	t.Run("migrated and deleted", func(t *testing.T) {
		t.Parallel()
		talk := newTalk(t)
		pn, lid, migrate := underNumber(talk)
		sending, answering := talk.begin(aSend, talk.sendTo(pn)), talk.begin(anAnswer, talk.answerTo(pn))
		talk.do(migrate)
		require.NoError(t, talk.ours.Device.Sessions.DeleteAllSessions(ctx, lid.SignalAddressUser()))
		require.NoError(t, sending.end())
		talk.refused(answering.end())
		require.Empty(t, talk.stored())
	})
	t.Run("a decrypt without the event buffer", func(t *testing.T) {
		t.Parallel()
		talk := newUnbufferedTalk(t)
		talk.introduce()
		reading := talk.begin(anAnswer, talk.read(talk.written()))
		require.NoError(t, talk.ours.Device.Sessions.DeleteSession(ctx, talk.address()))
		require.NoError(t, reading.end())
		require.Empty(t, talk.stored())
	})
}

func TestP4LateSendsUseNoMessageKeyTwice(t *testing.T) {
	t.Parallel()
	t.Run("migrated twice", func(t *testing.T) {
		t.Parallel()
		talk := newTalk(t)
		pn, lid, migrate := underNumber(talk)
		other := lid
		other.User = signaltest.Number()
		sending := talk.begin(aSend, talk.sendTo(pn))
		talk.do(migrate)
		require.NoError(t, talk.ours.Device.Sessions.MigratePNToLID(ctx, lid.ToNonAD(), other.ToNonAD()))
		talk.do(talk.answerTo(other))
		talk.refused(sending.end())
	})
	t.Run("migrated, sent and stepped many times", func(t *testing.T) {
		t.Parallel()
		talk := newTalk(t)
		pn, _, migrate := underNumber(talk)
		sending := talk.begin(aSend, talk.sendTo(pn))
		talk.do(migrate, talk.send)
		for range 6 {
			talk.do(talk.read(talk.written()), talk.send)
		}
		talk.refused(sending.end())
	})
	t.Run("a send that encrypts twice for one session", func(t *testing.T) {
		t.Parallel()
		talk := introduced(t)
		sending := talk.begin(aSend, func(ctx context.Context) error {
			_, err := talk.ours.Send(ctx, []types.JID{talk.to, talk.to}, []byte("x"))
			return err
		})
		talk.do(talk.answer)
		talk.refused(sending.end())
		talk.do(talk.send)
	})
	t.Run("a decrypt that many steps of the ratchet overtake", func(t *testing.T) {
		t.Parallel()
		talk := introduced(t)
		talk.do(talk.read(talk.written()), talk.send, talk.read(talk.written()))
		reading := talk.begin(talk.aDecrypt, talk.read(talk.written()))
		talk.do(talk.send)
		for range 6 {
			talk.do(talk.read(talk.written()), talk.send)
		}
		require.NoError(t, reading.end())
		talk.goOn()
	})
}

func TestADecryptWithoutTheEventBufferFollowsAMigration(t *testing.T) {
	t.Parallel()
	talk := newUnbufferedTalk(t)
	pn, lid, migrate := underNumber(talk)
	reading := talk.begin(anAnswer, talk.read(talk.written()))
	talk.do(migrate)
	require.NoError(t, reading.end())
	talk.to = pn
	require.Empty(t, talk.stored())
	talk.to = lid
	talk.goOn()
}

// A transaction that reads after a deletion makes a new session, which is none of those that were deleted.
func TestASessionThatIsReadAfterADeletionIsStored(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	first := talk.writtenAnew()
	require.NoError(t, talk.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
		require.NoError(t, talk.ours.Device.Sessions.DeleteSession(ctx, talk.address()))
		return talk.read(first)(inside)
	}))
	talk.goOn()
}

// Records that nobody has read, as an import puts them, are stored.
func TestRecordsThatNobodyHasReadAreStored(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	older := talk.stored()
	talk.do(talk.read(talk.written()), talk.send)
	newer := talk.stored()
	for name, put := range map[string]func(address, record string) error{
		"PutManySessions": func(address, record string) error {
			return talk.ours.Device.Sessions.PutManySessions(ctx, map[string][]byte{address: []byte(record)})
		},
		"PutSession": func(address, record string) error {
			return talk.ours.Device.Sessions.PutSession(ctx, address, []byte(record))
		},
	} {
		address := signaltest.Number() + ":1"
		require.NoError(t, put(address, older), name)
		require.NoError(t, put(address, newer), name)
		got, err := talk.ours.Device.Sessions.GetSession(ctx, address)
		require.NoError(t, err)
		require.Equal(t, newer, string(got), name)
	}
}

// Where nothing raced, nothing counts as merged.
func TestWhatDoesNotRaceIsNotMerged(t *testing.T) {
	t.Parallel()
	t.Run("a migration in a transaction", func(t *testing.T) {
		t.Parallel()
		talk := newTalk(t)
		_, _, migrate := underNumber(talk)
		require.NoError(t, talk.ours.Device.EventBuffer.DoDecryptionTxn(ctx, migrate))
		require.Zero(t, talk.c.Stats().Merged)
		talk.goOn()
	})
	t.Run("decrypts without the event buffer", func(t *testing.T) {
		t.Parallel()
		talk := newUnbufferedTalk(t)
		talk.introduce()
		talk.goOn()
		require.Zero(t, talk.c.Stats().Merged)
	})
}

// A GetManySessions of which nothing came holds up nobody once a later send has put.
func TestASendThatCameToNothingHoldsUpNobody(t *testing.T) {
	t.Parallel()
	talk := introduced(t)
	all := talk.crowd()
	var addresses []string
	for _, jid := range all {
		addresses = append(addresses, jid.SignalAddress().String())
	}
	_, err := talk.ours.Device.Sessions.GetManySessions(ctx, addresses)
	require.NoError(t, err)
	talk.do(talk.read(talk.written()), talk.sendAll(all))
	held := talk.begin(aSend, talk.sendAll(all))
	answered := make(chan error, 1)
	go func() { answered <- talk.answerOnly(ctx) }()
	require.NoError(t, held.end())
	require.NoError(t, <-answered)
	require.Zero(t, talk.c.Stats().Refused)
}

// Two group messages that are read at once, while somebody else holds a third version of the key.
func TestAGroupMessageThatWasReadCannotBeReadAgain(t *testing.T) {
	t.Parallel()
	talk := newUnbufferedTalk(t)
	distribution, err := talk.theirs.JoinGroup(ctx, talk.group)
	require.NoError(t, err)
	require.NoError(t, talk.ours.Welcome(ctx, talk.group, talk.theirs.Address(), distribution))
	read := func() func(context.Context) error {
		node, err := talk.theirs.SendGroup(ctx, talk.group, []byte("x"))
		require.NoError(t, err)
		return func(ctx context.Context) error {
			_, err := talk.ours.ReceiveGroup(ctx, talk.group, talk.theirs.Address(), node)
			return err
		}
	}
	one, two := read(), read()
	slow := talk.begin("PutSenderKey", one)
	talk.do(two)
	_, err = talk.ours.Device.SenderKeys.GetSenderKey(ctx, talk.group.String(), talk.address())
	require.NoError(t, err)
	require.NoError(t, slow.end())
	require.Error(t, two(ctx))
	require.Error(t, one(ctx))
	talk.do(read())
}

// A record that cannot be merged is stored, unless that would take a chain back.
func TestP4ARecordThatLibsignalCannotReadTakesNoChainBack(t *testing.T) {
	t.Parallel()
	c, _ := open(t, func(cfg *pgstore.Config) { cfg.Sends = pgstore.WriteBehind })
	d := pair(t, c.NewDevice())
	for _, counter := range []int{5, 3} {
		require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(counter)))
	}
	got, err := d.Sessions.GetSession(ctx, "1:0")
	require.NoError(t, err)
	require.Contains(t, string(got), `"Index":5`)
}

// What is logged of races says how many records and whose instance, and nothing of what is in them or whom they are with.
func TestP12LogsOfRacesHoldNoKeys(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	talk := newTalkOf(t, signaltest.NewPeer, "PutBufferedEvent", func(cfg *pgstore.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	talk.introduce()
	var secret []string
	note := func() {
		secret = append(secret, regexp.MustCompile(`[A-Za-z0-9+/=]{20,}`).FindAllString(talk.session(), -1)...)
	}
	note()
	sending := talk.begin(aSend, talk.send)
	talk.do(talk.answer)
	talk.refused(sending.end())
	reading := talk.begin(talk.aDecrypt, talk.read(talk.written()))
	talk.do(talk.send)
	note()
	require.NoError(t, reading.end())
	note()
	require.Contains(t, logged.String(), "refused")
	require.Contains(t, logged.String(), "merged")
	require.Greater(t, len(secret), 20)
	for _, s := range append(secret, talk.to.User) {
		require.NotContains(t, logged.String(), s)
	}
}
