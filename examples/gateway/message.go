package main

import (
	"cmp"
	"context"
	"mime"
	"regexp"
	"strings"
	"time"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"
	"google.golang.org/protobuf/proto"
)

// receivedMessage is what is told of a message that came in, to webhooks and to those who look on.
type receivedMessage struct {
	Instance string    `json:"instance"`
	ID       string    `json:"id"`
	From     string    `json:"from"`
	Chat     string    `json:"chat"`
	Name     string    `json:"name,omitempty"` // as the sender calls himself
	Sent     time.Time `json:"sent_at"`
	Kind     string    `json:"kind"` // text, image, video, audio, document, or other
	Text     string    `json:"text,omitempty"`
	MIMEType string    `json:"mime_type,omitempty"`
}

// receipt is what is told of messages that reached somebody, or did not.
type receipt struct {
	Chat string            `json:"chat"`
	Kind string            `json:"kind,omitempty"` // empty: delivered
	IDs  []types.MessageID `json:"ids"`
}

func incoming(instance string, evt *events.Message) receivedMessage {
	m := receivedMessage{
		Instance: instance, ID: evt.Info.ID, From: evt.Info.Sender.ToNonAD().String(), Chat: evt.Info.Chat.String(),
		Name: evt.Info.PushName, Sent: evt.Info.Timestamp.UTC(),
	}
	switch msg := evt.Message; {
	case msg.GetImageMessage() != nil:
		m.Kind, m.Text, m.MIMEType = "image", msg.GetImageMessage().GetCaption(), msg.GetImageMessage().GetMimetype()
	case msg.GetVideoMessage() != nil:
		m.Kind, m.Text, m.MIMEType = "video", msg.GetVideoMessage().GetCaption(), msg.GetVideoMessage().GetMimetype()
	case msg.GetAudioMessage() != nil:
		m.Kind, m.MIMEType = "audio", msg.GetAudioMessage().GetMimetype()
	case msg.GetDocumentMessage() != nil:
		m.Kind, m.Text, m.MIMEType = "document", msg.GetDocumentMessage().GetCaption(), msg.GetDocumentMessage().GetMimetype()
	default:
		m.Text = cmp.Or(msg.GetConversation(), msg.GetExtendedTextMessage().GetText()) // extended: a reply, or with a link
		m.Kind = "text"
		if m.Text == "" {
			m.Kind = "other"
		}
	}
	return m
}

var phoneNumber = regexp.MustCompile(`^\+?[1-9][0-9]{6,14}$`)

// recipient reads a phone number, or the JID of a user or a group.
func recipient(text string) (types.JID, error) {
	if phoneNumber.MatchString(text) {
		return types.NewJID(strings.TrimPrefix(text, "+"), types.DefaultUserServer), nil
	}
	jid, err := types.ParseJID(text)
	if err != nil || jid.User == "" || jid.Server != types.DefaultUserServer && jid.Server != types.HiddenUserServer && jid.Server != types.GroupServer {
		return jid, errInvalid.because("to must be a phone number with its country code, or the JID of a user or a group")
	}
	return jid.ToNonAD(), nil
}

// attachment is a file that is to be sent.
type attachment struct {
	content       []byte
	mimeType      string
	name, caption string
}

// upload hands the file to WhatsApp and returns the message that refers to it.
func (a *attachment) upload(ctx context.Context, client *whatsmeow.Client) (*waE2E.Message, error) {
	mimeType, _, err := mime.ParseMediaType(a.mimeType)
	if err != nil {
		return nil, errInvalid.because("Content-Type must be that of the attachment")
	}
	kind := whatsmeow.MediaDocument
	switch strings.SplitN(mimeType, "/", 2)[0] {
	case "image":
		kind = whatsmeow.MediaImage
	case "video":
		kind = whatsmeow.MediaVideo
	case "audio":
		kind = whatsmeow.MediaAudio
	}
	up, err := client.Upload(ctx, a.content, kind)
	if err != nil {
		return nil, errNotSent.because("uploading: " + err.Error())
	}
	url, path, length, caption := proto.String(up.URL), proto.String(up.DirectPath), proto.Uint64(up.FileLength), optional(a.caption)
	switch kind { //nolint:exhaustive // those are all
	case whatsmeow.MediaImage:
		return &waE2E.Message{ImageMessage: &waE2E.ImageMessage{
			URL: url, DirectPath: path, MediaKey: up.MediaKey, FileEncSHA256: up.FileEncSHA256, FileSHA256: up.FileSHA256, FileLength: length,
			Mimetype: &mimeType, Caption: caption,
		}}, nil
	case whatsmeow.MediaVideo:
		return &waE2E.Message{VideoMessage: &waE2E.VideoMessage{
			URL: url, DirectPath: path, MediaKey: up.MediaKey, FileEncSHA256: up.FileEncSHA256, FileSHA256: up.FileSHA256, FileLength: length,
			Mimetype: &mimeType, Caption: caption,
		}}, nil
	case whatsmeow.MediaAudio:
		return &waE2E.Message{AudioMessage: &waE2E.AudioMessage{
			URL: url, DirectPath: path, MediaKey: up.MediaKey, FileEncSHA256: up.FileEncSHA256, FileSHA256: up.FileSHA256, FileLength: length,
			Mimetype: &mimeType,
		}}, nil
	default:
		return &waE2E.Message{DocumentMessage: &waE2E.DocumentMessage{
			URL: url, DirectPath: path, MediaKey: up.MediaKey, FileEncSHA256: up.FileEncSHA256, FileSHA256: up.FileSHA256, FileLength: length,
			Mimetype: &mimeType, Caption: caption, FileName: optional(a.name), Title: optional(a.name),
		}}, nil
	}
}

// optional is nil for an empty text.
func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
