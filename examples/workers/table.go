package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
)

// clearScreen takes a terminal back to its upper left corner.
const clearScreen = "\x1b[H\x1b[2J"

// watchTable shows who runs what, until the context ends.
func watchTable(ctx context.Context, dsn string) (err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		text, err := table(ctx, conn)
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		_, _ = os.Stdout.WriteString(clearScreen + text)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tableQuery asks the views: all workers that live, or did so a moment ago, with the numbers of what they have, and what nobody has.
const tableQuery = `
SELECT coalesce(nullif(p.address, ''), p.owner), CASE WHEN p.alive THEN 'alive' ELSE 'dead' END, extract(epoch FROM p.heartbeat_age)::float8, p.pending,
       (SELECT array_agg(split_part(split_part(o.jid, '@', 1), ':', 1) ORDER BY o.jid) FROM whatsmeow.owners o WHERE o.process = p.id), p.instances
FROM whatsmeow.process_load p WHERE p.claims AND p.heartbeat_age < '10 seconds' OR p.instances > 0
UNION ALL
SELECT 'nobody', '', 0, 0, array_agg(split_part(split_part(o.jid, '@', 1), ':', 1) ORDER BY o.jid), count(*)
FROM whatsmeow.owners o WHERE o.process IS NULL HAVING count(*) > 0
ORDER BY 2, 1`

// most is how many numbers are shown of each process.
const most = 8

func table(ctx context.Context, conn *pgx.Conn) (string, error) {
	rows, err := conn.Query(ctx, tableQuery)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	lines := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(lines, "WORKER\tSTATE\tLAST SIGN\tUNSAVED\tCLIENTS\tNUMBERS")
	var who, state string
	var age float64
	var pending, count int
	var numbers []string
	_, err = pgx.ForEachRow(rows, []any{&who, &state, &age, &pending, &numbers, &count}, func() error {
		shown, more := numbers[:min(most, len(numbers))], ""
		if count > most {
			more = " …"
		}
		_, err := fmt.Fprintf(lines, "%s\t%s\t%.1fs\t%d\t%d\t%s%s\n", who, state, age, pending, count, strings.Join(shown, " "), more)
		return err
	})
	err = errors.Join(err, lines.Flush())
	return text.String(), err
}
