package waserver_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

func TestAttachments(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	b := setup(t)
	friend := b.server.NewContact(waserver.ContactConfig{})

	ref, err := b.server.Media().Put([]byte("a picture"), whatsmeow.MediaImage)
	require.NoError(t, err)
	_, err = friend.Send(b.account.LID(), &waE2E.Message{ImageMessage: &waE2E.ImageMessage{
		URL: &ref.URL, DirectPath: &ref.DirectPath, MediaKey: ref.MediaKey,
		FileSHA256: ref.FileSHA256, FileEncSHA256: ref.FileEncSHA256, FileLength: &ref.FileLength,
	}})
	require.NoError(t, err)
	e := waitFor(ctx, t, b.client, func(e *events.Message) bool { return e.Message.GetImageMessage() != nil })
	data, err := b.client.Download(ctx, e.Message.GetImageMessage())
	require.NoError(t, err)
	require.Equal(t, "a picture", string(data))

	up, err := b.client.Upload(ctx, []byte("a document"), whatsmeow.MediaDocument)
	require.NoError(t, err)
	_, err = b.client.SendMessage(ctx, friend.LID(), &waE2E.Message{DocumentMessage: &waE2E.DocumentMessage{
		URL: &up.URL, DirectPath: &up.DirectPath, MediaKey: up.MediaKey,
		FileSHA256: up.FileSHA256, FileEncSHA256: up.FileEncSHA256, FileLength: &up.FileLength,
	}})
	require.NoError(t, err)
	got, err := friend.WaitReceived(ctx, func(r waserver.Received) bool { return r.Message.GetDocumentMessage() != nil })
	require.NoError(t, err)
	document := got.Message.GetDocumentMessage()
	data, err = b.server.Media().Open(media.Reference{
		Kind: whatsmeow.MediaDocument, DirectPath: document.GetDirectPath(), MediaKey: document.GetMediaKey(),
		FileSHA256: document.GetFileSHA256(), FileEncSHA256: document.GetFileEncSHA256(),
	})
	require.NoError(t, err)
	require.Equal(t, "a document", string(data))
	require.Equal(t, media.Stats{Uploads: 1, Downloads: 1}, b.server.Media().Stats())
	require.NoError(t, b.server.WaitIdle(ctx))
	b.requireClean(t)
}
