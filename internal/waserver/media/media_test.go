package media_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/clienttest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func setup(t *testing.T) (*media.Store, *whatsmeow.Client) {
	t.Helper()
	files := media.New()
	device := signaltest.NewMemoryDevice((&sqlstore.Container{}).NewDevice())
	return files, clienttest.Connect(t, device, files.Handle, files)
}

func image(ref media.Reference) *waE2E.ImageMessage {
	return &waE2E.ImageMessage{
		URL: &ref.URL, DirectPath: &ref.DirectPath, MediaKey: ref.MediaKey,
		FileSHA256: ref.FileSHA256, FileEncSHA256: ref.FileEncSHA256, FileLength: &ref.FileLength,
	}
}

func TestClientDownloads(t *testing.T) {
	t.Parallel()
	files, client := setup(t)
	for _, size := range []int{1, 15, 16, 17, 100_000} {
		plaintext := []byte(strings.Repeat("x", size))
		ref, err := files.Put(plaintext, whatsmeow.MediaImage)
		require.NoError(t, err)
		got, err := client.Download(context.Background(), image(ref))
		require.NoError(t, err)
		require.Equal(t, plaintext, got)
		got, err = files.Open(ref)
		require.NoError(t, err)
		require.Equal(t, plaintext, got)
	}
	require.Equal(t, media.Stats{Downloads: 5}, files.Stats())
}

func TestClientUploads(t *testing.T) {
	t.Parallel()
	files, client := setup(t)
	sent, err := client.Upload(context.Background(), []byte("a document"), whatsmeow.MediaDocument)
	require.NoError(t, err)
	ref := media.Reference{
		Kind: whatsmeow.MediaDocument, URL: sent.URL, DirectPath: sent.DirectPath, Handle: sent.Handle,
		MediaKey: sent.MediaKey, FileSHA256: sent.FileSHA256, FileEncSHA256: sent.FileEncSHA256, FileLength: sent.FileLength,
	}
	got, err := files.Open(ref)
	require.NoError(t, err)
	require.Equal(t, "a document", string(got))

	other := ref
	other.Kind = whatsmeow.MediaImage // other keys
	_, err = files.Open(other)
	require.ErrorIs(t, err, media.ErrCorrupt)
	other = ref
	other.FileEncSHA256 = ref.FileSHA256
	_, err = files.Open(other)
	require.ErrorIs(t, err, media.ErrCorrupt)

	public, err := client.UploadNewsletter(context.Background(), []byte("for all"), whatsmeow.MediaImage)
	require.NoError(t, err)
	got, err = client.DownloadMediaWithPath(context.Background(), public.DirectPath, nil, public.FileSHA256, nil, whatsmeow.MediaImage, "", false)
	require.NoError(t, err)
	require.Equal(t, "for all", string(got))
	require.Equal(t, media.Stats{Uploads: 2, Downloads: 1}, files.Stats())
}

func TestClientDeletes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	files, client := setup(t)
	ref, err := files.Put([]byte("history"), whatsmeow.MediaHistory)
	require.NoError(t, err)
	require.Error(t, client.DeleteMedia(ctx, whatsmeow.MediaImage, ref.DirectPath, ref.FileEncSHA256, ""))
	require.Error(t, client.DeleteMedia(ctx, whatsmeow.MediaHistory, ref.DirectPath, ref.FileSHA256, ""))
	require.Equal(t, 1, files.Len())
	require.NoError(t, client.DeleteMedia(ctx, whatsmeow.MediaHistory, ref.DirectPath, ref.FileEncSHA256, "handle"))
	require.Zero(t, files.Len())
	require.Equal(t, media.Stats{Deletions: 1, Refused: 2}, files.Stats())
	_, err = files.Open(ref)
	require.ErrorIs(t, err, media.ErrNotFound)
}

func TestGone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	files, client := setup(t)
	ref, err := files.Put([]byte("old"), whatsmeow.MediaImage)
	require.NoError(t, err)
	files.FailNext(http.StatusNotFound)
	_, err = client.Download(ctx, image(ref))
	require.ErrorIs(t, err, whatsmeow.ErrMediaDownloadFailedWith404)
	wrong := image(ref)
	wrong.FileEncSHA256 = ref.FileSHA256
	_, err = client.Download(ctx, wrong)
	require.ErrorIs(t, err, whatsmeow.ErrMediaDownloadFailedWith403)
	files.Delete(ref.DirectPath)
	_, err = client.Download(ctx, image(ref))
	require.ErrorIs(t, err, whatsmeow.ErrMediaDownloadFailedWith410)
	require.Equal(t, media.Stats{Refused: 2, Failed: 1}, files.Stats())

	_, err = files.Put([]byte("x"), "no such kind")
	require.Error(t, err)
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	files := media.New()
	answer := files.Handle(&waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"id": "1"}})
	require.Equal(t, "error", answer.Attrs["type"])
	asked := files.Handle(&waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"id": "1"}, Content: []waBinary.Node{{Tag: "media_conn"}}})
	auth := asked.GetChildByTag("media_conn").Attrs["auth"].(string)
	token := base64.URLEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct {
		method, url string
		state       int
	}{
		{http.MethodPatch, "/mms/image/x", http.StatusMethodNotAllowed},
		{http.MethodPost, "/mms/image/" + token + "?auth=wrong&token=" + token, http.StatusUnauthorized},
		{http.MethodPost, "/mms/image/" + token + "?auth=" + auth + "&token=other", http.StatusUnauthorized},
		{http.MethodPost, "/mms/image/" + token + "?auth=" + auth + "&token=" + token, http.StatusBadRequest},
		{http.MethodDelete, "/mms/image/" + token + "?auth=" + auth + "&token=" + token + "&d_md=!", http.StatusUnauthorized},
		{http.MethodGet, "/v/none", http.StatusGone},
	} {
		recorder := httptest.NewRecorder()
		files.ServeHTTP(recorder, httptest.NewRequest(c.method, c.url, strings.NewReader("data")))
		require.Equal(t, c.state, recorder.Code, c.url)
	}
	require.Equal(t, media.Stats{Refused: 6}, files.Stats())
	require.Zero(t, files.Len())
}
