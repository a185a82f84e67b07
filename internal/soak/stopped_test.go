package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/batcher"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// limit makes a role that may only read and write, for the process at limited, and returns the DSN as that role.
func (b *badDays) limit(t testing.TB, dsn string) string {
	t.Helper()
	b.role = "soak_" + strconv.FormatUint(rand.Uint64(), 36) // roles belong to the whole server
	b.exec(t, `CREATE ROLE `+b.role+` LOGIN PASSWORD 'role'`,
		`GRANT USAGE ON SCHEMA whatsmeow TO `+b.role,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA whatsmeow TO `+b.role,
		`GRANT USAGE ON ALL SEQUENCES IN SCHEMA whatsmeow TO `+b.role)
	t.Cleanup(func() { b.exec(t, `DROP OWNED BY `+b.role, `DROP ROLE `+b.role) })
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.User = url.UserPassword(b.role, "role")
	return u.String()
}

// revoke takes the rights on the table away from one process; the others go on.
func revoke(t testing.TB, b *badDays) {
	rights := []string{`INSERT, UPDATE, DELETE`, `SELECT, INSERT, UPDATE, DELETE`}[b.rng.IntN(2)]
	stopAndComeBack(t, b, b.processes[limited:limited+1],
		`REVOKE `+rights+` ON whatsmeow.auth_keys FROM `+b.role,
		`GRANT `+rights+` ON whatsmeow.auth_keys TO `+b.role)
}

// missTable takes the table away from all.
func missTable(t testing.TB, b *badDays) {
	b.child.kill(t, b.dsn)
	b.child = nil
	stopAndComeBack(t, b, b.processes, `ALTER TABLE whatsmeow.auth_keys RENAME TO gone`, `ALTER TABLE whatsmeow.gone RENAME TO auth_keys`)
}

// moments are what an instance held after each of its steps, as far as it has to be known; the last step was refused.
type moments struct {
	held []*resident
	kept int // the first one that the database may hold
}

// stopAndComeBack lets the instances of processes take one step after another until the database refuses them. They say so, and when it is
// mended and they are taken again each holds a moment that was (P3). Whoever lost something of what it had taken is named at the end.
func stopAndComeBack(t testing.TB, b *badDays, those []*process, spoil, mend string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, p := range those {
		p.mu.Lock()
		defer p.mu.Unlock()
		require.NoError(t, p.container.Flush(ctx))
	}
	lived := make(map[*resident]*moments)
	var wg sync.WaitGroup
	for _, p := range those {
		for _, r := range p.residents {
			m := new(moments)
			lived[r] = m
			wg.Go(func() {
				if err := r.stepUntilRefused(ctx, p, m); !errors.Is(err, pgstore.ErrRefused) || !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v, want a refusal", p.config.Owner, err)
				}
			})
		}
	}
	time.Sleep(b.moment(time.Second))
	b.exec(t, spoil)
	wg.Wait()
	stopped := 0
	for _, p := range those {
		require.ErrorIs(t, p.container.Flush(ctx), pgstore.ErrRefused)
		stopped += p.container.Stats().Batcher.Stopped
		require.Zero(t, p.container.Stats().Batcher.Pending)
	}
	require.Positive(t, stopped)
	b.exec(t, mend)
	for _, p := range those {
		lost := p.rewind(t, lived)
		require.NoError(t, p.restart(pgstore.ErrRefused, lost))
	}
}

// restart closes a process that cannot save everything, which says why and for whom, and begins it again.
func (p *process) restart(why error, lost []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := p.container.Shutdown(ctx)
	var unsaved *batcher.UnsavedError
	if !errors.As(err, &unsaved) || !errors.Is(err, why) {
		return fmt.Errorf("close says %w", err)
	}
	for _, id := range lost {
		if unsaved.Pending[id] == 0 {
			return fmt.Errorf("%s lost something, and close says %w", id, err)
		}
	}
	if err := p.open(); err != nil {
		return err
	}
	return p.together(func(ctx context.Context, r *resident) error {
		if err := r.comeBack(ctx, p.container); err != nil {
			return err
		}
		return r.check(ctx)
	})
}

// together does one thing with all instances of a process.
func (p *process) together(do func(context.Context, *resident) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	errs := make([]error, len(p.residents))
	var wg sync.WaitGroup
	for i, r := range p.residents {
		wg.Go(func() {
			if err := do(ctx, r); err != nil {
				errs[i] = fmt.Errorf("%s, instance %d: %w", p.config.Owner, i, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stepUntilRefused takes steps of which the model alone knows the outcome, and notes what the instance holds after each; also after the one that is
// refused, since a flush whose answer was lost may have been committed before the next attempt is refused.
func (r *resident) stepUntilRefused(ctx context.Context, p *process, m *moments) error {
	for {
		m.held = append(m.held, r.moment())
		what, err := r.childStep(ctx)
		if err != nil {
			m.held = append(m.held, r.moment())
			return err
		}
		if what == acknowledged && p.config.DurableAcks {
			m.kept = len(m.held)
		}
		time.Sleep(time.Duration(r.rng.Int64N(int64(10 * time.Millisecond))))
	}
}

// moment is what the instance holds now.
func (r *resident) moment() *resident {
	return &resident{rng: rand.New(rand.NewPCG(rand.Uint64(), 0)), model: r.model.clone(), events: r.events}
}

// rewind takes the instances again in the process in which they stopped, lets the model have the newest moment that they hold, and returns the
// names of those that lost a later one.
func (p *process) rewind(t testing.TB, lived map[*resident]*moments) (lost []string) {
	t.Helper()
	var mu sync.Mutex
	require.NoError(t, p.together(func(ctx context.Context, r *resident) error {
		if err := r.comeBack(ctx, p.container); err != nil {
			return err
		}
		m := lived[r]
		last := len(m.held) - 1
		for n := last; ; n-- {
			held := m.held[n]
			held.device = r.device
			err := held.checkAll(ctx)
			if err == nil {
				r.model, r.events = held.model, held.events
				if n < last-1 {
					mu.Lock()
					defer mu.Unlock()
					lost = append(lost, r.device.ID.String())
				}
				return nil
			}
			if n == m.kept {
				return fmt.Errorf("none of the moments from %d to %d: %w", n, last, err)
			}
		}
	}))
	return lost
}
