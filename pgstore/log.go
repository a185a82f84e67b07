package pgstore

import (
	"context"
	"log/slog"
	"strings"

	waLog "go.mau.fi/whatsmeow/util/log"
)

// waHandler lets a [waLog.Logger] be used as a [slog.Handler].
type waHandler struct {
	log   waLog.Logger
	attrs []slog.Attr
}

// Enabled implements [slog.Handler]; the logger behind it decides by itself.
func (h waHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements [slog.Handler].
func (h waHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(r.Message)
	add := func(a slog.Attr) bool {
		b.WriteString(" " + a.Key + "=" + a.Value.String())
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	switch {
	case r.Level >= slog.LevelError:
		h.log.Errorf("%s", b.String())
	case r.Level >= slog.LevelWarn:
		h.log.Warnf("%s", b.String())
	case r.Level >= slog.LevelInfo:
		h.log.Infof("%s", b.String())
	default:
		h.log.Debugf("%s", b.String())
	}
	return nil
}

// WithAttrs implements [slog.Handler].
func (h waHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = append(append([]slog.Attr(nil), h.attrs...), attrs...)
	return h
}

// WithGroup implements [slog.Handler]; groups are flattened.
func (h waHandler) WithGroup(string) slog.Handler { return h }
