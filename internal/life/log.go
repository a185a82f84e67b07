package life

// What is only logged. The client goes on when its store fails, and so do the simulated phones when they cannot do something.

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	waLog "go.mau.fi/whatsmeow/util/log"
)

// storeFailed are the lines in which the client says that something with its store went wrong.
var storeFailed = regexp.MustCompile(`panicked|Failed to (clear|delete|encrypt|get (LID|app state|current|peer|prekey|privacy)|` +
	`load|mark|migrate|persist|place|process|remove|save|store|update)|Failed to get number of prekeys in database`)

// takenOver is a part of what pgstore says to a process whose instance another one has taken.
const takenOver = "taken by another owner"

// heardLog is a log of the child's of which the parent hears.
type heardLog struct {
	waLog.Logger
	child *child
}

// Warnf implements [waLog.Logger].
func (l *heardLog) Warnf(message string, args ...any) {
	l.Logger.Warnf(message, args...)
	l.child.logged(fmt.Sprintf(message, args...))
}

// Errorf implements [waLog.Logger].
func (l *heardLog) Errorf(message string, args ...any) {
	l.Logger.Errorf(message, args...)
	l.child.logged(fmt.Sprintf(message, args...))
}

// Sub implements [waLog.Logger].
func (l *heardLog) Sub(module string) waLog.Logger { return &heardLog{l.Logger.Sub(module), l.child} }

// Write takes a line that the client logs to the logger of its context.
func (c *child) Write(line []byte) (int, error) {
	c.logged(strings.TrimSpace(string(line)))
	return os.Stderr.Write(line)
}

func (c *child) logged(line string) {
	if storeFailed.MatchString(line) {
		c.say(event{Kind: saidLog, Text: line})
	}
}

// serverLog is the server's log, of which the life hears what its phones warn of.
type serverLog struct {
	slog.Handler
	life *life
}

// Handle implements [slog.Handler].
func (l *serverLog) Handle(ctx context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	if strings.Contains(line, "contact could not") || strings.Contains(line, "phone could not") || r.Level >= slog.LevelError {
		l.life.hear(event{Kind: saidLog, Text: line})
	}
	return l.Handler.Handle(ctx, r)
}

// closed is what pgstore says to what a client still does on goroutines of its own when it was disconnected and its store closed.
const closed = "pgstore: closed"

// requireNoWarning requires that on pgstore nothing was warned of but what the test has cause to expect.
func (l *life) requireNoWarning() {
	for _, e := range l.events(ofKind(saidLog)) {
		expected := slices.ContainsFunc(append(l.warnings, closed), func(part string) bool { return strings.Contains(e.Text, part) })
		if l.backend.ours && !l.anything && !expected {
			l.t.Errorf("child %d, or the server: %s", e.Process, e.Text)
		}
	}
}
