package pgstore

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/libsignal/state/record"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// couple is a device and a peer on maps, whose records are made by libsignal.
type couple struct {
	t            *testing.T
	ours, theirs *signaltest.Peer
	group        types.JID
}

func newCouple(t *testing.T) *couple {
	fresh := func() *signaltest.Peer {
		return signaltest.NewUnbufferedPeer(signaltest.NewMemoryPhone(new(Container).NewDevice()))
	}
	c := &couple{t: t, ours: fresh(), theirs: fresh(), group: types.NewJID("1-2", types.GroupServer)}
	signaltest.Meet(t, c.theirs, c.ours)
	for _, p := range [][2]*signaltest.Peer{{c.ours, c.theirs}, {c.theirs, c.ours}} {
		distribution, err := p[0].JoinGroup(context.Background(), c.group)
		require.NoError(t, err)
		require.NoError(t, p[1].Welcome(context.Background(), c.group, p[0].Address(), distribution))
	}
	return c
}

func (c *couple) session() []byte {
	session, err := c.ours.Device.Sessions.GetSession(context.Background(), c.theirs.Address().SignalAddress().String())
	require.NoError(c.t, err)
	return session
}

func (c *couple) setSession(session []byte) {
	require.NoError(c.t, c.ours.Device.Sessions.PutSession(context.Background(), c.theirs.Address().SignalAddress().String(), nil))
	require.NoError(c.t, c.ours.Device.Sessions.PutSession(context.Background(), c.theirs.Address().SignalAddress().String(), session))
}

// letters are messages of the peer that wait to be read.
type letters []*waBinary.Node

func (c *couple) write(anew bool) *waBinary.Node {
	if anew {
		node, err := c.theirs.Meet(context.Background(), c.ours, []byte("x"))
		require.NoError(c.t, err)
		return node
	}
	all, err := c.theirs.Send(context.Background(), []types.JID{c.ours.Address()}, []byte("x"))
	require.NoError(c.t, err)
	return all[c.ours.Address()]
}

// live does to our session what the bytes say, and returns what has become of it.
func (c *couple) live(base []byte, waiting letters, ops []byte) []byte {
	ctx := context.Background()
	c.setSession(base)
	for _, op := range ops {
		switch op % 6 {
		case 0, 1: // send; sometimes the peer reads it, and what it writes then steps our ratchet
			all, err := c.ours.Send(ctx, []types.JID{c.theirs.Address()}, []byte("x"))
			require.NoError(c.t, err)
			if op%12 < 6 {
				if _, err = c.theirs.Receive(ctx, c.ours.Address(), all[c.theirs.Address()]); err == nil {
					waiting = append(waiting, c.write(false))
				}
			}
		case 2, 3, 4: // read one of what waits, in any order; what was read already fails, and changes nothing
			if len(waiting) > 0 {
				_, _ = c.ours.Receive(ctx, c.theirs.Address(), waiting[int(op/6)%len(waiting)])
			}
		case 5: // a new session of ours
			_, err := c.ours.Meet(ctx, c.theirs, []byte("x"))
			require.NoError(c.t, err)
		}
	}
	return c.session()
}

// receiving finds a receiving chain in a record by its state and ratchet key.
func receiving(r *sessionRecord, st *sessionState, chain *chainState) *chainState {
	if in := find(r, st); in != nil {
		for _, c := range in.ReceiverChains {
			if sameChain(c, chain) {
				return c
			}
		}
	}
	return nil
}

// used says whether a chain's message key was used in one version of it; not if there is none.
func used(chain *chainState, index uint32) bool {
	if chain == nil || index >= chain.ChainKey.Index {
		return false
	}
	for _, k := range chain.MessageKeys {
		if k.Index == index {
			return false
		}
	}
	return true
}

// foundChains are the sending chains of the states that can be found: libsignal leaves one that it has promoted in the archive, as it was.
func foundChains(r *sessionRecord) (chains []*chainState) {
	for _, st := range statesOf(r) {
		if find(r, st) == st {
			chains = append(chains, st.SenderChain)
		}
	}
	return chains
}

func requireMerged(t *testing.T, by writer, result []byte, left *past, stored, written []byte) {
	_, err := record.NewSessionFromBytes(result, store.SignalProtobufSerializer.Session, store.SignalProtobufSerializer.State)
	require.NoError(t, err, "libsignal cannot read what was merged")
	merged, err := parseSession(result)
	require.NoError(t, err)
	s, err := parseSession(stored)
	require.NoError(t, err)
	w, err := parseSession(written)
	require.NoError(t, err)
	after := func(chain *chainState) (reached uint64, known bool) {
		for _, c := range chainsOf(merged) {
			if sameChain(c, chain) {
				reached, known = max(reached, uint64(c.ChainKey.Index)), true
			}
		}
		if !known {
			return left.reached(chainID(chain))
		}
		return reached, known
	}
	for _, chain := range foundChains(s) {
		reached, known := after(chain)
		require.True(t, known, "a sending chain that was stored is forgotten")
		require.GreaterOrEqual(t, reached, uint64(chain.ChainKey.Index), "a sending chain went back")
	}
	for _, chain := range foundChains(w) {
		if reached, known := after(chain); known {
			require.GreaterOrEqual(t, reached, uint64(chain.ChainKey.Index), "a sending chain went back")
		}
	}
	for _, st := range statesOf(merged) {
		if find(merged, st) != st {
			continue // see foundChains
		}
		for _, chain := range st.ReceiverChains {
			a, b := receiving(s, st, chain), receiving(w, st, chain)
			for _, from := range []*chainState{a, b} {
				if from != nil {
					require.GreaterOrEqual(t, chain.ChainKey.Index, from.ChainKey.Index, "a receiving chain went back")
				}
			}
			for _, key := range chain.MessageKeys {
				require.False(t, used(a, key.Index) && used(b, key.Index), "a message key that both had used came back")
				if by == writerDecrypt && sameState(st, w.SessionState) {
					require.False(t, used(a, key.Index) || used(b, key.Index), "a message key that one had used came back")
				}
			}
		}
	}
}

// FuzzP4MergedSessions merges two descendants of one record, each made by libsignal with random messages.
func FuzzP4MergedSessions(f *testing.F) {
	f.Add([]byte{0}, []byte{1, 2}, []byte{0})
	f.Add([]byte{2, 0, 6}, []byte{2, 8, 14, 0}, []byte{5, 0, 3})
	f.Add([]byte{5, 5, 2}, []byte{0, 4, 10, 0, 2}, []byte{2, 8, 8, 0, 0, 14})
	f.Add([]byte{}, []byte{2}, []byte{8})
	f.Fuzz(mergeDescendants)
}

// mergeDescendants lives two lives on from one, and merges them: whole, and what one call of the client makes of the common base as a Put would.
func mergeDescendants(t *testing.T, before, one, other []byte) {
	const most = 12
	c := newCouple(t)
	base := c.live(c.session(), nil, before[:min(len(before), most)])
	var waiting letters
	for i := range 6 {
		waiting = append(waiting, c.write(i == 3))
	}
	stored := c.live(base, waiting, one[:min(len(one), most)])
	decrypted := c.live(base, waiting, other[:min(len(other), most)])
	once, twice, anew := []byte{6}, []byte{6, 6}, []byte{5} // what a send does
	sent := c.live(base, waiting, [][]byte{once, anew, twice}[len(other)%3])
	read := c.live(base, waiting, []byte{byte(2 + 6*len(one))}) // one of the messages, as a decrypt does
	for _, w := range []struct {
		by     writer
		text   []byte
		single bool // it is what one call of the client makes of the base
	}{
		{writerSend, sent, true},
		{writerUnknown, sent, true},
		{writerDecrypt, read, true},
		{writerUnknown, read, true},
		{writerDecrypt, decrypted, false},
		{writerMigration, decrypted, false},
	} {
		for _, known := range []bool{true, false} {
			put := putting{kind: typeSession, record: newRecord(w.text), text: w.text, by: w.by, stored: newRecord(stored), before: stored, readable: true}
			if known && (w.by == writerSend || w.by == writerDecrypt) {
				put.base, put.known = newRecord(base), true
			}
			var result []byte
			var left *past
			var err error
			if w.single {
				var out *recordValue
				if out, err = new(instance).overSession(put); err == nil {
					result, left = out.form.Load().record, out.past
				}
			} else {
				result, left, err = new(instance).mergeTexts(put)
			}
			if w.by == writerSend && (put.known || len(other)%3 != 2) && mustRefuse(t, base, stored, w.text) {
				require.ErrorIs(t, err, ErrMessageKeyUsed)
				continue
			}
			if w.by == writerSend && errors.Is(err, ErrMessageKeyUsed) {
				continue // on a chain that was stepped over, of which no past is known here
			}
			require.NoError(t, err)
			requireMerged(t, w.by, result, left, stored, w.text)
		}
	}
}

// mustRefuse says whether the message key of a send was used by what is stored.
func mustRefuse(t *testing.T, base, stored, written []byte) bool {
	from, ok1 := ratchetOf(base)
	now, ok2 := ratchetOf(written)
	s, err := parseSession(stored)
	require.True(t, ok1 && ok2)
	require.NoError(t, err)
	if !from.sameChain(now) {
		return false // a session of its own
	}
	for _, chain := range chainsOf(s) {
		if chainID(chain) == fingerprint(now.chain) && uint64(chain.ChainKey.Index) > from.counter {
			return true
		}
	}
	return false
}

// FuzzP10MergingAnything gives the merge records of nobody's making.
func FuzzP10MergingAnything(f *testing.F) {
	seed := func() []byte {
		c := newCouple(new(testing.T))
		return c.session()
	}
	whole := seed()
	f.Add(whole, whole)
	f.Add([]byte(`{"SessionState":{"SenderChain":{"SenderRatchetKeyPublic":"cmF0Y2hldA==","ChainKey":{"Key":"a2V5","Index":1}}},"PreviousStates":[]}`), whole)
	f.Add([]byte(`{"SessionState":null}`), []byte(`{"SenderKeyStates":[{"SenderChainKey":{}}]}`))
	f.Fuzz(func(t *testing.T, stored, written []byte) {
		for _, by := range []writer{writerSend, writerDecrypt, writerMigration} {
			_, _, err := new(instance).mergeTexts(putting{text: written, by: by, stored: newRecord(stored), before: stored})
			if err != nil {
				require.True(t, errors.Is(err, errUnreadable) || errors.Is(err, ErrMessageKeyUsed), "%v", err)
			}
		}
		beganOn(stored, written)
		old, err := parseSenderKey(stored)
		if err != nil {
			return
		}
		put, err := parseSenderKey(written)
		if err == nil {
			for _, by := range []writer{writerSend, writerDecrypt, writerMigration} {
				_, _ = mergeSenderKeys(old, put, by)
			}
		}
	})
}
