package pgstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wataki/whatsmeow-pgstore/cache"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// An import is one transaction: after a crash nothing of it is there, and it is done again from the beginning.
//
//  1. Make the instance's row, under a new epoch and not owned by anybody; or begin anew the row of an import that nobody has taken since. An instance that was
//     taken is refused, unless it is to be replaced: then it is taken first, as by its first use, so that its owner is told and stops.
//  2. Empty it, and write what comes, in pieces. What could not be used is left out and told.
//  3. Count the rows by type, and read some of each back. If they are not what was written, nothing happened.
//  4. Tell the audit trail. Commit.
//
// What becomes of sending chains:
//
//   - Exact: rows get a ceiling where their counter is, the instance is marked as cleanly left. Nothing is burned. If its first owner ends uncleanly, it is as
//     with rows of our own.
//   - Otherwise, and always when an instance is replaced, the rows count as those of a database that went back (replay.go): abandon_through is raised to the
//     import's own seq, and who takes the instance heals it.
//
// Pairs of the LID map go into the map as they come, in transactions of their own: others wait for them, and they are true whatever becomes of the import. What the map
// knows already stays, but for the device's own pair.

// ErrAlreadyTaken is returned by an import of an instance that somebody has used here since it was paired or imported: its rows are newer than what
// is imported, or were. See [ImportConfig].Replace.
var ErrAlreadyTaken = errors.New("pgstore: instance was used here already")

// ImportConfig says how [Container.Import] works.
type ImportConfig struct {
	// Source names where the entries come from, for the audit trail. Defaults to "entries".
	Source string

	// Exact is the caller's word that the counters of sending chains are those of the last message that left, and that nobody sends on them any more: the client
	// that used the source is stopped, and the source is not a copy from before. Without it every sending chain is abandoned and what was published is made
	// anew, which costs a bundle for each device that is written to, and nothing else.
	Exact bool

	// Replace imports over an instance that was used here, and heals it as if its database had gone back: Exact is of no effect then.
	Replace bool

	// Progress, if set, is called between pieces with the number of entries that were read so far. It must not block.
	Progress func(entries int)
}

// ImportResult is what an import did.
type ImportResult struct {
	Instance     string
	JID          string
	Counts       map[string]int // rows by key_type, as counted in the database
	Sampled      int            // rows that were read back and compared
	Skipped      []Skipped      // entries that could not be used
	LIDPairs     int            // pairs of the LID map that are new
	LIDPairsKept int            // pairs that it knew, or knew otherwise
	NextPreKeyID uint32
	Exact        bool // no sending chain was abandoned
}

// Skipped is an entry that was left out.
type Skipped struct {
	Kind   string
	Name   string // which one; it may be a phone number, and never is a secret
	Reason string
}

// Import makes an instance of entries, in one transaction: all of it or nothing. The first entry must be the credentials. An empty id is the device's JID. It may be
// repeated until somebody takes the instance; then it is [ErrAlreadyTaken]. An instance of another device under that id, or that device under another
// id, is [ErrDeviceConflict]. It takes nothing: the instance is free, and may be claimed, when Import returns.
//
// Package migrate makes entries of other stores.
func (c *Container) Import(ctx context.Context, id string, entries iter.Seq2[portable.Entry, error], cfg ImportConfig) (*ImportResult, error) {
	if c.closed() {
		return nil, ErrClosed
	}
	next, stop := iter.Pull2(entries)
	defer stop()
	im, err := c.beginImport(id, next, cfg)
	if err != nil {
		return nil, err
	}
	if err = im.takeReplaced(ctx); err != nil {
		return nil, err
	}
	if err = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error { return im.run(ctx, tx, next) }); err != nil {
		err = fmt.Errorf("pgstore: importing instance %s: %w", im.result.Instance, withoutRows(err))
		if im.replace != 0 {
			err = errors.Join(err, c.putBack(ctx, im.result.Instance, im.replace))
		}
		return nil, err
	}
	c.LIDMap.learn(im.creds.ownPair())
	return &im.result, nil
}

// importing is an import under way.
type importing struct {
	c       *Container
	cfg     ImportConfig
	creds   *deviceJSON
	replace int64 // the epoch under which the instance was taken that is replaced, 0 for none

	epoch, seq, abandonThrough int64
	ring                       *keyring // with the data key that was made for it, if values are encrypted

	read    int    // entries
	counter uint32 // the next pre-key id, if that was told
	counts  map[cache.Type]int
	samples map[cache.Type][]importedRow
	result  ImportResult
}

type importedRow struct {
	key  cache.Key
	data string // as it was before it was encrypted
}

const (
	importPiece   = 500     // rows of one statement
	importBytes   = 4 << 20 // or so many bytes
	importSamples = 20      // rows of each type that are read back
)

func (c *Container) beginImport(id string, next func() (portable.Entry, error, bool), cfg ImportConfig) (*importing, error) {
	first, err, ok := next()
	if err != nil {
		return nil, fmt.Errorf("pgstore: reading what is imported: %w", err)
	}
	creds, isCreds := first.(*portable.Credentials)
	if !ok || !isCreds {
		return nil, invalid("what is imported does not begin with credentials")
	}
	d := deviceJSON(*creds)
	if err = d.check(); err != nil {
		return nil, err
	}
	if id == "" {
		id = string(d.JID)
	}
	if err = checkInstanceID(id); err != nil {
		return nil, err
	}
	if cfg.Source == "" {
		cfg.Source = "entries"
	}
	im := &importing{c: c, cfg: cfg, creds: &d, counts: make(map[cache.Type]int), samples: make(map[cache.Type][]importedRow)}
	im.result = ImportResult{Instance: id, JID: string(d.JID), NextPreKeyID: 1}
	return im, nil
}

// takeReplaced takes an instance that is to be replaced, from whoever has it as a take does.
func (im *importing) takeReplaced(ctx context.Context) error {
	if !im.cfg.Replace {
		return nil
	}
	if err := im.c.Release(ctx, im.result.Instance); err != nil {
		return err
	}
	t, err := im.c.takeWhenFree(ctx, im.result.Instance, whoeverWaits)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	} else if err != nil {
		return fmt.Errorf("pgstore: taking the instance to replace: %w", err)
	}
	im.replace = t.epoch
	return nil
}

// importStatement makes the row of an instance, or begins anew that of an import which nobody has taken.
const importStatement = `
INSERT INTO {schema}.instances AS i (id, jid, lid, epoch, clean_at_epoch, imported_at_epoch, seq, owner, timeline, system, abandon_through)
SELECT $1, $2, $3, new.epoch, new.epoch, new.epoch, 1, $4, db.timeline, db.system, CASE WHEN $5 THEN 0 ELSE 1 END
FROM ` + database + `, (SELECT ` + newEpoch + ` AS epoch) AS new
ON CONFLICT (id) DO UPDATE SET
    epoch = excluded.epoch, clean_at_epoch = excluded.epoch, imported_at_epoch = excluded.epoch, seq = i.seq + 1, lid = excluded.lid, owner = excluded.owner,
    timeline = excluded.timeline, system = excluded.system, abandon_through = CASE WHEN $5 THEN i.abandon_through ELSE i.seq + 1 END
    WHERE i.imported_at_epoch = i.epoch AND i.jid = excluded.jid
RETURNING epoch, seq, abandon_through, ` + byLibrary

// replaceStatement begins anew the row of an instance that was taken for it.
const replaceStatement = `
UPDATE {schema}.instances i SET clean_at_epoch = i.epoch, imported_at_epoch = 0, process = NULL, seq = i.seq + 1, lid = $3, abandon_through = i.seq + 1
WHERE i.id = $1 AND i.jid = $2 AND i.epoch = $4
RETURNING epoch, seq, abandon_through, ` + byLibrary

func (im *importing) run(ctx context.Context, tx pgx.Tx, next func() (portable.Entry, error, bool)) error {
	if _, err := tx.Exec(ctx, `SELECT `+byLibrary, pgx.QueryExecModeExec); err != nil {
		return err
	}
	if err := im.begin(ctx, tx); err != nil {
		return err
	}
	tables := []string{"auth_keys", "set_aside"}
	var encrypted bool
	if err := tx.QueryRow(ctx, im.c.sql(`SELECT {schema}.has_data_keys($1)`), pgx.QueryExecModeExec, im.result.Instance).Scan(&encrypted); err != nil {
		return err
	}
	if encrypted { // who does not encrypt needs no right on them
		tables = append(tables, "data_keys")
	}
	for _, table := range tables {
		if _, err := tx.Exec(ctx, im.c.sql(`DELETE FROM {schema}.`+table+` WHERE instance_id = $1`), pgx.QueryExecModeExec, im.result.Instance); err != nil {
			return err
		}
	}
	if err := im.addDataKey(ctx, tx); err != nil {
		return err
	}
	if err := im.writeAll(ctx, tx, next); err != nil {
		return err
	}
	if err := im.verify(ctx, tx); err != nil {
		return err
	}
	if pair := im.creds.ownPair(); pair != nil {
		if err := im.c.LIDMap.saveIn(ctx, tx, pair); err != nil {
			return err
		}
	}
	rows := 0
	for _, n := range im.result.Counts {
		rows += n
	}
	chains := "counters are exact"
	if !im.result.Exact {
		chains = "sending chains are abandoned"
	}
	_, err := tx.Exec(ctx, im.c.sql(`SELECT {schema}.audit_note($1, 'imported', $2), pg_notify($3, ''), `+durably), pgx.QueryExecModeExec,
		im.result.Instance, fmt.Sprintf("from %s, %d keys, %s", im.cfg.Source, rows, chains), im.c.channel())
	return err
}

// begin makes the instance's row, or says why not.
func (im *importing) begin(ctx context.Context, tx pgx.Tx) error {
	c, id, jid, lid := im.c, im.result.Instance, keyID(string(im.creds.JID)), keyID(string(im.creds.LID))
	var row pgx.Row
	if im.replace != 0 {
		row = tx.QueryRow(ctx, c.sql(replaceStatement), pgx.QueryExecModeExec, id, jid, lid, im.replace)
	} else {
		row = tx.QueryRow(ctx, c.sql(importStatement), pgx.QueryExecModeExec, id, jid, lid, c.cfg.Owner, im.cfg.Exact)
		im.result.Exact = im.cfg.Exact
	}
	err := row.Scan(&im.epoch, &im.seq, &im.abandonThrough, nil)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23505" {
		return fmt.Errorf("%w: device %s is stored under another name", ErrDeviceConflict, im.result.JID)
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	var stored string
	err = tx.QueryRow(ctx, c.sql(`SELECT jid FROM {schema}.instances WHERE id = $1`), pgx.QueryExecModeExec, id).Scan(&stored)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrDeviceDeleted // since it was taken
	case err != nil:
		return err
	case stored != jid:
		return fmt.Errorf("%w: instance %s belongs to another device", ErrDeviceConflict, id)
	case im.replace != 0:
		return ErrOwnershipLost
	}
	return ErrAlreadyTaken
}

// addDataKey makes a data key, under which all rows will be, if values are encrypted.
func (im *importing) addDataKey(ctx context.Context, tx pgx.Tx) error {
	if im.c.cfg.Encryption == nil || im.c.cfg.EncryptionMode == Decrypting {
		return nil
	}
	key, wrapped, err := im.c.makeDataKey(ctx, im.result.Instance)
	if err != nil {
		return err
	}
	im.ring = &keyring{current: key, keys: map[string]DataKey{key.ID(): key}}
	_, err = tx.Exec(ctx, im.c.sql(`INSERT INTO {schema}.data_keys (instance_id, id, wrapping_key, wrapped, complete) VALUES ($1, $2, $3, $4, true)`),
		pgx.QueryExecModeExec, im.result.Instance, wrapped.ID, wrapped.WrappingKey, wrapped.Wrapped)
	return err
}

// piece is what the next statement writes.
type piece struct {
	types, ids, data []string
	bytes            int
	pairs            map[string]string // PN user → LID user
}

// writeAll writes what comes, the credentials first and the pre-key counter last: it says whether the instance is to be healed.
func (im *importing) writeAll(ctx context.Context, tx pgx.Tx, next func() (portable.Entry, error, bool)) error {
	var p piece
	first := portable.Credentials(*im.creds)
	if err := im.add(&p, &first); err != nil {
		return err
	}
	for {
		e, err, ok := next()
		if err != nil {
			return fmt.Errorf("reading what is imported: %w", err)
		}
		if !ok {
			break
		}
		if err = im.add(&p, e); err != nil {
			return err
		}
		if len(p.types) >= importPiece || p.bytes >= importBytes || len(p.pairs) >= importPiece {
			if err = im.write(ctx, tx, &p); err != nil {
				return err
			}
		}
	}
	im.result.NextPreKeyID = cmp.Or(im.counter, im.result.NextPreKeyID)
	counter := &credsValue{NextPreKeyID: im.result.NextPreKeyID}
	if im.result.Exact {
		counter.HealedThrough = im.abandonThrough
	}
	if err := im.addRow(&p, counterKey, counter); err != nil {
		return err
	}
	return im.write(ctx, tx, &p)
}

// add adds an entry to a piece, or notes why it is left out.
func (im *importing) add(p *piece, e portable.Entry) error {
	im.read++
	switch e := e.(type) {
	case nil:
		return invalid("an entry is nil")
	case *portable.Credentials:
		if im.read > 1 {
			return invalid("what is imported has credentials twice")
		}
	case *portable.LIDPair:
		if !storableUser(string(e.LID)) || !storableUser(string(e.PN)) || e.LID == "" || e.PN == "" {
			im.skip(e, "it is empty or too long")
			return nil
		}
		if p.pairs == nil {
			p.pairs = make(map[string]string)
		}
		p.pairs[string(e.PN)] = string(e.LID)
		return nil
	case *portable.PreKeyCounter:
		if e.Next == 0 {
			im.skip(e, "the next pre-key id is 0")
			return nil
		}
		im.counter = (e.Next-1)%maxPreKeyID + 1
		return nil
	case *portable.PreKey:
		if e.ID >= im.result.NextPreKeyID && e.ID <= maxPreKeyID {
			im.result.NextPreKeyID = e.ID%maxPreKeyID + 1
		}
	}
	k, v, err := rowOf(e)
	if errors.Is(err, ErrInvalidInput) && k != deviceKey {
		im.skip(e, strings.TrimPrefix(err.Error(), ErrInvalidInput.Error()+": "))
		return nil
	} else if err != nil {
		return err
	}
	if rec, ok := v.(*recordValue); ok && im.result.Exact {
		if chain, counter := rec.sendingChain(); chain != nil {
			rec.ceiling = max(counter, 1)
		}
	}
	return im.addRow(p, k, v)
}

func (im *importing) addRow(p *piece, k cache.Key, v value) error {
	data, err := encode(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", typeName(k.Type), err)
	}
	stored, err := im.ring.seal(im.result.Instance, k, im.seq, data)
	if err != nil {
		return err
	}
	p.types, p.ids, p.data = append(p.types, typeName(k.Type)), append(p.ids, k.ID), append(p.data, stored)
	p.bytes += len(stored) + len(k.ID)
	im.counts[k.Type]++
	row, kept := importedRow{k, data}, im.samples[k.Type]
	if n := im.counts[k.Type]; len(kept) < importSamples {
		im.samples[k.Type] = append(kept, row)
	} else if at := rand.IntN(n); at < importSamples { //nolint:gosec // which rows are looked at is no secret
		kept[at] = row
	}
	return nil
}

func (im *importing) skip(e portable.Entry, reason string) {
	im.result.Skipped = append(im.result.Skipped, Skipped{Kind: e.Kind(), Name: e.Name(), Reason: reason})
}

// write writes a piece and empties it.
func (im *importing) write(ctx context.Context, tx pgx.Tx, p *piece) error {
	if len(p.pairs) > 0 {
		stored, err := im.c.LIDMap.add(ctx, p.pairs)
		if err != nil {
			return err
		}
		im.result.LIDPairs += stored
		im.result.LIDPairsKept += len(p.pairs) - stored
	}
	if len(p.types) > 0 {
		_, err := tx.Exec(ctx, im.c.sql(`INSERT INTO {schema}.auth_keys (instance_id, key_type, key_id, data, seq)
			SELECT $1, t, i, d::jsonb, $2 FROM unnest($3::text[], $4::text[], $5::text[]) AS row (t, i, d) ORDER BY t, i`),
			pgx.QueryExecModeExec, im.result.Instance, im.seq, p.types, p.ids, p.data)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == "23505" {
			return invalid("what is imported has a key twice")
		} else if err != nil {
			return err
		}
		if im.c.cfg.Audit == AuditAll {
			if _, err = tx.Exec(ctx, im.c.sql(`SELECT {schema}.audit_flush($1, $2, $3, $4, $5, array_fill(0::smallint, ARRAY[cardinality($4::text[])]), $6)`),
				pgx.QueryExecModeExec, im.result.Instance, im.epoch, im.seq, p.types, p.ids, p.data); err != nil {
				return err
			}
		}
	}
	*p = piece{}
	if im.cfg.Progress != nil {
		im.cfg.Progress(im.read)
	}
	return nil
}

// errNotAsWritten is returned by an import whose rows are not what was written: somebody has put a trigger on the table, or its columns are others.
var errNotAsWritten = errors.New("rows are not what was written")

// verify counts the rows by type, and reads some back.
func (im *importing) verify(ctx context.Context, tx pgx.Tx) error {
	im.result.Counts = make(map[string]int)
	rows, err := tx.Query(ctx, im.c.sql(`SELECT key_type, count(*) FROM {schema}.auth_keys WHERE instance_id = $1 GROUP BY key_type`), pgx.QueryExecModeExec, im.result.Instance)
	if err != nil {
		return err
	}
	var name string
	var n int
	if _, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		im.result.Counts[name] = n
		return nil
	}); err != nil {
		return err
	}
	for t, want := range im.counts {
		if got := im.result.Counts[typeName(t)]; got != want {
			return fmt.Errorf("%w: %d of %s, not %d", errNotAsWritten, got, typeName(t), want)
		}
	}
	var wanted []importedRow
	for _, of := range im.samples {
		wanted = append(wanted, of...)
	}
	for some := range slices.Chunk(wanted, importPiece) {
		if err = im.compare(ctx, tx, some); err != nil {
			return err
		}
	}
	im.result.Sampled = len(wanted)
	return nil
}

func (im *importing) compare(ctx context.Context, tx pgx.Tx, want []importedRow) error {
	keys := make([]cache.Key, len(want))
	for i, row := range want {
		keys[i] = row.key
	}
	types, ids := columnsOf(keys)
	rows, err := tx.Query(ctx, im.c.sql(`SELECT key_type, key_id, data::text FROM {schema}.auth_keys JOIN unnest($2::text[], $3::text[]) AS want (key_type, key_id)
		USING (key_type, key_id) WHERE instance_id = $1`), pgx.QueryExecModeExec, im.result.Instance, types, ids)
	if err != nil {
		return err
	}
	stored := make(map[cache.Key]string)
	var name, id, data string
	if _, err = pgx.ForEachRow(rows, []any{&name, &id, &data}, func() error {
		stored[cache.Key{Type: typesByName[name], ID: id}] = data
		return nil
	}); err != nil {
		return err
	}
	for _, row := range want {
		plain, err := im.c.unseal(im.ring, im.result.Instance, row.key, im.seq, []byte(stored[row.key]))
		if err == nil {
			_, err = decodeKey(row.key, plain)
		}
		if err != nil || !sameJSON(string(plain), row.data) {
			return fmt.Errorf("%w: one of %s", errNotAsWritten, typeName(row.key.Type))
		}
	}
	return nil
}

// sameJSON says whether two texts say the same.
func sameJSON(a, b string) bool {
	x, ok1 := numbersKept(a)
	y, ok2 := numbersKept(b)
	return ok1 && ok2 && reflect.DeepEqual(x, y)
}

func numbersKept(text string) (v any, ok bool) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	return v, d.Decode(&v) == nil
}
