package pgstore_test

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

var takeRounds = flag.Int("take.rounds", 10, "how often two processes open the same instances at the same moment; the long form is 200")

// watchWrites makes the database judge each write: whose connection it comes from, and who has the instance when it is committed. The flush holds the lock of
// the instance's row until then, so no other moment need be looked at. It also notes each take, in the order of the commits of one instance.
//
// A connection says who it is by its application_name, and an instance by its column owner.
var watchWrites = []string{
	`CREATE TABLE public.foreign_writes (instance_id text, writer text, owner text)`,
	`CREATE TABLE public.takes (n bigserial, instance_id text, epoch bigint, owner text, process uuid)`,
	`CREATE FUNCTION public.judge_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO public.foreign_writes SELECT id, current_setting('application_name'), owner FROM whatsmeow.instances
			WHERE id = NEW.instance_id AND owner <> current_setting('application_name');
		RETURN NULL;
	END $$`,
	`CREATE CONSTRAINT TRIGGER judge AFTER INSERT OR UPDATE ON whatsmeow.auth_keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.judge_write()`,
	`CREATE FUNCTION public.note_take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO public.takes (instance_id, epoch, owner, process) VALUES (NEW.id, NEW.epoch, NEW.owner, NEW.process);
		RETURN NULL;
	END $$`,
	`CREATE TRIGGER note AFTER UPDATE ON whatsmeow.instances FOR EACH ROW WHEN (OLD.epoch <> NEW.epoch) EXECUTE FUNCTION public.note_take()`,
}

// Two processes open the same instances at the same moment. As the database sees it, each instance has one owner at every instant: whenever it is looked at
// one that lives, of each take it knows which came later, and every write that it commits is the owner's of that moment.
func TestP6OfTwoThatTakeAtOnceOneIsTheOwner(t *testing.T) {
	t.Parallel()
	const instances = 50
	dsn := pgtest.Open(t)
	insertDevices(t, dsn, instances-1)
	require.NoError(t, execSQL(t, dsn, watchWrites...))
	var openers []*toldProcess
	for _, name := range []string{"a", "b"} {
		openers = append(openers, startProcesses(t, 1, "TestTakingProcess", withQuery(t, dsn, "application_name", name))...)
	}
	looks, both := 0, 0
	for round := range *takeRounds {
		requireAll(t, "ok", tell(openers, toStart))
		var opened []string
		done := make(chan struct{})
		go func() {
			opened = tell(openers, toTake)
			close(done)
		}()
		taken := false // all of them, once
		for over := false; !over; looks++ {
			select {
			case <-done:
				over = true // and once more
			default:
			}
			alive := scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE alive AND owner IN ('a', 'b')`)
			require.False(t, taken && alive < instances, "%d of %d instances have an owner", alive, instances)
			taken = taken || alive == instances
		}
		require.True(t, taken)
		requireAll(t, "ok", opened)
		for _, answer := range tell(openers, toFlush) {
			require.Contains(t, []string{"ok", lost}, answer)
		}
		require.Equal(t, instances, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances i WHERE (
			SELECT count(*) FROM whatsmeow.auth_keys k WHERE k.instance_id = i.id AND k.key_type = 'identity' AND k.key_id LIKE i.owner || $1) = 3`,
			fmt.Sprintf("_%d:%%", round)), "all that the owners wrote is there")
		both += scalar[int](t, dsn, `SELECT count(*) FROM (SELECT instance_id FROM public.takes GROUP BY instance_id HAVING count(DISTINCT owner) = 2) AS twice`)
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM public.takes a JOIN public.takes b USING (instance_id) WHERE a.n < b.n AND a.epoch >= b.epoch`))
		require.NoError(t, execSQL(t, dsn, `TRUNCATE public.takes`))
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM public.foreign_writes`), "writes of somebody who was not the owner when they were committed")
		requireAll(t, "ok", tell(openers, toClose))
	}
	require.Positive(t, both, "they never met")
	t.Logf("%d rounds, %d times one of %d instances was taken by both; looked at %d times", *takeRounds, both, instances, looks)

	// The judge sees a write that is not fenced.
	require.NoError(t, execSQL(t, withQuery(t, dsn, "application_name", "c"), `UPDATE whatsmeow.auth_keys SET seq = seq WHERE key_type = 'creds'`))
	require.Positive(t, scalar[int](t, dsn, `SELECT count(*) FROM public.foreign_writes`))
}

// what a taking process can be told, besides toStart, toTake and toClose.
const toFlush = "flush" // save what it wrote

// TestTakingProcess is one of the two; alone it does nothing. In each round it opens all instances at once, with a new container, and writes.
func TestTakingProcess(t *testing.T) {
	dsn := os.Getenv(openingDSN)
	if dsn == "" {
		return
	}
	o := opener{round: -1}
	at, err := url.Parse(dsn)
	require.NoError(t, err)
	o.name = at.Query().Get("application_name")
	obey(func(what string) (err error) {
		switch what {
		case toStart:
			o.round++
			o.c, err = pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Owner: o.name, Lease: time.Minute})
			return err
		case toTake:
			return o.openAll()
		case toFlush:
			return o.c.Flush(ctx)
		case toClose:
			if err = o.c.Close(); errors.Is(err, pgstore.ErrOwnershipLost) {
				return nil // of those that the other one has
			}
			return err
		}
		return fmt.Errorf("unknown: %q", what)
	})
}

// opener is one of the two, seen from inside.
type opener struct {
	c     *pgstore.Container
	name  string
	round int
}

// openAll opens all instances at once.
func (o *opener) openAll() error {
	known, err := o.c.Instances(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(known))
	var opening sync.WaitGroup
	for i, in := range known {
		opening.Go(func() { errs[i] = o.open(in.JID) })
	}
	opening.Wait()
	return errors.Join(errs...)
}

// open opens an instance and writes with it, as long as it has it.
func (o *opener) open(name string) error {
	jid, err := types.ParseJID(name)
	if err != nil {
		return err
	}
	d, err := o.c.GetDevice(ctx, jid)
	if errors.Is(err, pgstore.ErrOwnershipLost) {
		return nil
	} else if err != nil {
		return err
	}
	for n := range 3 {
		if err = d.Identities.PutIdentity(ctx, fmt.Sprintf("%s_%d:%d", o.name, o.round, n), [32]byte{1}); err != nil {
			break // the other one has it
		}
	}
	return nil
}
