package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/sync/errgroup"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// stage is all that plays: numbers with a phone and a contact each, and what has become of what they wrote.
type stage struct {
	server  *waserver.Server
	cluster *cluster
	api     *caller
	hooks   *receiver
	rhythm  time.Duration // of what contacts write, and of what instances send

	mu       sync.Mutex
	numbers  map[string]*number // by instance
	scanning map[string]bool    // those at whose code a phone is pointed
	scans    int
}

// number is what an instance is, outside of the gateway.
type number struct {
	account *waserver.Account
	contact *waserver.Contact
	linked  *waserver.Device
	gone    bool // somebody has unlinked or deleted it
	written int  // by the contact
	sent    int  // by the instance
}

const (
	fetching = 3 * time.Second // until somebody has fetched a phone, and points it at a code on the page
	patience = 4 * time.Minute // until all has arrived: a webhook whose process was killed may take two
)

func newStage(server *waserver.Server, c *cluster, front string) (*stage, error) {
	hooks, err := newReceiver()
	if err != nil {
		return nil, err
	}
	c.flags = append(c.flags, "-webhook", hooks.url, "-webhook-secret", demoHookKey)
	return &stage{server: server, cluster: c, api: &caller{base: front}, hooks: hooks, rhythm: 100 * time.Millisecond, numbers: make(map[string]*number), scanning: make(map[string]bool)}, nil
}

func (s *stage) close() {
	s.cluster.killAll()
	s.hooks.close()
}

// play lets contacts write and processes come and go until the context ends, and then waits until all has arrived.
func (s *stage) play(ctx context.Context, pace time.Duration) error {
	for range demoProcesses {
		started, err := s.cluster.start()
		if err != nil {
			return err
		}
		fmt.Printf("%s is there, as process %d.\n", started.name, started.cmd.Process.Pid)
	}
	if err := s.link(ctx, demoInstances); err != nil {
		return err
	}
	fmt.Printf("%d phones have scanned a code each.\nThe page is at %s and shows what happens. Ctrl-C ends.\n", demoInstances, s.api.base)
	if pace <= 0 {
		pace = 100 * 365 * 24 * time.Hour
	}
	playing, writing := errgroup.WithContext(ctx) // what fails ends it all, and is told
	playing.Go(func() error { return s.talk(writing) })
	playing.Go(func() error { return s.phones(writing) })
	playing.Go(func() error { return s.happen(writing, pace) })
	if err := playing.Wait(); err != nil {
		return err
	}
	return s.end(context.WithoutCancel(ctx))
}

// link creates instances through the API, and has a phone scan the code of each.
func (s *stage) link(ctx context.Context, n int) error {
	var linking errgroup.Group
	linking.SetLimit(4)
	for i := range n {
		linking.Go(func() error {
			id := fmt.Sprintf("number-%02d", i+1)
			if err := s.api.call(ctx, http.MethodPost, "/v1/instances", map[string]string{"id": id}, nil); err != nil {
				return err
			}
			return s.scan(ctx, id)
		})
	}
	return linking.Wait()
}

// scan has a phone of its own scan the code that an instance shows, and returns when it is linked.
func (s *stage) scan(ctx context.Context, id string) error {
	account := s.server.NewAccount("")
	contact := s.server.NewContact(waserver.ContactConfig{Name: "Contact of " + id})
	contact.Echo("you said: ")
	var device *waserver.Device
	var scanErr error
	var scanning sync.WaitGroup
	linked, begun := false, false
	show := func(kind string, data []byte) bool {
		var event struct {
			Data qrCode `json:"data"`
		}
		if kind == "qr" && !begun && json.Unmarshal(data, &event) == nil {
			begun = true
			scanning.Go(func() { device, scanErr = account.Scan(ctx, event.Data.Code) })
		}
		linked = kind == "paired"
		return kind == "qr"
	}
	err := s.api.stream(ctx, "/v1/instances/"+id+"/pair", show)
	for p := (*problem)(nil); errors.As(err, &p) && p.Status >= 500 && ctx.Err() == nil; { // nothing was shown
		wait(ctx, time.Second)
		err = s.api.stream(ctx, "/v1/instances/"+id+"/pair", show)
	}
	scanning.Wait()
	if err = errors.Join(err, scanErr); err != nil {
		return err
	} else if !linked {
		return errors.New(id + " was not linked")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scans++
	s.numbers[id] = &number{account: account, contact: contact, linked: device}
	return nil
}

// phones scan what people create on the page, as soon as they look at its code.
func (s *stage) phones(ctx context.Context) error {
	var scanning sync.WaitGroup
	defer scanning.Wait()
	for ctx.Err() == nil {
		var all struct{ Instances []instanceInfo }
		before := s.all()
		if err := s.api.call(ctx, http.MethodGet, "/v1/instances", nil, &all); err == nil {
			for _, id := range s.look(before, all.Instances) {
				scanning.Go(func() {
					wait(ctx, fetching)
					if err := s.scan(ctx, id); err != nil && ctx.Err() == nil {
						fmt.Println("A phone could not scan:", err)
					}
				})
			}
		}
		wait(ctx, time.Second)
	}
	return nil
}

// look notes which of the numbers that were there before the instances were listed are gone, and returns the instances that have begun to show a code.
func (s *stage) look(before map[string]*number, all []instanceInfo) (showing []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	linked := make(map[string]bool)
	for _, i := range all {
		linked[i.ID] = i.JID != ""
		pairing := i.State == "pairing"
		if pairing && !s.scanning[i.ID] {
			showing = append(showing, i.ID)
		}
		s.scanning[i.ID] = pairing
	}
	for id, n := range before {
		n.gone = n.gone || !linked[id]
	}
	return showing
}

// wait waits, or returns when the context ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// linked are the instances that can be written to.
func (s *stage) linked() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.numbers {
		if !n.gone {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (s *stage) all() map[string]*number {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.numbers)
}

func (s *stage) number(id string) *number {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numbers[id]
}

// talk lets contacts write to instances, and instances send to contacts, each message with a number of its own.
func (s *stage) talk(ctx context.Context) error {
	tick := time.NewTicker(s.rhythm)
	defer tick.Stop()
	var sending errgroup.Group
	sending.SetLimit(16)
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return sending.Wait()
		case <-tick.C:
		}
		ids := s.linked()
		id := ids[rand.IntN(len(ids))] //nolint:gosec // it need not be secret
		n := s.number(id)
		if _, err := n.contact.SendText(n.account.LID(), fmt.Sprintf("message %d", i)); err != nil { //nolint:contextcheck // it waits for nobody
			return err
		}
		s.count(&n.written)
		sending.Go(func() error {
			text := fmt.Sprintf("news %d", i)
			err := s.api.send(context.WithoutCancel(ctx), id, n.contact.PN().String(), text, text)
			if err == nil {
				s.count(&n.sent)
			} else if p := (*problem)(nil); errors.As(err, &p) { // somebody has deleted it on the page
				err = nil
			}
			return err
		})
	}
}

func (s *stage) count(what *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*what++
}

// happen ends a process every few seconds, and starts another one: one time it is killed, the other time it is a deploy.
func (s *stage) happen(ctx context.Context, pace time.Duration) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for kill := true; ; kill = !kill {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		started, err := s.cluster.start()
		if err != nil {
			return err
		}
		old := s.cluster.oldest()
		if kill {
			fmt.Printf("%s is killed, without a chance to let go. %s is there.\n", old.name, started.name)
			old.kill()
			continue
		}
		fmt.Printf("A deploy: %s is there, and %s gets SIGTERM and hands over.\n", started.name, old.name)
		if err = old.stop(); err != nil {
			return fmt.Errorf("%s: %w", old.name, err)
		}
	}
}

// tally is how many messages of all numbers that are still linked were written and told by webhooks, sent and arrived; each has a text of its own.
func (s *stage) tally() (written, told, sent, arrived int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.numbers {
		if n.gone {
			continue
		}
		texts := make(map[string]bool)
		for _, r := range n.contact.Received() {
			if strings.HasPrefix(r.Text, "news ") {
				texts[r.Text] = true
			}
		}
		written, told, sent, arrived = written+n.written, told+s.hooks.told(id, "message "), sent+n.sent, arrived+len(texts)
	}
	return written, told, sent, arrived
}

// end waits until all has arrived, and says what came of it.
func (s *stage) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not all has arrived"))
	defer cancel()
	fmt.Println("Nobody writes any more. What is under way is waited for.")
	var errs []error
	written, told, sent, arrived := s.tally()
	for ; told < written || arrived < sent; written, told, sent, arrived = s.tally() {
		if wait(ctx, 100*time.Millisecond); ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
	}
	stats, twice, unread := s.server.Stats(), len(s.server.Record().Reused()), 0
	for _, n := range s.numbers {
		unread += len(n.contact.Lost())
	}
	fmt.Println()
	fmt.Println("Instances that were linked:", s.scans)
	fmt.Println("QR codes:", stats.QRCodes)
	fmt.Printf("Messages that came in: %d, webhooks: %d\n", written, told)
	fmt.Printf("Messages that were sent: %d, arrived: %d\n", sent, arrived)
	fmt.Println("Messages that nobody could read:", unread)
	fmt.Println("Message keys used twice:", twice)
	if stats.QRCodes != s.scans || stats.BadIdentities != 0 || unread != 0 || twice != 0 {
		errs = append(errs, errors.New("that is not what should have happened"))
	}
	return errors.Join(errs...)
}

// receiver is somebody who is told of incoming messages by webhooks.
type receiver struct {
	url    string
	server *http.Server
	mu     sync.Mutex
	texts  map[string]map[string]int // by instance: how often each was told
	all    int                       // attempts
	bad    int                       // signatures that are wrong
	refuse int                       // how many attempts are turned away
}

func newReceiver() (*receiver, error) {
	check, err := standardwebhooks.NewWebhook(demoHookKey)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is there at once
	if err != nil {
		return nil, err
	}
	r := &receiver{url: "http://" + listener.Addr().String(), texts: make(map[string]map[string]int)}
	r.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		var event struct{ Data receivedMessage }
		err := errors.Join(check.Verify(body, request.Header), json.Unmarshal(body, &event))
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all++
		if r.refuse > 0 {
			r.refuse--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if err != nil {
			r.bad++
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.texts[event.Data.Instance] == nil {
			r.texts[event.Data.Instance] = make(map[string]int)
		}
		r.texts[event.Data.Instance][event.Data.Text]++
		w.WriteHeader(http.StatusNoContent)
	})}
	go func() { _ = r.server.Serve(listener) }() // until close
	return r, nil
}

// told is how many different texts of one beginning were told of an instance.
func (r *receiver) told(instance, beginning string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for text := range r.texts[instance] {
		if strings.HasPrefix(text, beginning) {
			n++
		}
	}
	return n
}

func (r *receiver) close() { _ = r.server.Close() }
