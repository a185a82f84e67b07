package waserver

// History. The phone puts it into the media store a chunk at a time and announces each chunk with a message to the client. A
// client that finds a chunk no longer there says so with a receipt of type server-error, sealed with the chunk's media key;
// the phone then uploads the chunk anew and announces it again. (How real phones answer that receipt for a history is not
// known; for other media they answer with a notification.)

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waMmsRetry"
	"go.mau.fi/whatsmeow/util/gcmutil"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/history"
)

const receiptServerError = "server-error"

// chunk is a part of a history.
type chunk struct {
	of    *history.History
	index int
}

// SendHistory makes up a history and has the phone send it to a client, which may be away. It returns what the client
// should know then, when all is announced; the client fetches and stores it in the background.
func (a *Account) SendHistory(ctx context.Context, to *Device, spec history.Spec) (*history.History, error) {
	h := a.makeHistory(spec)
	return h, a.sendHistory(ctx, to, h)
}

// InitialHistory makes up a history that is sent to every client which is paired from now on, and returns what they should
// know then.
func (a *Account) InitialHistory(spec history.Spec) *history.History {
	h := a.makeHistory(spec)
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.initial = h
	return h
}

func (a *Account) makeHistory(spec history.Spec) *history.History {
	if spec.Own.IsEmpty() {
		spec.Own = a.pn
	}
	return history.Make(spec)
}

func (a *Account) sendHistory(ctx context.Context, to *Device, h *history.History) error {
	for i := range h.Chunks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.announce(to, chunk{h, i}); err != nil {
			return err
		}
	}
	return nil
}

// announce uploads a chunk and tells a client where it is.
func (a *Account) announce(to *Device, c chunk) error {
	message, err := c.of.Message(a.server.media, c.index)
	if err != nil {
		return err
	}
	a.server.mu.Lock()
	a.chunks[message.GetProtocolMessage().GetHistorySyncNotification().GetDirectPath()] = c
	a.server.mu.Unlock()
	_, err = a.SendPeer(to, message)
	return err
}

// uploadAgain answers a client's receipt that says that a chunk is gone.
func (p *phone) uploadAgain(d *Device, node *waBinary.Node) error {
	id := attrString(node, "id")
	p.sending.Lock()
	announced := p.sent[id].message.GetProtocolMessage().GetHistorySyncNotification()
	p.sending.Unlock()
	s := p.user.server
	s.mu.Lock()
	c := chunk{}
	if p.user.account != nil {
		c = p.user.account.chunks[announced.GetDirectPath()]
	}
	s.mu.Unlock()
	if c.of == nil {
		return fmt.Errorf("message %s announced no history", id)
	}
	key, err := hkdf.Key(sha256.New, announced.GetMediaKey(), nil, "WhatsApp Media Retry Notification", 32)
	if err != nil {
		return err
	}
	opened, err := gcmutil.Decrypt(key, content(node, "encrypt", "enc_iv"), content(node, "encrypt", "enc_p"), []byte(id))
	if err != nil {
		return fmt.Errorf("receipt for history %s: %w", id, err)
	}
	receipt := &waMmsRetry.ServerErrorReceipt{}
	if err = proto.Unmarshal(opened, receipt); err != nil {
		return fmt.Errorf("receipt for history %s: %w", id, err)
	}
	if receipt.GetStanzaID() != id {
		return fmt.Errorf("receipt for history %s is sealed for %q", id, receipt.GetStanzaID())
	}
	return p.user.account.announce(d, c)
}
