package signaltest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

// Meet lets two peers exchange the first messages, so that both sessions are established.
func Meet(t testing.TB, a, b *Peer) {
	t.Helper()
	ctx := context.Background()
	first, err := a.Meet(ctx, b, []byte("hello"))
	require.NoError(t, err)
	got, err := b.Receive(ctx, a.Address(), first)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	Say(t, b, a, "hello to you")
}

// Say sends a message as SendMessage does and reads it at the other end.
func Say(t testing.TB, from, to *Peer, plaintext string) {
	t.Helper()
	ctx := context.Background()
	sent, err := from.Send(ctx, []types.JID{to.Address()}, []byte(plaintext))
	require.NoError(t, err)
	got, err := to.Receive(ctx, from.Address(), sent[to.Address()])
	require.NoError(t, err)
	require.Equal(t, plaintext, string(got))
}
