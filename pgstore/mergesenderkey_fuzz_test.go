package pgstore

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	groupratchet "go.mau.fi/libsignal/groups/ratchet"
	groups "go.mau.fi/libsignal/groups/state/record"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// groupLetter is what a peer sends for a group: a message, or its key.
type groupLetter struct {
	message      *waBinary.Node
	distribution []byte
}

// groupLetters are those of a peer that has lost its key again and again: of each key a distribution, messages, another distribution of the
// same key, and more messages.
func (c *couple) groupLetters(keys int) (all []groupLetter) {
	ctx := context.Background()
	for range keys {
		for range 2 {
			distribution, err := c.theirs.JoinGroup(ctx, c.group)
			require.NoError(c.t, err)
			all = append(all, groupLetter{distribution: distribution})
			for range 3 {
				message, err := c.theirs.SendGroup(ctx, c.group, []byte("x"))
				require.NoError(c.t, err)
				all = append(all, groupLetter{message: message})
			}
		}
		c.theirs.Device.SenderKeys = signaltest.NewMemoryPhone(new(Container).NewDevice()).SenderKeys
	}
	return all
}

// senderKey and setSenderKey are somebody's key as we have it.
func (c *couple) senderKey(of *signaltest.Peer) []byte {
	key, err := c.ours.Device.SenderKeys.GetSenderKey(context.Background(), c.group.String(), of.Address().SignalAddress().String())
	require.NoError(c.t, err)
	return key
}

func (c *couple) setSenderKey(of *signaltest.Peer, key []byte) {
	require.NoError(c.t, c.ours.Device.SenderKeys.PutSenderKey(context.Background(), c.group.String(), of.Address().SignalAddress().String(), key))
}

// liveGroup is live for the peer's sender key: takes in letters in any order. What was read already, and what there is no key for, fails.
func (c *couple) liveGroup(base []byte, letters []groupLetter, ops []byte) []byte {
	ctx := context.Background()
	c.setSenderKey(c.theirs, base)
	for _, op := range ops {
		if l := letters[int(op)%len(letters)]; l.message != nil {
			_, _ = c.ours.ReceiveGroup(ctx, c.group, c.theirs.Address(), l.message)
		} else {
			require.NoError(c.t, c.ours.Welcome(ctx, c.group, c.theirs.Address(), l.distribution))
		}
	}
	return c.senderKey(c.theirs)
}

// senderKeyStateOf finds the state that libsignal would.
func senderKeyStateOf(r *senderKeyRecord, st *senderKeyState) *senderKeyState {
	at := slices.IndexFunc(r.SenderKeyStates, func(s *senderKeyState) bool { return s.KeyID == st.KeyID })
	if at < 0 || !sameSenderKey(r.SenderKeyStates[at], st) {
		return nil
	}
	return r.SenderKeyStates[at]
}

// usedInGroup says whether a message key cannot be had from a state any more; not if there is none.
func usedInGroup(st *senderKeyState, iteration uint32) bool {
	return st != nil && iteration < st.SenderChainKey.Iteration &&
		!slices.ContainsFunc(st.Keys, func(k *groupratchet.SenderMessageKeyStructure) bool { return k.Iteration == iteration })
}

// related says whether two keys have a state in common.
func related(t *testing.T, one, other []byte) bool {
	a, err := parseSenderKey(one)
	require.NoError(t, err)
	b, err := parseSenderKey(other)
	require.NoError(t, err)
	return slices.ContainsFunc(a.SenderKeyStates, func(st *senderKeyState) bool {
		return slices.ContainsFunc(b.SenderKeyStates, func(o *senderKeyState) bool { return sameSenderKey(st, o) })
	})
}

// requireMergedSenderKey requires of a merged key that nothing went back, and that no state is missing that there was room for.
func requireMergedSenderKey(t *testing.T, result, stored, written []byte) {
	merged, err := parseSenderKey(result)
	require.NoError(t, err)
	s, err := parseSenderKey(stored)
	require.NoError(t, err)
	w, err := parseSenderKey(written)
	require.NoError(t, err)
	_, err = groups.NewSenderKeyFromStruct(merged, store.SignalProtobufSerializer.SenderKeyRecord, store.SignalProtobufSerializer.SenderKeyState)
	require.NoError(t, err)
	require.LessOrEqual(t, len(merged.SenderKeyStates), maxSenderKeyStates)
	for _, st := range merged.SenderKeyStates {
		a, b := senderKeyStateOf(s, st), senderKeyStateOf(w, st)
		for _, from := range []*senderKeyState{a, b} {
			if from != nil && senderKeyStateOf(merged, st) == st {
				require.GreaterOrEqual(t, st.SenderChainKey.Iteration, from.SenderChainKey.Iteration, "an iteration went back")
			}
		}
		for _, k := range st.Keys {
			require.False(t, usedInGroup(a, k.Iteration) && usedInGroup(b, k.Iteration), "a message key that both had used came back")
		}
	}
	if len(merged.SenderKeyStates) == maxSenderKeyStates {
		return
	}
	for _, st := range slices.Concat(s.SenderKeyStates, w.SenderKeyStates) {
		require.NotNil(t, senderKeyStateOf(merged, st), "a state is lost")
	}
}

// FuzzP4MergedSenderKeys merges two descendants of somebody's sender key, of which new ones were distributed, and the same ones again.
func FuzzP4MergedSenderKeys(f *testing.F) {
	f.Add([]byte{1}, []byte{2, 3}, []byte{7})
	f.Add([]byte{3}, []byte{1, 2}, []byte{2, 3, 1})
	f.Add([]byte{8, 9}, []byte{16, 17, 10}, []byte{24, 25, 11})
	f.Add([]byte{8, 16, 24, 32}, []byte{40, 41, 9}, []byte{48, 49, 50})
	f.Add([]byte{3, 4, 6}, []byte{4, 5}, []byte{0, 7, 2})
	f.Fuzz(func(t *testing.T, before, one, other []byte) {
		const most, keys = 16, 7
		c := newCouple(t)
		letters := c.groupLetters(keys)
		base := c.liveGroup(c.liveGroup(c.senderKey(c.theirs), letters, []byte{0}), letters, before[:min(len(before), most)])
		stored := c.liveGroup(base, letters, one[:min(len(one), most)])
		written := c.liveGroup(base, letters, other[:min(len(other), most)])
		for _, by := range []writer{writerDecrypt, writerMigration} {
			put := putting{kind: typeSenderKey, record: newRecord(written), text: written, by: by, stored: newRecord(stored), before: stored, readable: true}
			if by == writerDecrypt {
				put.base, put.known = newRecord(base), true
			}
			out, err := new(instance).overSenderKey(put)
			require.NoError(t, err)
			if by == writerDecrypt && string(stored) == string(base) || by == writerMigration && !related(t, stored, written) {
				// Nothing raced, and a key that libsignal has let somebody distribute again is where he says; or it is replaced.
				require.Equal(t, string(written), string(out.form.Load().record))
				continue
			}
			requireMergedSenderKey(t, out.form.Load().record, stored, written)
		}
	})
}

// FuzzP4OwnSenderKeys lets several read our own sender key, send with what they have read, and move it over what is stored, in any order:
// no message key is used twice, no iteration goes back, and who alone has sent is not refused.
func FuzzP4OwnSenderKeys(f *testing.F) {
	f.Add([]byte{0, 2, 0, 2, 4, 6, 2})
	f.Add([]byte{0, 4, 2, 6, 6, 3, 0, 2})
	f.Add([]byte{0, 0, 2, 7, 3, 8, 10, 11, 3})
	f.Fuzz(func(t *testing.T, ops []byte) {
		const most, readers = 24, 3
		c := newCouple(t)
		_, err := c.ours.JoinGroup(context.Background(), c.group)
		require.NoError(t, err)
		stored := c.senderKey(c.ours)
		held, seen := make([][]byte, readers), make(map[string]bool)
		for _, op := range ops[:min(len(ops), most)] {
			who := int(op/4) % readers
			if op%4 < 2 || held[who] == nil {
				held[who] = stored
				continue
			}
			before, err := parseSenderKey(stored)
			require.NoError(t, err)
			put := putting{kind: typeSenderKey, by: writerMigration, text: held[who], stored: newRecord(stored), before: stored, readable: true}
			if op%4 == 2 {
				c.setSenderKey(c.ours, held[who])
				_, err = c.ours.SendGroup(context.Background(), c.group, []byte("x"))
				require.NoError(t, err)
				put.by, put.text, put.base, put.known = writerSend, c.senderKey(c.ours), newRecord(held[who]), true
			}
			put.record = newRecord(put.text)
			out, err := new(instance).overSenderKey(put)
			if errors.Is(err, ErrMessageKeyUsed) {
				require.NotEqual(t, string(stored), string(held[who]), "nobody else has sent")
				continue
			}
			require.NoError(t, err)
			if put.by == writerSend {
				used, ok := senderKeyIteration(held[who])
				require.True(t, ok)
				at := string(senderKeyID(held[who])) + " " + strconv.FormatUint(used, 10)
				require.False(t, seen[at], "a message key was used twice")
				seen[at] = true
			}
			stored = out.form.Load().record
			after, err := parseSenderKey(stored)
			require.NoError(t, err)
			require.GreaterOrEqual(t, after.SenderKeyStates[0].SenderChainKey.Iteration, before.SenderKeyStates[0].SenderChainKey.Iteration)
			require.True(t, ownSenderKey(stored), "it can be sent with")
		}
	})
}

// A key that was distributed again is in the record twice, and only the newest can be found.
func TestP4OfSenderKeyStatesWithOneIDTheNewestCounts(t *testing.T) {
	t.Parallel()
	state := func(iteration uint32, skipped ...uint32) *senderKeyState {
		st := &senderKeyState{KeyID: 7, SigningKeyPublic: []byte("k"), SenderChainKey: &groupratchet.SenderChainKeyStructure{Iteration: iteration}}
		for _, i := range skipped {
			st.Keys = append(st.Keys, &groupratchet.SenderMessageKeyStructure{Iteration: i})
		}
		return st
	}
	merged, err := mergeSenderKeys(
		&senderKeyRecord{SenderKeyStates: []*senderKeyState{state(12, 10), state(3)}},
		&senderKeyRecord{SenderKeyStates: []*senderKeyState{state(15), state(3)}}, writerDecrypt)
	require.NoError(t, err)
	require.Len(t, merged.SenderKeyStates, 1)
	require.Equal(t, uint32(15), merged.SenderKeyStates[0].SenderChainKey.Iteration)
	require.Empty(t, merged.SenderKeyStates[0].Keys)
}
