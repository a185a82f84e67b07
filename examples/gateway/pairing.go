package main

import (
	"context"
	"net/http"

	"go.mau.fi/whatsmeow"
	"rsc.io/qr"
)

// qrCode is a code to be scanned, as text and as a picture.
type qrCode struct {
	Code string `json:"code"`
	PNG  []byte `json:"png"` // base64
}

// linkCode is a code to be typed into a phone.
type linkCode struct {
	Phone string `json:"phone"`
	Code  string `json:"code"`
}

// pair shows the codes of an instance that is not linked. Any number of people may look at once: they see the same code. It ends when the
// instance is linked, or when nobody has scanned a code for some minutes; it goes on when somebody looks away.
func (g *gateway) pair(ctx context.Context, id string) (*instance, error) {
	g.taking.Lock()
	defer g.taking.Unlock()
	if in := g.get(id); in != nil {
		if in.leaving.Load() {
			return nil, errElsewhere
		} else if in.linked.Load() {
			return nil, errPaired
		}
		return in, nil
	}
	if !g.ready.Load() {
		return nil, errElsewhere
	}
	if mine, err := g.dir.adopt(ctx, id); err != nil {
		return nil, err
	} else if !mine {
		return nil, errElsewhere // another process was asked at the same time, and was first
	}
	device, err := g.device(ctx, id)
	if err != nil {
		return nil, err
	} else if device.ID != nil {
		g.runAll(ctx, device)
		return nil, errPaired
	}
	in := newInstance(g, id, device)
	in.pairing = newStream(1)
	codes, err := in.client.GetQRChannel(in.ctx) //nolint:contextcheck // they go on when this request has ended
	if err != nil {
		return nil, err
	}
	in.set("pairing", "")
	if _, ok := g.swap(in); !ok {
		return nil, errElsewhere
	}
	g.later(in.dial)
	g.later(func() { in.follow(codes) })
	return in, nil
}

// follow publishes the codes until one was scanned or no more come. The client does not close the channel when it is disconnected.
func (in *instance) follow(codes <-chan whatsmeow.QRChannelItem) {
	for first := true; ; {
		var item whatsmeow.QRChannelItem
		select {
		case item = <-codes:
		case <-in.ctx.Done():
			return
		}
		switch item.Event {
		case whatsmeow.QRChannelEventCode:
			if first { // what counts is how often a person had to scan, not how often the picture changed
				in.active(func(s *status) { s.Codes++ })
				in.g.metrics.codes.Inc()
				first = false
			}
			picture, err := qr.Encode(item.Code, qr.L)
			if err != nil {
				in.g.log.Error("making a QR code", "error", err)
				continue
			}
			in.pairing.publish("qr", qrCode{item.Code, picture.PNG()})
		case whatsmeow.QRChannelSuccess.Event:
			in.linked.Store(true)
			in.set("connecting", "")
			in.pairing.publish("paired", struct{}{})
			return
		default:
			reason := item.Event
			if item.Error != nil {
				reason = item.Error.Error()
			}
			in.set("new", "not linked: "+reason)
			in.pairing.publish("failed", state{"new", reason})
			_ = in.g.leave(in.ctx, in, nothingLeft) // the store knows nothing of it
			return
		}
	}
}

// servePairing is GET /v1/instances/{id}/pair: server-sent events with the codes to scan, and with ?phone= also one to type into that phone.
func (g *gateway) servePairing(w http.ResponseWriter, r *http.Request, _ *instance) error {
	in, err := g.pair(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	phone := r.URL.Query().Get("phone")
	g.serveStream(w, r, in.pairing, func(e *eventWriter, h happening) bool { //nolint:contextcheck // the request's
		if h.Type == "qr" && phone != "" { // the connection is there when the first code has come
			code, err := in.client.PairPhone(r.Context(), phone, true, whatsmeow.PairClientChrome, "Chrome (Linux)")
			told := newHappening("code", linkCode{phone, code})
			if err != nil {
				told = newHappening("failed", state{"new", err.Error()})
			}
			if e.event(told) != nil || err != nil {
				return true
			}
			phone = ""
		}
		return h.Type == "paired" || h.Type == "failed"
	})
	return nil
}
