package pgstore_test

import (
	"errors"
	"flag"
	"fmt"
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
	names := scalar[[]string](t, dsn, `SELECT array_agg(jid) FROM whatsmeow.instances`)
	looks, both := 0, 0
	for round := range *takeRounds {
		openers := []*opener{newOpener(t, dsn, "a"), newOpener(t, dsn, "b")}
		var opening sync.WaitGroup
		now := make(chan struct{})
		for _, o := range openers {
			for _, name := range names {
				opening.Go(func() {
					<-now
					o.open(name, round)
				})
			}
		}
		close(now)
		done := make(chan struct{})
		go func() {
			opening.Wait()
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
		for _, o := range openers {
			_ = o.c.Flush(ctx) // the loser's says so
		}
		require.Equal(t, instances, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.instances i WHERE (
			SELECT count(*) FROM whatsmeow.auth_keys k WHERE k.instance_id = i.id AND k.key_type = 'identity' AND k.key_id LIKE i.owner || $1) = 3`,
			fmt.Sprintf("_%d:%%", round)), "all that the owners wrote is there")
		both += scalar[int](t, dsn, `SELECT count(*) FROM (SELECT instance_id FROM public.takes GROUP BY instance_id HAVING count(DISTINCT owner) = 2) AS twice`)
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM public.takes a JOIN public.takes b USING (instance_id) WHERE a.n < b.n AND a.epoch >= b.epoch`))
		require.NoError(t, execSQL(t, dsn, `TRUNCATE public.takes`))
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM public.foreign_writes`), "writes of somebody who was not the owner when they were committed")
		var closing sync.WaitGroup
		for _, o := range openers {
			closing.Go(func() { _ = o.c.Close() })
		}
		closing.Wait()
	}
	require.Positive(t, both, "they never met")
	t.Logf("%d rounds, %d times one of %d instances was taken by both; looked at %d times", *takeRounds, both, instances, looks)

	// The judge sees a write that is not fenced.
	require.NoError(t, execSQL(t, withQuery(t, dsn, "application_name", "c"), `UPDATE whatsmeow.auth_keys SET seq = seq WHERE key_type = 'creds'`))
	require.Positive(t, scalar[int](t, dsn, `SELECT count(*) FROM public.foreign_writes`))
}

// opener is one of the two.
type opener struct {
	t    testing.TB
	c    *pgstore.Container
	name string
}

func newOpener(t testing.TB, dsn, name string) *opener {
	return &opener{t: t, name: name, c: process(t, withQuery(t, dsn, "application_name", name), func(cfg *pgstore.Config) {
		cfg.Owner, cfg.Lease = name, time.Minute
	})}
}

// open opens an instance and writes with it, as long as it has it.
func (o *opener) open(name string, round int) {
	jid, err := types.ParseJID(name)
	if err != nil {
		o.t.Error(err)
		return
	}
	d, err := o.c.GetDevice(ctx, jid)
	if err != nil {
		if !errors.Is(err, pgstore.ErrOwnershipLost) {
			o.t.Error(err)
		}
		return
	}
	for n := range 3 {
		if err = d.Identities.PutIdentity(ctx, fmt.Sprintf("%s_%d:%d", o.name, round, n), [32]byte{1}); err != nil {
			return
		}
	}
}
