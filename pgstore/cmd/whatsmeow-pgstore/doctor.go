package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
)

// finding is the result of one check.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn or fail
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// examination is what doctor prints.
type examination struct {
	Checks []finding `json:"checks"`
	Warned int       `json:"warned"`
	Failed int       `json:"failed"`
}

func ok(format string, args ...any) finding {
	return finding{Status: statusOK, What: fmt.Sprintf(format, args...)}
}

func warn(advice, format string, args ...any) finding {
	return finding{Status: statusWarn, What: fmt.Sprintf(format, args...), Advice: advice}
}

func fail(advice, format string, args ...any) finding {
	return finding{Status: statusFail, What: fmt.Sprintf(format, args...), Advice: advice}
}

// check is one thing that doctor looks at. Those of the schema are left out where there is none.
type check struct {
	name     string
	ofSchema bool
	look     func(*database, context.Context) (finding, error)
}

// checks are all of them, in the order in which they are told.
var checks = []check{
	{"connection", false, (*database).checkConnection},
	{"version", false, (*database).checkVersion},
	{"writable", false, (*database).checkWritable},
	{"pooler", false, (*database).checkPooler},
	{"clock", false, (*database).checkClock},
	{"fsync", false, (*database).checkFsync},
	{"full_page_writes", false, (*database).checkFullPageWrites},
	{"synchronous_commit", false, (*database).checkSynchronousCommit},
	{"autovacuum", false, (*database).checkAutovacuum},
	{"connections", false, (*database).checkConnections},
	{"timeline", false, (*database).checkTimeline},
	{"schema", false, (*database).checkSchema},
	{"rights", true, (*database).checkRights},
	{"tables", true, (*database).checkTables},
	{"hot updates", true, (*database).checkHOT},
	{"instances", true, (*database).checkInstances},
	{"set aside", true, (*database).checkSetAside},
	{"audit trail", true, (*database).checkPartitions},
}

func (a *app) doctorCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check server, settings, rights and tables, and give advice",
		Long: `Checks the server (version, durability, clock, connections, a PgBouncer in between), whether the evidence can be read by which a database that went back is noticed, the rights of the
role that connects, the schema and its tables, and what instances there are that somebody should look at. Run it with the DSN of your program. It changes nothing.

Each check is ok, warn or fail, with a line of advice. Exit code 3 says that one failed, with --strict also that one warned.

JSON: checks[]: check, status, what, advice; warned, failed.`,
		Example: "  whatsmeow-pgstore doctor\n  whatsmeow-pgstore doctor --strict --json | jq '.checks[] | select(.status != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			e := db.examine(ctx, a.wait)
			var err error
			if a.json {
				err = a.printJSON(e)
			} else {
				a.printExamination(e)
			}
			if err == nil && (e.Failed > 0 || strict && e.Warned > 0) {
				err = errFound
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings count, too")
	return cmd
}

func (db *database) examine(ctx context.Context, limit time.Duration) *examination {
	e := &examination{}
	schema := false
	for _, c := range checks {
		if c.ofSchema && !schema {
			continue
		}
		f := db.check(ctx, limit, c)
		switch f.Status {
		case statusWarn:
			e.Warned++
		case statusFail:
			e.Failed++
		}
		schema = schema || c.name == "schema" && f.Status != statusFail
		e.Checks = append(e.Checks, f)
	}
	return e
}

func (db *database) check(ctx context.Context, limit time.Duration, c check) finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	f, err := c.look(db, ctx)
	if err != nil {
		f = fail("without an answer nothing is known of it", "%s", reason(err))
	}
	f.Check = c.name
	return f
}

// reason is what the server says, or why it says nothing.
func reason(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("%s (SQLSTATE %s)", pgErr.Message, pgErr.Code)
	}
	return err.Error()
}

func (a *app) printExamination(e *examination) {
	for _, f := range e.Checks {
		status := map[string]string{statusOK: green("ok  "), statusWarn: yellow("warn"), statusFail: red("fail")}[f.Status]
		a.printf("%s  %-18s  %s\n", status, f.Check, shown(f.What))
		if f.Advice != "" {
			a.printf("%26s→ %s\n", "", f.Advice)
		}
	}
	a.printf("\n%d checks, %d warned, %d failed\n", len(e.Checks), e.Warned, e.Failed)
}
