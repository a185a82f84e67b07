package life

// The child: a client on a store, which does what it is told and tells what it sees, until it is killed.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
	signallogger "go.mau.fi/libsignal/logger"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/store"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// childSettings is the environment variable that makes the test binary a child: its settings as JSON.
const childSettings = "LIFE_CHILD"

// childMain runs the child, if this process is one.
func childMain() bool {
	encoded := os.Getenv(childSettings)
	if encoded == "" {
		return false
	}
	signallogger.Debug() // libsignal sets its default logger at the first use, without a lock
	c := &child{ctx: context.Background(), out: json.NewEncoder(os.Stdout)}
	os.Stdout = os.Stderr // where waLog writes to
	c.log = &heardLog{waLog.Stdout("child", "WARN", false), c}
	ofContexts := zerolog.New(c).Level(zerolog.WarnLevel)
	zerolog.DefaultContextLogger = &ofContexts // some lines go there
	err := json.Unmarshal([]byte(encoded), &c.settings)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// child is a client and the store that it lives on.
type child struct {
	settings
	ctx        context.Context
	log        waLog.Logger
	store      container
	statements statements
	bot        atomic.Pointer[bot] // the last one

	mu  sync.Mutex
	out *json.Encoder
}

// bot is a client of the child's.
type bot struct {
	*whatsmeow.Client
	child *child
	over  atomic.Bool // it has no device any more, or somebody else has its connection
}

func (c *child) say(e event) {
	c.mu.Lock()
	err := c.out.Encode(e)
	c.mu.Unlock()
	if err != nil {
		os.Exit(1) // the parent is gone
	}
}

func (c *child) run() (err error) {
	if c.store, err = c.open(); err != nil {
		return err
	}
	c.bot.Store(&bot{child: c})
	if !c.Idle {
		if err = c.live(); err != nil {
			return err
		}
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var cmd command
		if err = json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			return err
		}
		switch cmd.Do {
		case doReopen:
			c.bot.Load().Disconnect()
			c.done(cmd, nil, c.live())
		case doTake:
			value, err := c.take()
			c.done(cmd, value, err)
		case doRelease:
			value, err := c.letGo(c.release)
			c.done(cmd, value, err)
		case doJump:
			c.done(cmd, nil, jump(cmd.Text))
		case doQuit:
			value, err := c.letGo(c.store.Close)
			c.done(cmd, value, err)
			return nil
		default:
			go func() {
				value, err := c.bot.Load().obey(cmd)
				c.done(cmd, value, err)
			}()
		}
	}
	return nil
}

// done says what became of a command.
func (c *child) done(cmd command, value any, err error) {
	e := event{Kind: saidDone, Command: cmd.ID}
	if err != nil {
		e.Error = err.Error()
	}
	if value != nil {
		e.Value, _ = json.Marshal(value)
	}
	c.say(e)
}

func (c *child) device() (*store.Device, error) {
	if ours, ok := c.store.(*pgstore.Container); ok && c.Instance != "" {
		return ours.Instance(c.ctx, c.Instance)
	}
	return c.store.GetFirstDevice(c.ctx)
}

// live fetches the device and connects a client with it.
func (c *child) live() error {
	device, err := c.device()
	if err != nil {
		return err
	}
	return c.connect(device)
}

func (c *child) connect(device *store.Device) error {
	if c.DieAfter != "" {
		device.AppState = &dying{device.AppState, c.DieAfter}
	}
	b := &bot{Client: whatsmeow.NewClient(device, c.log), child: c}
	b.EnableDecryptedEventBuffer, b.SynchronousAck = c.Buffer, c.Synchronous
	b.UseRetryMessageStore = c.RetryStore
	b.InitialAutoReconnect = true
	b.AddEventHandlerWithSuccessStatus(b.handle)
	c.bot.Store(b)
	if err := c.Endpoint.Attach(b.Client); err != nil {
		return err
	}
	return b.Connect()
}
