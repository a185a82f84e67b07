package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

// stage is all that plays.
type stage struct {
	dsn      string
	server   *waserver.Server
	conn     *pgx.Conn // for the table
	accounts []*waserver.Account
	contacts []*waserver.Contact

	workers  []*workerProcess // that are to be there, the oldest first
	started  int              // workers
	sent     int              // messages
	happened []string
}

// play lets contacts write and things happen to the workers until the context ends, and then waits for the last answer.
func (s *stage) play(ctx context.Context) error {
	defer s.killAll()
	for range workers {
		if err := s.start(); err != nil {
			return err
		}
	}
	write, happen, show := time.NewTicker(rhythm), time.NewTicker(pace), time.NewTicker(time.Second)
	defer write.Stop()
	defer happen.Stop()
	defer show.Stop()
	for next := 0; ; {
		select {
		case <-ctx.Done():
			return s.end(context.WithoutCancel(ctx))
		case <-write.C:
			s.sent++
			if _, err := s.contacts[s.sent%devices].SendText(s.accounts[rand.IntN(devices)].LID(), strconv.Itoa(s.sent)); err != nil { //nolint:contextcheck,gosec // it waits for nobody; and need not be secret
				return err
			}
		case <-happen.C:
			if err := happenings[next%len(happenings)](s); err != nil {
				return err
			}
			next++
		case <-show.C:
			if err := s.show(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// happenings are what happens, one after the other.
var happenings = []func(*stage) error{
	func(s *stage) error {
		s.tell("%s is killed, without a chance to let go. %s is started.", s.workers[0].name, s.nextName())
		s.workers[0].kill()
		s.workers = s.workers[1:]
		return s.start()
	},
	func(s *stage) error {
		s.tell("%s is frozen, as a suspended machine is: the others take it for dead.", s.workers[0].name)
		return s.workers[0].freeze()
	},
	func(s *stage) error {
		s.tell("%s wakes up: it has lost everything, does no harm, and takes its share again.", s.workers[0].name)
		return s.workers[0].thaw()
	},
	func(s *stage) error {
		s.tell("A deploy: %s is started, and %s gets SIGTERM and lets go.", s.nextName(), s.workers[0].name)
		if err := s.start(); err != nil {
			return err
		}
		old := s.workers[0]
		s.workers = s.workers[1:]
		return old.stop()
	},
}

func (s *stage) nextName() string { return fmt.Sprint("worker ", s.started+1) }

// start starts one more worker.
func (s *stage) start() error {
	w, err := startWorker(s.nextName(), s.dsn, s.server.Endpoint())
	if err == nil {
		s.started++
		s.workers = append(s.workers, w)
	}
	return err
}

func (s *stage) killAll() {
	for _, w := range s.workers {
		w.kill()
	}
}

// tell tells what happens: at once, or under the next table on a terminal.
func (s *stage) tell(format string, args ...any) {
	s.happened = append(s.happened, fmt.Sprintf(format, args...))
	if !terminal() {
		fmt.Println(s.happened[len(s.happened)-1])
	}
}

func terminal() bool {
	info, err := os.Stdout.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// show shows who runs what.
func (s *stage) show(ctx context.Context) error {
	text, err := table(ctx, s.conn)
	if err != nil {
		return err
	}
	text += fmt.Sprintf("\nMessages: %d, answered: %d. Ctrl-C ends.\n\n", s.sent, s.answered())
	if terminal() {
		latest := s.happened[max(0, len(s.happened)-5):]
		text = clearScreen + text + strings.Join(latest, "\n") + "\n"
	}
	fmt.Print(text)
	return nil
}

// answered is how many messages were answered: each has a text of its own.
func (s *stage) answered() int {
	texts := make(map[string]bool)
	for _, contact := range s.contacts {
		for _, r := range contact.Received() {
			texts[r.Text] = true
		}
	}
	return len(texts)
}

// end waits until all is answered, ends the workers, and says what came of it.
func (s *stage) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("not all is answered"))
	defer cancel()
	fmt.Println("Nobody writes any more. The last answers are waited for.")
	var errs []error
	for _, w := range s.workers {
		errs = append(errs, w.thaw())
	}
	if err := s.server.Wait(ctx, func() bool { return s.answered() == s.sent }); err != nil {
		errs = append(errs, context.Cause(ctx))
	}
	errs = append(errs, s.server.WaitIdle(ctx))
	for _, w := range slices.Backward(s.workers) {
		errs = append(errs, w.stop())
	}
	s.workers = nil
	stats := s.server.Stats()
	var unread []waserver.Undecryptable
	// A worker that wakes up may log in once more before it knows what it has lost, and send below what its successor has sent; it repeats no key.
	twice := slices.DeleteFunc(s.server.Record().Reused(), func(f waserver.Finding) bool { return f.Kind == waserver.ReusedChain })
	for _, contact := range s.contacts {
		unread = append(unread, contact.Lost()...) // what could be read when it came again is not lost
	}
	fmt.Println()
	fmt.Println("Devices:", devices)
	fmt.Println("QR codes:", stats.QRCodes)
	fmt.Printf("Messages: %d, answered: %d\n", s.sent, s.answered())
	fmt.Println("Answers that nobody could read:", len(unread))
	fmt.Println("Message keys used twice:", len(twice))
	if stats.QRCodes != devices || stats.RefusedLogins != 0 || stats.BadIdentities != 0 || len(unread) != 0 || len(twice) != 0 {
		errs = append(errs, fmt.Errorf("that is not what should have happened %v %v", twice, unread))
	}
	return errors.Join(errs...)
}
