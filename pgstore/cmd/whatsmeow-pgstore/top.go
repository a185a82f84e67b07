package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
)

// topProcess is a process, what it has and how it is.
type topProcess struct {
	ID           string   `json:"id"`
	Owner        string   `json:"owner"`
	Address      string   `json:"address"`
	Alive        bool     `json:"alive"`
	Claims       bool     `json:"claims"`
	Instances    int64    `json:"instances"`
	Pending      int64    `json:"pending"`
	PendingFor   float64  `json:"pending_for_seconds"`
	HeartbeatAge float64  `json:"heartbeat_age_seconds"`
	Seq          int64    `json:"-"`                         // of all its instances
	FlushRate    *float64 `json:"flushes_per_second" db:"-"` // of all its instances together; null if it is not known yet
}

// frame is one picture of all processes.
type frame struct {
	At        time.Time    `json:"at"` // by the database's clock
	Instances int64        `json:"instances"`
	Owned     int64        `json:"owned"`
	Orphaned  int64        `json:"orphaned"`
	Free      int64        `json:"free"`
	FlushRate *float64     `json:"flushes_per_second"`
	Processes []topProcess `json:"processes"`
}

func (a *app) topCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch who has what, what is pending and how much is flushed",
		Long: `Shows all processes, again and again: how many instances each has, since when it has not been heard of, what it had not saved when it last was, and how many flushes of its
instances are committed a second. It goes on until q is pressed. It takes nothing, and asks the database for two counts over the instances each --interval.

With --once it prints one picture, after --interval, since rates need two. JSON (implies --once): at, instances, owned, orphaned, free, flushes_per_second, processes[]: id, owner, address,
alive, claims, instances, pending, pending_for_seconds, heartbeat_age_seconds, flushes_per_second.`,
		Example: "  whatsmeow-pgstore top\n  whatsmeow-pgstore top --once --json | jq '.processes[] | select(.pending > 1000)'",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			if interval < minInterval {
				return usage("--interval is %v, must be at least %v", interval, minInterval)
			}
			if once || a.json {
				return a.topOnce(ctx, db, interval)
			}
			return a.topLive(ctx, db, interval)
		}),
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one picture and end")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between pictures")
	return cmd
}

const minInterval = 100 * time.Millisecond

// look makes a picture; before is the one before it, nil for none.
func (db *database) look(ctx context.Context, before *frame) (*frame, error) {
	f := &frame{}
	err := db.QueryRow(ctx, db.sql(`SELECT clock_timestamp(), count(*), count(*) FILTER (WHERE p.expires > clock_timestamp()),
			count(*) FILTER (WHERE i.process IS NULL) FROM {schema}.instances i LEFT JOIN {schema}.processes p ON p.id = i.process`)).
		Scan(&f.At, &f.Instances, &f.Owned, &f.Free)
	if err != nil {
		return nil, err
	}
	f.Orphaned = f.Instances - f.Owned - f.Free
	f.Processes, err = collect[topProcess](ctx, db, `SELECT p.id::text, p.owner, p.address, p.alive, p.claims, p.instances, p.pending,
			extract(epoch FROM p.pending_for)::float8, greatest(0, extract(epoch FROM p.heartbeat_age))::float8, coalesce(has.seq, 0)
		FROM {schema}.process_load p LEFT JOIN (SELECT process, sum(seq)::bigint AS seq FROM {schema}.instances GROUP BY process) AS has ON has.process = p.id
		ORDER BY p.alive DESC, p.owner, p.id`)
	if err != nil {
		return nil, err
	}
	f.rates(before)
	return f, nil
}

// rates counts what was flushed since the picture before. Of a process whose instances were not as many then nothing is known.
func (f *frame) rates(before *frame) {
	if before == nil {
		return
	}
	took := f.At.Sub(before.At).Seconds()
	if took <= 0 {
		return
	}
	was := make(map[string]topProcess)
	for _, p := range before.Processes {
		was[p.ID] = p
	}
	total := 0.0
	for i := range f.Processes {
		p := &f.Processes[i]
		if old, ok := was[p.ID]; ok && old.Instances == p.Instances && p.Seq >= old.Seq {
			rate := float64(p.Seq-old.Seq) / took
			p.FlushRate = &rate
			total += rate
		}
	}
	f.FlushRate = &total
}

func (a *app) topOnce(ctx context.Context, db *database, interval time.Duration) error {
	before, err := db.look(ctx, nil)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(interval):
	}
	f, err := db.look(ctx, before)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(f)
	}
	a.printf("%s", f.String())
	return nil
}

// String is the picture for people.
func (f *frame) String() string {
	var b strings.Builder
	b.WriteString(f.At.UTC().Format("2006-01-02 15:04:05") + "  " + f.summary() + "\n\n")
	rows := make([][]any, 0, len(f.Processes))
	for _, p := range f.Processes {
		heard := green(lasting(seconds(p.HeartbeatAge)))
		if !p.Alive {
			heard = red(lasting(seconds(p.HeartbeatAge)), " ago")
		}
		pending := lasting(seconds(p.PendingFor))
		if p.Pending == 0 {
			pending = "-"
		} else if seconds(p.PendingFor) > 10*time.Second {
			pending = yellow(pending)
		}
		rows = append(rows, []any{shown(p.Owner), orDash(p.Address), p.Instances, p.Pending, pending, rate(p.FlushRate), heard})
	}
	columns(&b, []any{"process", "address", "instances", "pending", "for", "flushes/s", "heard of"}, rows, 3, 4, 5, 6)
	return b.String()
}

// topModel is the live view. It looks, waits for an interval, and looks again, so that a slow database is not asked twice at once.
type topModel struct {
	look     func(before *frame) (*frame, error)
	interval time.Duration
	frame    *frame
	err      error
}

type (
	looked struct {
		frame *frame
		err   error
	}
	lookAgain struct{}
)

// Init implements tea.Model.
func (m topModel) Init() tea.Cmd { return m.ask() }

func (m topModel) ask() tea.Cmd {
	return func() tea.Msg {
		f, err := m.look(m.frame)
		return looked{f, err}
	}
}

// Update implements tea.Model.
func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case looked:
		if m.err = msg.err; msg.err == nil {
			m.frame = msg.frame
		}
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return lookAgain{} })
	case lookAgain:
		return m, m.ask()
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		}
	}
	return m, nil
}

// View implements tea.Model.
func (m topModel) View() tea.View {
	var b strings.Builder
	if m.frame != nil {
		b.WriteString(m.frame.String())
	} else if m.err == nil {
		b.WriteString("looking …\n")
	}
	if m.err != nil {
		b.WriteString("\n" + red("the database does not answer") + "\n")
	}
	b.WriteString("\nq quits\n")
	v := tea.NewView(b.String())
	v.AltScreen = true
	return v
}

func (a *app) topLive(ctx context.Context, db *database, interval time.Duration) error {
	if !a.onTerminal() {
		return usage("top needs a terminal; --once prints one picture")
	}
	asking := func(before *frame) (*frame, error) {
		ctx, cancel := context.WithTimeout(ctx, a.wait)
		defer cancel()
		return db.look(ctx, before)
	}
	_, err := tea.NewProgram(topModel{look: asking, interval: interval}, tea.WithContext(ctx), tea.WithInput(a.in), tea.WithOutput(a.out)).Run()
	if ctx.Err() == nil {
		return err
	}
	return nil // it was ended from outside
}

func (f *frame) summary() string {
	return fmt.Sprintf("%d instances: %d owned, %d orphaned, %d free; %s flushes/s", f.Instances, f.Owned, f.Orphaned, f.Free, rate(f.FlushRate))
}
