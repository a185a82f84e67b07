package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestPairByCode(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account := server.NewAccount("4930123456789")
	client := newClient(t, server)
	client.shows(ctx, t)
	_, err := account.EnterCode(ctx, "ABCD-1234")
	require.ErrorIs(t, err, waserver.ErrUnknownCode, "no code is shown yet")

	code, err := client.PairPhone(ctx, "+49 30 123456789", true, whatsmeow.PairClientChrome, "Chrome (Linux)")
	require.NoError(t, err)
	device, err := account.EnterCode(ctx, code)
	require.NoError(t, err)
	waitFor[*events.Connected](ctx, t, client)
	require.NoError(t, device.WaitConnected(ctx))

	stats := server.Stats()
	require.Equal(t, 1, stats.Pairings)
	require.Equal(t, 1, stats.LinkCodes)
	require.Zero(t, stats.QRScans)
	require.Empty(t, server.Record().Reused())
}

func TestWrongCode(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account := server.NewAccount("")
	client := newClient(t, server)
	client.shows(ctx, t)
	code, err := client.PairPhone(ctx, account.PN().User, true, whatsmeow.PairClientChrome, "Chrome (Linux)")
	require.NoError(t, err)
	wrong := "2" + code[1:]
	if wrong == code {
		wrong = "3" + code[1:]
	}
	_, err = account.EnterCode(ctx, wrong)
	require.ErrorIs(t, err, waserver.ErrPairing)
	require.Zero(t, server.Stats().Pairings)
	require.Nil(t, client.Store.ID)
}

func TestUnknownQRCode(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account := server.NewAccount("")
	_, err := account.Scan(ctx, "what is this")
	require.ErrorIs(t, err, waserver.ErrUnknownCode)
	client := newClient(t, server)
	qr := client.shows(ctx, t)
	client.Disconnect()
	require.NoError(t, server.Wait(ctx, func() bool {
		_, err = account.Scan(ctx, qr)
		return err != nil
	}))
}

func TestPairingThatTheClientRejects(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	server := newServer(t)
	account := server.NewAccount("")
	client := newClient(t, server)
	client.Store.AdvSecretKey[0]++
	qr := client.shows(ctx, t)
	client.Store.AdvSecretKey = make([]byte, 32) // not the one that was shown
	_, err := account.Scan(ctx, qr)
	require.ErrorIs(t, err, waserver.ErrPairing)
	waitFor[*events.PairError](ctx, t, client)
	require.Equal(t, 1, server.Stats().RefusedPairings)
}
