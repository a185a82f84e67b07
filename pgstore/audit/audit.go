// Package audit verifies the audit trail that a pgstore schema keeps, and drops what is too old of it.
//
// Each instance has a chain of entries: what happened to it, when, under which take, and who was connected; with [pgstore.AuditAll] one for each flush, with the
// keys that it changed and what their values hash to, never a value. An entry's hash is made of all that it says and of the hash before it, and the table
// audit_heads holds the last one. So an entry that was changed, removed or put in later is found, the last ones included, as long as whoever did
// it could not make the chain anew. Who owns the tables can: to be safe from him, keep the [Report].Heads of a verification somewhere else, and give them to the
// next one. After a restore an older moment of the trail is there, which such heads tell, too.
//
// Everything is also there for SQL:
//
//	SELECT at, instance_id, event, owner, role, detail FROM whatsmeow.audit ORDER BY at DESC LIMIT 20;
//	SELECT at, key_type, key_id, op, size FROM whatsmeow.audit_keys WHERE instance_id = 'shop-42' ORDER BY at DESC LIMIT 20;
package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// DB is a *pgxpool.Pool or a *pgx.Conn.
type DB interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// Head is where the trail of an instance ends: its last entry.
type Head struct {
	N    int64
	Hash []byte
}

// Break is something that is not as it was written.
type Break struct {
	Instance string
	N        int64  // the entry at which it was noticed
	What     string // for people
}

// String is a line for people.
func (b Break) String() string { return fmt.Sprintf("%s, entry %d: %s", b.Instance, b.N, b.What) }

// Outsider is a change that was not made by the library.
type Outsider struct {
	Instance string
	N        int64
	At       time.Time
	Role     string // of the database
	What     string // insert, update, delete; lowered, of an instance's counters
	KeyType  string // empty for the row of the instance itself
	KeyID    string
}

// Report is what [Verify] found.
type Report struct {
	Entries   int64
	Breaks    []Break
	Outsiders []Outsider
	Heads     map[string]Head // by instance
	Erased    []string        // instances whose trail begins with the word that they were erased, see pgstore.Container.Erase; heads from before that are not missed
}

// Options say what to verify. The zero value means all instances of the default schema.
type Options struct {
	Schema    string   // defaults to whatsmeow
	Instances []string // none for all
	// Heads are those of an earlier report: the trail has to contain them.
	Heads map[string]Head
}

// Verify goes through the trail in one snapshot, one instance after the other, and compares the keys that it tells of with the rows that are there. The error is
// the database's: whatever is wrong with the trail is in the report. It only reads, and needs no right to read a key.
func Verify(ctx context.Context, db DB, options Options) (*Report, error) {
	options.Schema = cmp.Or(options.Schema, "whatsmeow")
	tx, err := db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	v := &verifier{tx: tx, options: options, report: &Report{Heads: make(map[string]Head)}}
	instances, err := v.instances(ctx)
	if err != nil {
		return nil, fmt.Errorf("audit: listing instances: %w", err)
	}
	for _, instance := range instances {
		if err = v.instance(ctx, instance); err != nil {
			return nil, fmt.Errorf("audit: verifying %s: %w", instance, err)
		}
	}
	return v.report, nil
}

// Drop drops the months of the trail that ended before a moment, and anchors what remains. Only who owns the tables may.
func Drop(ctx context.Context, db DB, schema string, before time.Time) (partitions int, err error) {
	tx, err := db.BeginTx(ctx, pgx.TxOptions{})
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err = tx.QueryRow(ctx, in(schema, `SELECT {schema}.audit_drop($1)`), pgx.QueryExecModeExec, before).Scan(&partitions); err != nil {
		return 0, fmt.Errorf("audit: dropping partitions: %w", err)
	}
	return partitions, tx.Commit(ctx)
}

// in fills the schema's name into a statement.
func in(schema, statement string) string {
	return strings.ReplaceAll(statement, "{schema}", pgx.Identifier{cmp.Or(schema, "whatsmeow")}.Sanitize())
}

type verifier struct {
	tx      pgx.Tx
	options Options
	report  *Report
}

func (v *verifier) query(ctx context.Context, statement string, args ...any) (pgx.Rows, error) {
	return v.tx.Query(ctx, in(v.options.Schema, statement), append([]any{pgx.QueryExecModeExec}, args...)...)
}

func (v *verifier) broken(instance string, n int64, what string, args ...any) {
	v.report.Breaks = append(v.report.Breaks, Break{instance, n, fmt.Sprintf(what, args...)})
}

// instances are all that anything tells of, and those that are asked for.
func (v *verifier) instances(ctx context.Context) (all []string, err error) {
	for instance := range v.options.Heads {
		all = append(all, instance)
	}
	rows, err := v.query(ctx, `SELECT instance_id FROM {schema}.audit UNION SELECT instance_id FROM {schema}.audit_heads UNION SELECT instance_id FROM {schema}.audit_anchors`)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	all = append(all, found...)
	if wanted := v.options.Instances; len(wanted) > 0 {
		all = slices.DeleteFunc(all, func(id string) bool { return !slices.Contains(wanted, id) })
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// entry is a row of the trail, as texts: what is hashed.
type entry struct {
	n                        int64
	at                       time.Time
	moment                   string // at in microseconds since 1970
	event                    string
	epoch, seq               *string
	owner, role, detail      string
	keys                     int
	digest, hash             []byte
	keysFound                int
	keysDigest               []byte // made of the rows that are there
	outsiderType, outsiderID string
}

// instance verifies one chain:
//
//  1. Its entries follow one another from 1, or from the last anchor, and each one's hash is made of what it says and of the one before.
//  2. The last one is the head.
//  3. The keys of each entry are those that it was made of.
//  4. The rows of these keys are as the trail says that they were last written.
//  5. Heads that were seen before are in it.
func (v *verifier) instance(ctx context.Context, id string) error {
	entries, err := v.entries(ctx, id)
	if err != nil {
		return err
	}
	if err = v.keys(ctx, id, entries); err != nil {
		return err
	}
	anchors, err := v.heads(ctx, `SELECT n, hash FROM {schema}.audit_anchors WHERE instance_id = $1 ORDER BY n`, id)
	if err != nil {
		return err
	}
	heads, err := v.heads(ctx, `SELECT n, hash FROM {schema}.audit_heads WHERE instance_id = $1`, id)
	if err != nil {
		return err
	}
	var last Head
	for _, a := range anchors {
		if len(entries) == 0 || a.N < entries[0].n {
			last = a
		}
	}
	earlier := v.options.Heads[id]
	seen := earlier.N == 0 || slices.ContainsFunc(anchors, func(a Head) bool { return a.N == earlier.N && bytes.Equal(a.Hash, earlier.Hash) })
	if len(entries) > 0 && entries[0].event == "erased" {
		v.report.Erased = append(v.report.Erased, id)
		seen = seen || earlier.N < last.N // what was before is gone
	}
	for _, e := range entries {
		if e.n != last.N+1 {
			v.broken(id, e.n, "%d entries before it are missing, or one is there twice", e.n-last.N-1)
		} else if !bytes.Equal(e.hash, e.seal(id, last.Hash)) {
			v.broken(id, e.n, "it was changed")
		}
		if e.keysFound != e.keys || !bytes.Equal(e.digest, e.keysDigest) {
			v.broken(id, e.n, "what it tells of keys was changed")
		}
		last = Head{e.n, e.hash}
		seen = seen || e.n == earlier.N && bytes.Equal(e.hash, earlier.Hash)
		v.report.Entries++
		if what := e.outsider(); what != "" {
			v.report.Outsiders = append(v.report.Outsiders, Outsider{id, e.n, e.at, e.role, what, e.outsiderType, e.outsiderID})
		}
	}
	switch {
	case len(heads) == 0:
		v.broken(id, last.N, "where the trail ends is missing")
	case heads[0].N != last.N || !bytes.Equal(heads[0].Hash, last.Hash):
		v.broken(id, last.N, "the trail went on up to %d, which is missing, or its end was changed", heads[0].N)
	}
	if !seen {
		v.broken(id, earlier.N, "it is not the trail that was seen before, or an earlier moment of it")
	}
	v.report.Heads[id] = last
	return v.rows(ctx, id)
}

// outsider says what was done that the library has not, or nothing. The database's function audit_writer makes the words at the end.
func (e *entry) outsider() string {
	others := strings.HasSuffix(e.detail, "not by the library")
	switch {
	case e.event == "outsider":
		return e.detail
	case e.event == "lowered":
		return e.event
	case others && (e.event == "paired" || e.event == "imported"):
		return "insert"
	case others && e.event == "deleted":
		return "delete"
	}
	return ""
}

func (v *verifier) heads(ctx context.Context, statement, id string) ([]Head, error) {
	rows, err := v.query(ctx, statement, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Head])
}

func (v *verifier) entries(ctx context.Context, id string) ([]*entry, error) {
	rows, err := v.query(ctx, `SELECT n, at, (extract(epoch FROM at) * 1000000)::bigint::text, event, epoch::text, seq::text, owner, role, detail, keys, digest, hash
		FROM {schema}.audit WHERE instance_id = $1 ORDER BY n, at`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*entry, error) {
		e := new(entry)
		return e, row.Scan(&e.n, &e.at, &e.moment, &e.event, &e.epoch, &e.seq, &e.owner, &e.role, &e.detail, &e.keys, &e.digest, &e.hash)
	})
}

// keys makes the digests of the keys that are there.
func (v *verifier) keys(ctx context.Context, id string, entries []*entry) error {
	byN := make(map[int64]*entry, len(entries))
	digests := make(map[int64][]byte)
	for _, e := range entries {
		byN[e.n] = e
	}
	rows, err := v.query(ctx, `SELECT n, key_type, key_id, op, size::text, encode(sha256, 'hex') FROM {schema}.audit_keys WHERE instance_id = $1 ORDER BY n, key_type, key_id`, id)
	if err != nil {
		return err
	}
	var n int64
	var keyType, keyID, op string
	var size, sum *string
	_, err = pgx.ForEachRow(rows, []any{&n, &keyType, &keyID, &op, &size, &sum}, func() error {
		e := byN[n]
		if e == nil {
			v.broken(id, n, "there are keys of an entry that is missing")
			return nil
		}
		e.keysFound++
		e.outsiderType, e.outsiderID = keyType, keyID
		digests[n] = append(digests[n], texts(&keyType, &keyID, &op, size, sum)...)
		return nil
	})
	for n, all := range digests {
		sum := sha256.Sum256(all)
		byN[n].keysDigest = sum[:]
	}
	return err
}

// rows compares what the trail told last of each key with its row, in the database, so that who verifies need not be able to read a key.
func (v *verifier) rows(ctx context.Context, id string) error {
	rows, err := v.query(ctx, `SELECT n, key_type, key_id, what FROM {schema}.audit_differences($1) ORDER BY n`, id)
	if err != nil {
		return err
	}
	var n int64
	var keyType, keyID, what string
	_, err = pgx.ForEachRow(rows, []any{&n, &keyType, &keyID, &what}, func() error {
		v.broken(id, n, "%s %s: %s", keyType, keyID, what)
		return nil
	})
	return err
}

// seal is the hash of an entry.
func (e *entry) seal(instance string, before []byte) []byte {
	n, keys, digest := strconv.FormatInt(e.n, 10), strconv.Itoa(e.keys), hex.EncodeToString(e.digest)
	sum := sha256.Sum256(slices.Concat(before, texts(&instance, &n, &e.moment, &e.event, e.epoch, e.seq, &e.owner, &e.role, &e.detail, &keys, &digest)))
	return sum[:]
}

// texts is what the database's function audit_text makes of texts: each with its length before it.
func texts(all ...*string) (out []byte) {
	for _, t := range all {
		if t == nil {
			out = append(out, "-,"...)
			continue
		}
		out = append(strconv.AppendInt(out, int64(len(*t)), 10), ':')
		out = append(append(out, *t...), ',')
	}
	return out
}
