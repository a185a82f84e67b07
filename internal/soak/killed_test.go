package soak

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// A child is a process with an instance of its own, which does one step after another until it is killed. It says when a step
// begins, and up to which step all is durable. Its steps follow from a seed, so that the one who kills it can take them, too, and knows what
// the instance held after each: the rows have to be one of these moments (P3), and not an earlier one than was promised (P5).

const (
	childDSN  = "PGSTORE_TEST_SOAK_DSN"
	childSeed = "PGSTORE_TEST_SOAK_SEED"
	childMode = "PGSTORE_TEST_SOAK_SENDS"
)

// childSteps are the steps of which a model knows the outcome without a store, each of them one group.
var childSteps = []step{
	{"sessions", sessions},
	{"sender key", senderKey},
	{"secret", secret},
	{"name", name},
	{"token", token},
	{"transaction", transaction},
	{acknowledged, acknowledge},
	{"outgoing event", outgoingEvent},
	{"sync key", syncKey},
	{"NCT salt", nctSalt},
	{"patch", patch},
}

// acknowledged is the step after which all before it is durable, with DurableAcks.
const acknowledged = "acknowledge"

func newChildResident(seed uint64, d *store.Device) *resident {
	return &resident{rng: rand.New(rand.NewPCG(seed, 0)), device: d, model: newModel()}
}

func (r *resident) childStep(ctx context.Context) (what string, err error) {
	s := childSteps[r.rng.IntN(len(childSteps))]
	return s.name, s.do(ctx, nil, r)
}

// childAcks says whether the child of a seed has DurableAcks.
func childAcks(seed uint64) bool { return seed/3%2 == 0 }

// beChild is what the child does. It ends when the process ends that started it.
func beChild(dsn string) error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	if err != nil {
		return err
	}
	mode, err := strconv.Atoi(os.Getenv(childMode))
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, FlushTimeout: flushTimeout, Sends: pgstore.SendMode(mode), DurableAcks: childAcks(seed), Owner: "child"})
	if err != nil {
		return err
	}
	d := c.NewDevice()
	signaltest.FillPairing(d)
	if err = d.Save(ctx); err != nil {
		return err
	}
	fmt.Println("jid", d.ID)
	r := newChildResident(seed, d)
	for n := 1; ; n++ {
		fmt.Println("begin", n)
		if err = r.childTurn(c, n, childAcks(seed)); err != nil {
			return err
		}
		time.Sleep(rand.N(20 * time.Millisecond))
	}
}

// childTurn takes the n-th step, and sometimes waits until it is durable.
func (r *resident) childTurn(c *pgstore.Container, n int, acks bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	what, err := r.childStep(ctx)
	if err != nil {
		return err
	}
	if acks && what == acknowledged {
		fmt.Println("kept", n)
		return nil
	}
	switch rand.IntN(10) {
	case 0:
		if err := c.Flush(ctx); err != nil {
			return err
		}
	case 1:
		key, err := r.device.PreKeys.GenOnePreKey(ctx)
		if err != nil {
			return err
		}
		fmt.Println("prekey", key.KeyID) // what came before it is durable, too
	default:
		return nil
	}
	fmt.Println("kept", n)
	return nil
}

// child is one that lives.
type child struct {
	cmd  *exec.Cmd
	seed uint64
	over chan struct{} // closed when all that it has said was heard

	// What it has said. Read it when over is closed.
	jid         types.JID
	begun, kept int
	preKeys     []uint32
	other       []string
}

// startChild starts one and returns when it is paired.
func startChild(t testing.TB, dsn string, seed uint64) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0]), seed: seed, over: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childDSN+"="+dsn, childSeed+"="+strconv.FormatUint(seed, 10),
		childMode+"="+strconv.Itoa(int(seed%3)), "GORACE=halt_on_error=1")
	c.cmd.Stderr = os.Stderr
	_, err := c.cmd.StdinPipe() // open until we end
	require.NoError(t, err)
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	paired := make(chan struct{})
	go func() {
		defer close(c.over)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			c.hear(lines.Text())
			if lines.Text() == "begin 1" {
				close(paired)
			}
		}
	}()
	select {
	case <-paired:
	case <-c.over:
		require.Fail(t, "child ended", c.other)
	}
	return c
}

func (c *child) hear(line string) {
	what, rest, _ := strings.Cut(line, " ")
	n, err := strconv.Atoi(rest)
	switch what {
	case "jid":
		c.jid, err = types.ParseJID(rest)
	case "begin":
		c.begun = n
	case "kept":
		c.kept = n
	case "prekey":
		c.preKeys = append(c.preKeys, uint32(n))
	default:
		err = fmt.Errorf("unknown")
	}
	if err != nil {
		c.other = append(c.other, line)
	}
}

// kill ends it with SIGKILL, and looks at what it left in the database.
func (c *child) kill(t testing.TB, dsn string) {
	t.Helper()
	_ = c.cmd.Process.Kill()
	<-c.over
	require.Error(t, c.cmd.Wait())
	require.Equal(t, syscall.SIGKILL, c.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(), "%v", c.other)
	require.Empty(t, c.other)

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	opened, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Owner: "who looks at a killed child"})
	require.NoError(t, err)
	d, err := opened.GetDevice(ctx, c.jid)
	require.NoError(t, err)
	require.NotNil(t, d)
	held := newChildResident(c.seed, withoutStore(opened.NewDevice()))
	held.model.preKeys = c.preKeys
	for n := 0; ; n++ {
		if n >= c.kept {
			left := &resident{rng: rand.New(rand.NewPCG(0, 0)), device: d, model: held.model, events: held.events} // draws nothing from held
			if err = left.checkAll(ctx); err == nil {
				t.Logf("child killed in step %d left step %d; promised was %d", c.begun, n, c.kept)
				break
			}
		}
		require.Less(t, n, c.begun, "what the child left is none of the moments from step %d on: %v", c.kept, err)
		_, err = held.childStep(ctx)
		require.NoError(t, err)
	}
	require.NoError(t, d.Delete(ctx))
	require.NoError(t, opened.Close())
}

// withoutStore makes a device of which the model alone knows what was put.
func withoutStore(d *store.Device) *store.Device {
	d = signaltest.NewMemoryDevice(d)
	d.Contacts = &names{ContactStore: d.Contacts, known: make(map[types.JID]string)}
	return d
}

// names is the part of a contact store that steps look at.
type names struct {
	store.ContactStore
	known map[types.JID]string
}

// PutPushName implements [store.ContactStore].
func (s *names) PutPushName(_ context.Context, who types.JID, name string) (bool, string, error) {
	was := s.known[who]
	s.known[who] = name
	return true, was, nil
}
