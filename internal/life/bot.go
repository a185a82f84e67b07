package life

// What the child's client sees and does.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/socket"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/types/events"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// handle is the client's event handler. A message that it could not answer is not acknowledged.
func (b *bot) handle(e any) bool {
	c := b.child
	switch e := e.(type) {
	case *events.QR:
		c.say(event{Kind: saidQR, Text: e.Codes[0]})
	case *events.PairSuccess: // it has been saved
		value, _ := json.Marshal(saved(b.Store))
		c.say(event{Kind: saidPaired, Value: value})
	case *events.Connected:
		c.say(event{Kind: saidConnected})
	case *events.Message:
		text := e.Message.GetConversation()
		if text == "" {
			return true
		}
		c.say(event{
			Kind: saidMessage, Text: text, ID: e.Info.ID, Chat: e.Info.Chat, Sender: e.Info.Sender, FromMe: e.Info.IsFromMe, Retry: e.RetryCount,
		})
		if c.Answer && !e.Info.IsFromMe {
			return b.keepSaying(e.Info.Chat, "re: "+text) == nil // the parent has heard of an error
		}
	case *events.UndecryptableMessage:
		c.say(event{Kind: saidUndecryptable, ID: e.Info.ID, Chat: e.Info.Chat, Sender: e.Info.Sender})
	case *events.IdentityChange:
		c.say(event{Kind: saidIdentity, Sender: e.JID, Implicit: e.Implicit})
	case *events.AppStateSyncComplete:
		c.say(event{Kind: saidSynced, Text: string(e.Name), Recovery: e.Recovery})
	case *events.AppStateSyncError:
		c.say(event{Kind: saidUnsynced, Text: string(e.Name), Error: e.Error.Error()})
	case *events.LoggedOut:
		b.over.Store(true)
		c.say(event{Kind: saidLoggedOut})
	case *events.StreamReplaced:
		b.over.Store(true)
		c.say(event{Kind: saidReplaced})
		if c.Idle {
			go c.replaced(b)
		}
	}
	return true
}

// keepSaying sends a text until it is out. A bot that has something to say does not give up when its key was used, or when the
// connection is lost; on sqlstore it does not for whatever its database says.
func (b *bot) keepSaying(to types.JID, text string) error {
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) { // what was in the way is not gone at once
		err := b.send(to, text)
		if err == nil {
			return nil
		}
		cause := causeOf(err)
		b.child.say(event{Kind: saidTrouble, Error: err.Error(), Text: text, Cause: cause})
		if (cause == "" || cause == notOurs) && b.child.Ours || b.over.Load() || time.Now().After(end) {
			return err
		}
		b.WaitForConnection(time.Second)
	}
}

// send sends a text, under an id that ends with the number of the process.
func (b *bot) send(to types.JID, text string) error {
	id := fmt.Sprint(b.GenerateMessageID(), sentBy, b.child.Process)
	_, err := b.SendMessage(b.child.ctx, to, waserver.Conversation(text), whatsmeow.SendRequestExtra{ID: id})
	return err
}

// sentBy stands between a message's own id and the process's; the former is of hexadecimal digits.
const sentBy = "-"

// causeOf is why a send failed that may be tried again; nothing for all others.
func causeOf(err error) string {
	var disconnected *whatsmeow.DisconnectedError
	switch {
	case errors.Is(err, pgstore.ErrMessageKeyUsed):
		return keyUsed
	case errors.Is(err, pgstore.ErrOwnershipLost), errors.Is(err, pgstore.ErrReleased), errors.Is(err, pgstore.ErrClosed):
		return notOurs
	case errors.Is(err, whatsmeow.ErrNotConnected), errors.As(err, &disconnected), errors.Is(err, socket.ErrSocketClosed),
		errors.Is(err, net.ErrClosed), strings.HasPrefix(err.Error(), "failed to send message node: "): // whatever writing to it says
		return noConnection
	default:
		return ""
	}
}

// obey does what the parent wants.
func (b *bot) obey(cmd command) (value any, err error) {
	ctx := b.child.ctx
	switch cmd.Do {
	case doSend:
		err = b.send(cmd.To, cmd.Text)
	case doSay:
		err = b.keepSaying(cmd.To, cmd.Text)
	case doPairPhone:
		return b.PairPhone(ctx, cmd.Text, true, whatsmeow.PairClientChrome, "Chrome (Linux)")
	case doLogout:
		err = b.Logout(ctx)
	case doForget:
		err = b.Store.Sessions.DeleteSession(ctx, cmd.To.SignalAddress().String())
	case doContact:
		info, err := b.Store.Contacts.GetContact(ctx, cmd.To)
		return info.FullName, err
	case doChat:
		return b.Store.ChatSettings.GetChatSettings(ctx, cmd.To)
	case doMute:
		err = b.set(appstate.BuildMute(cmd.To, true, 0))
	case doArchive:
		err = b.set(appstate.BuildArchive(cmd.To, true, time.Time{}, nil))
	case doRecover:
		_, err = b.SendPeerMessage(ctx, whatsmeow.BuildAppStateRecoveryRequest(appstate.WAPatchName(cmd.Text)))
	case doMark:
		return b.mark(cmd.Text), nil
	case doStatements:
		return b.child.statements.Load(), nil
	case doStats, doFlush:
		ours, ok := b.child.store.(*pgstore.Container)
		if !ok {
			return nil, nil
		}
		if cmd.Do == doFlush {
			return nil, ours.Flush(ctx)
		}
		return ours.Stats(), nil
	default:
		err = fmt.Errorf("unknown command %q", cmd.Do)
	}
	return value, err
}

// set sends a patch, and once more if the phone changed something at the same time: the client reads the version, asks the server and applies what
// the server answers without a lock, so that a notification which it handles meanwhile can spoil that, on any store.
func (b *bot) set(patch appstate.PatchInfo) error {
	err := b.SendAppState(b.child.ctx, patch)
	if errors.Is(err, whatsmeow.ErrAppStateUpdate) {
		err = b.SendAppState(b.child.ctx, patch)
	}
	return err
}
