package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

const botEnv = "PGSTORE_QUICKSTART_BOT" // has a bot's settings; set in its process

// botSettings are what a bot has to know.
type botSettings struct {
	DSN      string
	Endpoint waserver.Endpoint
}

// botProcess is the bot as seen from outside.
type botProcess struct {
	cmd  *exec.Cmd
	in   io.Closer
	code chan string   // has the first line that the bot prints
	over chan struct{} // closed when the bot has ended
	err  error         // how it did, then
}

func startBot(ctx context.Context, settings botSettings) (*botProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), botEnv+"="+string(encoded))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err = cmd.Start(); err != nil {
		return nil, err
	}
	b := &botProcess{cmd: cmd, in: in, code: make(chan string, 1), over: make(chan struct{})}
	go b.watch(bufio.NewReader(out))
	return b, nil
}

// watch reads what the bot prints until it ends.
func (b *botProcess) watch(out *bufio.Reader) {
	defer close(b.over)
	if line, err := out.ReadString('\n'); err == nil {
		b.code <- strings.TrimSpace(line)
	}
	_, _ = io.Copy(io.Discard, out) // until its end
	b.err = b.cmd.Wait()
}

var errEnded = errors.New("the bot has ended")

// qrCode is the text of the QR code that the bot shows.
func (b *botProcess) qrCode() (string, error) {
	select {
	case code := <-b.code:
		return code, nil
	case <-b.over:
		return "", errEnded
	}
}

// while waits for something that only a bot that lives can bring about.
func (b *botProcess) while(ctx context.Context, wait func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-b.over:
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	if err := wait(ctx); err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	return nil
}

// kill ends the bot with SIGKILL, if it still runs.
func (b *botProcess) kill() {
	_ = b.cmd.Process.Kill()
	<-b.over
}

// stop lets the bot end by itself.
func (b *botProcess) stop() error {
	if err := b.in.Close(); err != nil {
		return err
	}
	<-b.over
	return b.err
}
