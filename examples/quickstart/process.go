package main

import (
	"bufio"
	"context"
	"encoding/json"
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
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
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
	return &botProcess{cmd, in, bufio.NewReader(out)}, cmd.Start()
}

// qrCode is the text of the QR code that the bot shows.
func (b *botProcess) qrCode() (string, error) {
	line, err := b.out.ReadString('\n')
	return strings.TrimSpace(line), err
}

// kill ends the bot with SIGKILL, if it still runs.
func (b *botProcess) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// stop lets the bot end by itself.
func (b *botProcess) stop() error {
	if err := b.in.Close(); err != nil {
		return err
	}
	return b.cmd.Wait()
}
