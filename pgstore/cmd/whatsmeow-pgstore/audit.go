package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
)

// auditEntry is a line of the trail.
type auditEntry struct {
	At       time.Time `json:"at"`
	Instance string    `json:"instance"`
	N        int64     `json:"n"`
	Event    string    `json:"event"`
	Epoch    *int64    `json:"epoch"`
	Seq      *int64    `json:"seq"`
	Owner    string    `json:"owner"`
	Role     string    `json:"role"`
	Detail   string    `json:"detail"`
	Keys     int       `json:"keys"`
}

const (
	followEvery  = time.Second
	followWindow = "10 minutes" // for which a transaction may be open that has appended
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "Show the audit trail, or verify it", "Shows the audit trail, or verifies it.",
		"  whatsmeow-pgstore audit tail -f\n  whatsmeow-pgstore audit verify", a.auditTailCommand(), a.auditVerifyCommand())
}

func (a *app) auditTailCommand() *cobra.Command {
	var follow bool
	var lines int
	var instance string
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the last entries of the audit trail",
		Long: `Shows the last entries of the audit trail, of all instances or of one, which need not exist any more. With -f it goes on until Ctrl-C.

JSON, an object a line: at, instance, n, event, epoch, seq, owner, role, detail, keys.`,
		Example: "  whatsmeow-pgstore audit tail -n 50 --instance shop-42\n  whatsmeow-pgstore audit tail -f --json",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, db *database, _ []string) error {
			if lines < 0 {
				return usage("-n is %d, must be positive", lines)
			}
			return a.tail(ctx, db, instance, lines, follow)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().IntVarP(&lines, "lines", "n", 20, "how many entries")
	cmd.Flags().StringVar(&instance, "instance", "", "only those of this instance")
	_ = cmd.RegisterFlagCompletionFunc("instance", a.completeInstance)
	return cmd
}

const auditColumns = `SELECT at, instance_id, n, event, epoch, seq, owner, role, detail, keys FROM {schema}.audit `

// tail prints the last entries, and what comes after them. An entry's time is before its commit, so one that is older may come later: what is looked at again and again
// is a window, of which each instance's entries that were printed are left out. They are committed in order.
func (a *app) tail(ctx context.Context, db *database, instance string, lines int, follow bool) error {
	began, err := scalar[time.Time](ctx, db, `SELECT clock_timestamp()`)
	if err != nil {
		return err
	}
	last, err := collect[auditEntry](ctx, db, `SELECT * FROM (`+auditColumns+`WHERE $1 IN ('', instance_id) ORDER BY at DESC, n DESC LIMIT $2) AS last ORDER BY at, n`, instance, lines)
	if err != nil {
		return err
	}
	if err = a.printEntries(last); err != nil || !follow {
		return err
	}
	printed := make(map[string]int64)
	note := func(entries []auditEntry) {
		for _, e := range entries {
			printed[e.Instance] = max(printed[e.Instance], e.N)
		}
	}
	before, err := collect[auditEntry](ctx, db, auditColumns+`WHERE $1 IN ('', instance_id) AND at > $2::timestamptz - interval '`+followWindow+`' AND at <= $2`, instance, began)
	if err != nil {
		return err
	}
	note(before)
	note(last)
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil // Ctrl-C is how it ends
		case <-tick.C:
		}
		found, err := collect[auditEntry](ctx, db, auditColumns+`WHERE $1 IN ('', instance_id) AND at > clock_timestamp() - interval '`+followWindow+`' ORDER BY at, n`, instance)
		if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(e auditEntry) bool { return e.N <= printed[e.Instance] })
		note(found)
		if err = a.printEntries(found); err != nil {
			return err
		}
	}
}

func (a *app) printEntries(entries []auditEntry) error {
	for _, e := range entries {
		if a.json {
			if err := json.NewEncoder(a.out).Encode(e); err != nil {
				return err
			}
			continue
		}
		a.printf("%s  %s  %-11s  %s  %s\n", e.At.UTC().Format("2006-01-02 15:04:05.000"), bold(shown(e.Instance)), paintEvent(e.Event), orDash(e.Owner), shown(e.Detail))
	}
	return nil
}

func paintEvent(event string) string {
	padded := fmt.Sprintf("%-11s", event)
	switch event {
	case "outsider", "lowered":
		return red(padded)
	case "rewound", "set_aside", "deleted", "erased":
		return yellow(padded)
	}
	return padded
}

// auditBreak is something that is not as it was written.
type auditBreak struct {
	Instance string `json:"instance"`
	N        int64  `json:"n"`
	What     string `json:"what"`
}

// auditOutsider is a change that was not made by the library.
type auditOutsider struct {
	Instance string    `json:"instance"`
	N        int64     `json:"n"`
	At       time.Time `json:"at"`
	Role     string    `json:"role"`
	What     string    `json:"what"`
	KeyType  string    `json:"key_type"`
	KeyID    string    `json:"key_id"`
}

// auditHead is where the trail of an instance ends.
type auditHead struct {
	N    int64  `json:"n"`
	Hash string `json:"hash"` // hexadecimal
}

// verification is what audit verify prints, and reads with --heads.
type verification struct {
	OK        bool                 `json:"ok"`
	Entries   int64                `json:"entries"`
	Breaks    []auditBreak         `json:"breaks"`
	Outsiders []auditOutsider      `json:"outsiders"`
	Heads     map[string]auditHead `json:"heads"`
}

func verificationOf(report *audit.Report) *verification {
	v := &verification{
		OK: len(report.Breaks) == 0, Entries: report.Entries,
		Breaks: []auditBreak{}, Outsiders: []auditOutsider{}, Heads: make(map[string]auditHead),
	}
	for _, b := range report.Breaks {
		v.Breaks = append(v.Breaks, auditBreak(b))
	}
	for _, o := range report.Outsiders {
		v.Outsiders = append(v.Outsiders, auditOutsider(o))
	}
	for id, h := range report.Heads {
		v.Heads[id] = auditHead{h.N, hex.EncodeToString(h.Hash)}
	}
	return v
}

func (a *app) auditVerifyCommand() *cobra.Command {
	var heads string
	cmd := &cobra.Command{
		Use:   "verify [INSTANCE...]",
		Short: "Verify the audit trail",
		Long: `Verifies the audit trail of all instances, or of some: that nothing of it was changed, removed or put in later, and that the rows of which it tells are as it says. It only
reads. Changes that somebody else than the library made are listed, and are no break: the trail tells of them.

Who owns the tables can make a trail anew. Keep what --json prints somewhere else, and give it to the next verification with --heads: the trail has to contain it.

Exit code 3 says that the trail is broken. JSON: ok, entries, breaks[]: instance, n, what; outsiders[]: instance, n, at, role, what, key_type, key_id;
heads{instance}: n, hash.`,
		Example:           "  whatsmeow-pgstore audit verify\n  whatsmeow-pgstore audit verify --json > elsewhere/today.json\n  whatsmeow-pgstore audit verify --heads elsewhere/yesterday.json",
		ValidArgsFunction: a.completeInstance,
		RunE: a.run(func(ctx context.Context, db *database, args []string) error {
			seen, err := readHeads(heads)
			if err != nil {
				return err
			}
			report, err := audit.Verify(ctx, db.Pool, audit.Options{Schema: a.schema, Instances: args, Heads: seen})
			if err != nil {
				return err
			}
			v := verificationOf(report)
			if a.json {
				err = a.printJSON(v)
			} else {
				a.printVerification(v)
			}
			if err == nil && !v.OK {
				err = errFound
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&heads, "heads", "", "a file with what an earlier verification printed with --json")
	return cmd
}

func readHeads(path string) (map[string]audit.Head, error) {
	if path == "" {
		return nil, nil
	}
	content, err := os.ReadFile(path) //nolint:gosec // it is the user who names the file
	if err != nil {
		return nil, err
	}
	var before verification
	if err = json.Unmarshal(content, &before); err == nil && before.Heads == nil {
		err = errors.New("it has no heads")
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not what audit verify --json prints: %w", path, err)
	}
	heads := make(map[string]audit.Head)
	for id, h := range before.Heads {
		hash, err := hex.DecodeString(h.Hash)
		if err != nil {
			return nil, fmt.Errorf("%s: hash of %s: %w", path, id, err)
		}
		heads[id] = audit.Head{N: h.N, Hash: hash}
	}
	return heads, nil
}

func (a *app) printVerification(v *verification) {
	for _, b := range v.Breaks {
		a.printf("%s %s, entry %d: %s\n", red("broken"), shown(b.Instance), b.N, shown(b.What))
	}
	for _, o := range v.Outsiders {
		a.printf("%s %s, entry %d: %s %s %s by role %s at %s\n", yellow("outsider"), shown(o.Instance), o.N, o.What, o.KeyType, shown(o.KeyID), shown(o.Role), o.At.UTC().Format(time.RFC3339))
	}
	verdict := green("the trail is whole")
	if !v.OK {
		verdict = red("the trail is broken")
	}
	a.printf("%s: %d entries of %d instances, %d breaks, %d changes by others\n", verdict, v.Entries, len(v.Heads), len(v.Breaks), len(v.Outsiders))
}
