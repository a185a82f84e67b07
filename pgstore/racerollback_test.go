package pgstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

// Decryption transactions that move or delete records and are rolled back, while sends hold these records: as if the transactions had never
// been.

var errRolledBack = errors.New("rolled back")

// rolledBack runs fn in a transaction that fails after it, or panics.
func (t *talk) rolledBack(panics bool, fn func(inside context.Context)) {
	t.Helper()
	run := func() (err error) {
		defer func() {
			if recover() != nil {
				err = errRolledBack
			}
		}()
		return t.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
			fn(inside)
			if panics {
				panic("a malformed record")
			}
			return errRolledBack
		})
	}
	require.ErrorIs(t, run(), errRolledBack)
}

var rolledBackRaces = []struct {
	name    string
	refused int64
	race    func(t *talk, change func(context.Context))
}{
	{"a send that is held before ends after it", 0, func(t *talk, change func(context.Context)) {
		sending := t.begin(aSend, t.send)
		t.rolledBack(false, change)
		require.NoError(t, sending.end())
	}},
	{"a send that is held before ends inside of it", 0, func(t *talk, change func(context.Context)) {
		sending := t.begin(aSend, t.send)
		t.rolledBack(false, func(inside context.Context) {
			change(inside)
			require.NoError(t, sending.end())
		})
	}},
	{"a send begins inside of it and ends after it", 0, func(t *talk, change func(context.Context)) {
		var answering call
		t.rolledBack(false, func(inside context.Context) {
			change(inside)
			answering = t.begin(anAnswer, t.answer)
		})
		require.NoError(t, answering.end())
	}},
	{"a send begins before the change and ends inside of it, and another after it", 1, func(t *talk, change func(context.Context)) {
		var sending, answering call
		t.rolledBack(false, func(inside context.Context) {
			sending, answering = t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
			change(inside)
			require.NoError(t, answering.end())
		})
		t.refused(sending.end())
	}},
	{"two sends hold it, and both end after it", 1, func(t *talk, change func(context.Context)) {
		sending, answering := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
		t.rolledBack(false, change)
		require.NoError(t, sending.end())
		t.refused(answering.end())
	}},
	{"it panics", 1, func(t *talk, change func(context.Context)) {
		sending, answering := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
		t.rolledBack(true, change)
		require.NoError(t, answering.end())
		t.refused(sending.end())
	}},
	{"it had decrypted a message, which comes again", 0, func(t *talk, change func(context.Context)) {
		message := t.written()
		sending := t.begin(aSend, t.send)
		t.rolledBack(false, func(inside context.Context) {
			t.do(func(context.Context) error { return t.read(message)(inside) })
			change(inside)
		})
		t.do(t.read(message))
		require.NoError(t, sending.end())
	}},
	{"a second one does the same and is committed", 1, func(t *talk, change func(context.Context)) {
		sending, answering := t.begin(aSend, t.send), t.begin(anAnswer, t.answer)
		t.rolledBack(false, change)
		require.NoError(t, t.ours.Device.EventBuffer.DoDecryptionTxn(ctx, func(inside context.Context) error {
			change(inside)
			return sending.end()
		}))
		t.refused(answering.end())
	}},
	{"a decrypt holds the session", 0, func(t *talk, change func(context.Context)) {
		reading := t.begin(t.aDecrypt, t.read(t.written()))
		t.rolledBack(false, func(inside context.Context) {
			change(inside)
			t.do(t.send)
		})
		require.NoError(t, reading.end())
	}},
}

// withAnother is a talk of the same device with somebody else.
func (t *talk) withAnother(test *testing.T) *talk {
	own := *t
	own.T, own.theirs, own.seen = test, memoryPeers(1)[0], make(map[place]string)
	own.to = own.theirs.Address()
	return &own
}

func TestP2P4ARolledBackTransactionLeavesNoTraceInSends(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(t *talk, inside context.Context, pn, lid types.JID) error{
		"deletes": func(t *talk, inside context.Context, pn, _ types.JID) error {
			return t.ours.Device.Sessions.DeleteSession(inside, pn.SignalAddress().String())
		},
		"deletes all": func(t *talk, inside context.Context, pn, _ types.JID) error {
			return t.ours.Device.Sessions.DeleteAllSessions(inside, pn.SignalAddressUser())
		},
		"migrates": func(t *talk, inside context.Context, pn, lid types.JID) error {
			return t.ours.Device.Sessions.MigratePNToLID(inside, pn.ToNonAD(), lid.ToNonAD())
		},
		"migrates and deletes": func(t *talk, inside context.Context, pn, lid types.JID) error {
			if err := t.ours.Device.Sessions.MigratePNToLID(inside, pn.ToNonAD(), lid.ToNonAD()); err != nil {
				return err
			}
			return t.ours.Device.Sessions.DeleteSession(inside, lid.SignalAddress().String())
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			one := newTalk(t)
			for _, tc := range rolledBackRaces { // one after the other: a database each would be much
				t.Run(tc.name, func(t *testing.T) {
					talk := one.withAnother(t)
					pn, lid, _ := underNumber(talk)
					before := talk.c.Stats().Refused
					tc.race(talk, func(inside context.Context) { require.NoError(t, change(talk, inside, pn, lid)) })
					require.Equal(t, tc.refused, talk.c.Stats().Refused-before, "refused")
					if talk.stored() == "" { // it was committed in the end
						talk.to = lid
					}
					if talk.stored() == "" {
						talk.do(talk.read(talk.writtenAnew()))
					}
					talk.goOn()
					require.NoError(t, talk.ours.Device.Sessions.MigratePNToLID(ctx, pn.ToNonAD(), lid.ToNonAD()))
					talk.to = pn
					require.Empty(t, talk.stored(), "a migration that was rolled back can be done")
					talk.to = lid
					talk.goOn()
				})
			}
		})
	}
}

// The LID has a session of its own already, so that the transaction merges two before it is rolled back.
func TestP2P4ARolledBackMigrationMergesNothing(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	pn, lid, migrate := underNumber(talk)
	both := func() (records [2]string) {
		for i, jid := range []types.JID{pn, lid} {
			talk.to = jid
			records[i] = talk.stored()
		}
		return records
	}
	talk.to = lid
	talk.do(talk.meet, talk.send)
	before := both()
	talk.to = lid
	sending := talk.begin(aSend, talk.send)
	talk.to = pn
	answering := talk.begin(anAnswer, talk.answer)
	talk.rolledBack(false, func(inside context.Context) { require.NoError(t, migrate(inside)) })
	require.Equal(t, before, both())
	require.NoError(t, sending.end())
	require.NoError(t, answering.end())
	talk.to = pn
	talk.do(talk.send, migrate)
	talk.goOn()
	require.Zero(t, talk.c.Stats().Refused)
}

// Our own sender key under our phone number.
func TestP2P4ARolledBackMigrationOfOurSenderKey(t *testing.T) {
	t.Parallel()
	talk := newTalk(t)
	pn, lid := *talk.ours.Device.ID, talk.ours.Address()
	distribution, err := talk.ours.JoinGroup(ctx, talk.group)
	require.NoError(t, err)
	require.NoError(t, talk.theirs.Welcome(ctx, talk.group, lid, distribution))
	talk.do(talk.sendGroup)
	sending, other := talk.begin("PutSenderKey", talk.sendGroup), talk.begin("PutSenderKey", talk.sendGroup)
	talk.rolledBack(false, func(inside context.Context) { // away from where it is, as if the LID had changed
		require.NoError(t, talk.ours.Device.Sessions.MigratePNToLID(inside, lid.ToNonAD(), pn.ToNonAD()))
		require.NoError(t, sending.end())
	})
	talk.refused(other.end())
	talk.do(talk.sendGroup)
	key, err := talk.ours.Device.SenderKeys.GetSenderKey(ctx, talk.group.String(), pn.SignalAddress().String())
	require.NoError(t, err)
	require.Nil(t, key)
}
