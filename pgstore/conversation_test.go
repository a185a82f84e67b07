package pgstore_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types/events"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// said is all that a program with a container could write down: its log at debug level, every error that a call, a retry or a stop had, and what the client
// warns of, where it quotes the store's errors.
type said struct {
	log    lockedBuffer
	client lockedBuffer
	mu     sync.Mutex
	errors strings.Builder
}

// error notes an error and all that it wraps, in every way in which it may be printed.
func (s *said) error(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		fmt.Fprintf(&s.errors, "%v\n%+v\n%#v\n", err, err, err)
		switch wraps := err.(type) { //nolint:errorlint // each one is looked at
		case interface{ Unwrap() error }:
			walk(wraps.Unwrap())
		case interface{ Unwrap() []error }:
			for _, one := range wraps.Unwrap() {
				walk(one)
			}
		}
	}
	walk(err)
}

func (s *said) config(cfg *pgstore.Config) {
	cfg.DurableAcks = true
	cfg.Logger = slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.OnStop = func(stop pgstore.Stop) { s.error(stop.Err) }
}

func (s *said) observe(c *pgstore.Container) {
	c.Observe(pgstore.Observer{
		Flushed: func(f pgstore.Flush) { s.error(f.Err) },
		Retried: func(r pgstore.Retry) { s.error(r.Err) },
		Waited:  func(w pgstore.Wait) { s.error(w.Err) },
		Fetched: func(f pgstore.Fetch) { s.error(f.Err) },
		Failed:  func(f pgstore.Failure) { s.error(f.Err) },
	})
}

// clientLog is a client's log, of which what is not for debugging is kept.
type clientLog struct {
	waLog.Logger
	to *lockedBuffer
}

func (l clientLog) Warnf(format string, args ...any) { _, _ = fmt.Fprintf(l.to, format+"\n", args...) }

func (l clientLog) Errorf(format string, args ...any) { _, _ = fmt.Fprintf(l.to, format+"\n", args...) }
func (l clientLog) Sub(string) waLog.Logger           { return l }

// Somebody pairs, talks with people and in a group, loses the database, races with himself, finds rows that cannot be read and a database that went
// back, and is refused in the end: nothing of it writes down a secret, and each thing that matters is one line.
func TestP12AConversationWritesDownNoSecret(t *testing.T) {
	t.Parallel()
	within, cancel := context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	server, err := waserver.New(waserver.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	account, friend := server.NewAccount(""), server.NewContact(waserver.ContactConfig{Devices: 2})
	group := server.NewGroup(waserver.GroupConfig{}, account.Contact, friend)

	dsn := pgtest.Open(t)
	network := pgtest.NewProxy(t, dsn)
	out, secrets := new(said), new(secrettest.Secrets)
	var c *pgstore.Container
	var client *whatsmeow.Client
	codes, synced := make(chan string, 1), make(chan struct{}, len(appstate.AllPatchNames))
	heard := make(chan string, 100)
	begin := func() {
		cfg := pgstore.Config{DSN: network.DSN, Audit: pgstore.AuditAll}
		out.config(&cfg)
		var err error
		c, err = pgstore.NewWithConfig(within, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() }) // the last one is refused
		out.observe(c)
		d, err := c.GetFirstDevice(within)
		require.NoError(t, err)
		client = whatsmeow.NewClient(d, clientLog{waLog.Noop, &out.client})
		client.EnableDecryptedEventBuffer, client.SynchronousAck, client.EnableAutoReconnect, client.UseRetryMessageStore = true, true, false, true
		client.AddEventHandler(func(e any) {
			switch e := e.(type) {
			case *events.QR:
				codes <- e.Codes[0]
			case *events.AppStateSyncComplete:
				select {
				case synced <- struct{}{}:
				default: // once more, after the database went back
				}
			case *events.Message:
				if text := e.Message.GetConversation(); text != "" {
					heard <- text
				}
			}
		})
		require.NoError(t, server.Attach(client))
		t.Cleanup(client.Disconnect)
		require.NoError(t, client.Connect())
	}
	var device *waserver.Device
	end := func() {
		client.Disconnect()
		require.NoError(t, server.Wait(within, func() bool { return !device.Connected() }))
	}
	talk := func(text string) {
		t.Helper()
		m := waserver.Conversation("in " + text)
		m.MessageContextInfo = &waE2E.MessageContextInfo{MessageSecret: []byte(fmt.Sprintf("%-32s", "secret of "+text))}
		_, err := friend.Send(account.LID(), m)
		require.NoError(t, err)
		for got := ""; got != "in "+text; {
			select {
			case got = <-heard:
			case <-within.Done():
				require.Fail(t, "not heard", text)
			}
		}
		_, err = client.SendMessage(within, friend.LID(), waserver.Conversation("out "+text))
		require.NoError(t, err)
		_, err = client.SendMessage(within, group.JID(), waserver.Conversation("all "+text))
		require.NoError(t, err)
	}
	note := func() {
		t.Helper()
		require.NoError(t, c.Flush(within))
		secrets.Note(t, dsn)
	}

	begin()
	device, err = account.Scan(within, <-codes)
	require.NoError(t, err)
	for range appstate.AllPatchNames {
		<-synced
	}
	require.NoError(t, account.WaitSynced(within, device))
	note()
	talk("a day like others")
	_, err = friend.SendText(group.JID(), "to all")
	require.NoError(t, err)
	require.NoError(t, server.WaitIdle(within))
	note()

	network.Down()
	_, err = client.SendMessage(within, friend.LID(), waserver.Conversation("from memory"))
	require.NoError(t, err)
	short, stop := context.WithTimeout(within, 300*time.Millisecond)
	_, err = c.Instances(short)
	stop()
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	out.error(err)
	require.Eventually(t, func() bool { return c.Stats().Batcher.Retries > 0 }, time.Minute, time.Millisecond)
	network.Up()
	note()

	address := friend.Devices()[0].LID().SignalAddress().String()
	_, err = client.Store.Sessions.GetManySessions(within, []string{address})
	require.NoError(t, err)
	_, err = client.SendMessage(within, friend.LID(), waserver.Conversation("overtakes"))
	require.NoError(t, err)
	now, err := client.Store.Sessions.GetSession(within, address)
	require.NoError(t, err)
	err = client.Store.Sessions.PutManySessions(within, map[string][]byte{address: now})
	require.ErrorIs(t, err, pgstore.ErrMessageKeyUsed)
	out.error(err)
	note()

	end()
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_build_object('spoilt', data) WHERE key_type = 'identity'`,
		`UPDATE whatsmeow.instances SET timeline = '000000FF'`))
	begin()
	require.NoError(t, device.WaitConnected(within))
	talk("after a restore")
	require.NoError(t, server.WaitIdle(within))
	note()
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.instances SET seq = seq - 1`))
	talk("while it went back")
	note()
	require.NoError(t, server.WaitIdle(within))
	require.NoError(t, execSQL(t, dsn, `ALTER TABLE whatsmeow.auth_keys ADD CHECK (key_type <> 'session') NOT VALID`))
	_, err = client.SendMessage(within, friend.LID(), waserver.Conversation("refused"))
	out.error(err)
	err = c.Flush(within)
	require.ErrorIs(t, err, pgstore.ErrRefused)
	out.error(err)
	secrets.Note(t, dsn)
	end()
	out.error(c.Close())

	require.Subset(t, secrets.Kinds(), []string{
		"app_state_key", "creds", "identity", "message_secret", "outgoing_event", "pre_key", "sender_key", "session",
	})
	log := out.log.String()
	for line, times := range map[string]int{
		"its message key was used":              1,
		"sending chains are abandoned":          1,
		"instance taken anew and written again": 1,
		"instance stopped":                      1,
		"stored row cannot be read, set aside":  -1, // one for each row
		"flush failed, will be tried again":     -1,
	} {
		require.Contains(t, log, line)
		if times > 0 {
			require.Equal(t, times, strings.Count(log, line), line)
		}
	}
	secrets.RequireNoneIn(t, "the log", log)
	secrets.RequireNoneIn(t, "errors", out.errors.String())
	secrets.RequireNoneIn(t, "the client's log", "-"+out.client.String())
	secrets.RequireNoneInTables(t, dsn, "whatsmeow.audit", "whatsmeow.audit_keys")
	for _, word := range []string{"a day like", "from memory", "overtakes", "after a restore"} {
		require.NotContains(t, log+out.errors.String(), word)
	}
}
