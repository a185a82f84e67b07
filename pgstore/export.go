package pgstore

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// An export hands an instance over to a store that is not this one. From then on the rows here are those of the past.
//
//  1. Take the instance as its first use does, which heals it if that is due, and let go of it: all is durable, and what was abandoned says so.
//  2. Take it once more, so that no owner writes from here on, and read the rows in one snapshot. The sending chain of each is moved to its ceiling, above all that
//     can have left here; a chain that is abandoned is handed out as such, or not at all.
//  3. When whoever asked has all of it, but nobody can use it yet: raise abandon_through to the present. This is the fence. Who takes the instance here later heals it as
//     one whose database went back, so that it never sends on what was handed over.
//  4. Only then is the copy made usable: its transaction is committed, its file ended.
//
// A crash before the fence leaves the instance as it was and the copy useless; one after it leaves an instance that heals. If the copy fails before the fence, the
// instance is let go of as it was.
//
// A snapshot is an export without a take and without a fence. What is read is as old as the last flush, so who imports it has no word to give: chains are abandoned.

// ExportConfig says how [Container.Export] works.
type ExportConfig struct {
	// Target names where the entries go, for the audit trail. Defaults to "entries".
	Target string

	// Sendable leaves out what must not be sent on: sessions and own sender keys whose chain is abandoned, archived states whose is, and pre-keys that count as none. It is for
	// stores that know no such thing. The client begins these sessions anew.
	Sendable bool

	// Progress, if set, is called now and then with the number of entries so far and of all. It must not block.
	Progress func(entries, total int)
}

// ExportResult is what an export did.
type ExportResult struct {
	Instance string
	JID      string
	Counts   map[string]int // entries by kind
	Skipped  []Skipped      // rows that were left out
}

// ErrNoInstance is returned by an export, an erasure, a healing or a pruning of an instance that does not exist.
var ErrNoInstance = errors.New("pgstore: no such instance")

// Export hands an instance over. copied is called once with all of its entries, the credentials first and its pairs of the LID map last, and must have stored all of them when
// it returns, but in such a way that nobody can use them yet. Then the instance is fenced here, and with Export's return, without an error, the copy may be used:
// commit it then, and not before. If there is an error the copy must be dropped.
//
// Disconnect its client first: as with [Container.Release], its stores fail with [ErrReleased]. Whoever has it in another process is asked to let go of it as by a take.
// Whoever opens it here later finds it as one whose database went back: nothing is sent on the chains that were handed over.
func (c *Container) Export(ctx context.Context, id string, cfg ExportConfig, copied func(iter.Seq2[portable.Entry, error]) error) (*ExportResult, error) {
	d, err := c.takeDevice(ctx, id)
	if err != nil {
		return nil, err
	} else if d == nil {
		return nil, ErrNoInstance
	}
	if err = c.Release(ctx, id); err != nil {
		return nil, err
	}
	t, err := c.takeWhenFree(ctx, id, whoeverWaits)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoInstance
	} else if err != nil {
		return nil, fmt.Errorf("pgstore: taking the instance to export: %w", err)
	}
	in := c.newInstance(id)
	in.fence.epoch, in.fence.seq, in.fence.timeline = t.epoch, t.seq, t.timeline
	in.stepThrough.Store(t.stepThrough)
	in.abandonThrough.Store(t.abandonThrough)
	ex := &exporting{c: c, cfg: cfg, in: in, result: ExportResult{Instance: id, JID: d.ID.String(), Counts: make(map[string]int)}}
	if err = ex.copy(ctx, copied); err != nil {
		return nil, errors.Join(fmt.Errorf("pgstore: exporting instance %s: %w", id, err), ex.end(ctx, false))
	}
	if err = ex.end(ctx, true); err != nil {
		return nil, fmt.Errorf("pgstore: exporting instance %s: %w", id, err)
	}
	return &ex.result, nil
}

// Snapshot is Export of an instance that stays here and goes on: a copy for keeping. It takes nothing, and whoever has the instance does not notice. The copy is what was
// flushed last. Who imports it cannot say that its counters are exact.
func (c *Container) Snapshot(ctx context.Context, id string, cfg ExportConfig, copied func(iter.Seq2[portable.Entry, error]) error) (*ExportResult, error) {
	if c.closed() {
		return nil, ErrClosed
	}
	stored, err := c.storedDevice(ctx, id)
	if err != nil {
		return nil, err
	} else if stored == nil {
		return nil, ErrNoInstance
	}
	ex := &exporting{c: c, cfg: cfg, result: ExportResult{Instance: id, JID: string(stored.JID), Counts: make(map[string]int)}}
	if err = ex.copy(ctx, copied); err != nil {
		return nil, fmt.Errorf("pgstore: copying instance %s: %w", id, err)
	}
	return &ex.result, nil
}

// exporting is an export under way.
type exporting struct {
	c      *Container
	cfg    ExportConfig
	in     *instance // as it was taken; nil for a snapshot
	ring   *keyring  // nil if nothing is encrypted
	result ExportResult
	users  map[string]bool // user parts of the JIDs and addresses that the entries name
}

// copy gives copied all entries, and makes sure that it took them.
func (ex *exporting) copy(ctx context.Context, copied func(iter.Seq2[portable.Entry, error]) error) error {
	ex.users = make(map[string]bool)
	if err := ex.openDataKeys(ctx); err != nil {
		return err
	}
	return pgx.BeginTxFunc(ctx, ex.c.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var total, done int
		var epoch int64
		err := tx.QueryRow(ctx, ex.c.sql(`SELECT epoch, (SELECT count(*) FROM {schema}.auth_keys WHERE instance_id = $1) FROM {schema}.instances WHERE id = $1`),
			pgx.QueryExecModeExec, ex.result.Instance).Scan(&epoch, &total)
		if err != nil {
			return withoutRows(err)
		}
		if ex.in != nil && epoch != ex.in.epoch() {
			return ErrOwnershipLost
		}
		if err = ex.openDataKeys(ctx); err != nil { // once more: one may be new by now, and an old one gone
			return err
		}
		ended := false
		err = copied(func(yield func(portable.Entry, error) bool) {
			err := ex.rows(ctx, tx, func(e portable.Entry) bool {
				if done++; ex.cfg.Progress != nil && done%importPiece == 0 {
					ex.cfg.Progress(done, total)
				}
				ex.result.Counts[e.Kind()]++
				return yield(e, nil)
			})
			switch {
			case errors.Is(err, errStopped):
				return
			case err != nil:
				yield(nil, withoutRows(err))
				return
			}
			ended = true
		})
		if err == nil && !ended {
			err = errStopped
		}
		return err
	})
}

// openDataKeys adds to the data keys those that the instance has now.
func (ex *exporting) openDataKeys(ctx context.Context) error {
	rings, err := ex.c.keyrings(ctx, []string{ex.result.Instance})
	if ring := rings[ex.result.Instance]; ring != nil && ex.ring != nil {
		ex.ring = ex.ring.with(ring.keys)
	} else if ring != nil {
		ex.ring = ring
	}
	return err
}

// errStopped says that who copies did not want all of it.
var errStopped = errors.New("the copy is not whole")

// rows yields the entries of all rows, the credentials first and each app-state version before its MACs, and then the pairs of the LID map. It reads a page at a time, so that no statement lasts as long as whoever
// stores them.
func (ex *exporting) rows(ctx context.Context, tx pgx.Tx, yield func(portable.Entry) bool) error {
	for _, query := range []string{
		`key_type = 'creds'`, // device, pre_keys
		`key_type = 'app_state_version'`,
		`key_type NOT IN ('creds', 'app_state_version')`,
	} {
		var last storedRow
		for {
			rows, err := tx.Query(ctx, ex.c.sql(`SELECT key_type, key_id, data::text, seq FROM {schema}.auth_keys WHERE instance_id = $1 AND `+query+`
				AND (key_type, key_id) > ($2, $3) ORDER BY key_type, key_id LIMIT $4`),
				pgx.QueryExecModeExec, ex.result.Instance, last.Type, last.ID, importPiece)
			if err != nil {
				return err
			}
			page, err := pgx.CollectRows(rows, pgx.RowToStructByPos[storedRow])
			if err != nil {
				return err
			}
			for _, row := range page {
				if err = ex.row(row, yield); err != nil {
					return err
				}
			}
			if len(page) < importPiece {
				break
			}
			last = page[len(page)-1]
		}
	}
	return ex.pairs(ctx, tx, yield)
}

type storedRow struct {
	Type, ID, Data string
	Seq            int64
}

// row yields a row's entry, or notes why it has none.
func (ex *exporting) row(row storedRow, yield func(portable.Entry) bool) error {
	k, reason := cache.Key{ID: row.ID}, "of a later version"
	var e portable.Entry
	var known bool
	if k.Type, known = typesByName[row.Type]; known {
		plain, err := ex.c.unseal(ex.ring, ex.result.Instance, k, row.Seq, []byte(row.Data))
		if err != nil && (errors.Is(err, errForeignKey) || !errors.Is(err, ErrCorrupt)) {
			return err // a key is missing: all rows under it would be left out
		}
		if reason = unreadable; err == nil {
			e, reason = ex.entry(k, row.Seq, plain)
		}
	}
	if e == nil {
		ex.result.Skipped = append(ex.result.Skipped, Skipped{Kind: row.Type, Name: unescapeID(row.ID), Reason: reason})
		return nil
	}
	ex.note(e)
	if !yield(e) {
		return errStopped
	}
	return nil
}

const unreadable = "the row cannot be read"

// entry is a row as it is handed out, or why it is not.
func (ex *exporting) entry(k cache.Key, seq int64, plain []byte) (e portable.Entry, reason string) {
	v, err := decodeKey(k, plain)
	if err != nil {
		return nil, unreadable
	}
	if rec, ok := v.(*recordValue); ok {
		rec.from, rec.seq = ex.in, seq // what was abandoned here since the row was written
		if _, ok = rec.read(); !ok {
			return nil, unreadable
		}
		if ex.in != nil {
			toCeiling(rec)
		}
	}
	if preKey, ok := v.(*preKeyValue); ok && ex.in.markOf(seq) == markAbandon {
		preKey.Uploaded, preKey.Stale = true, true
	}
	e, err = entryOf(k, v)
	if err != nil {
		return nil, strings.TrimPrefix(err.Error(), ErrInvalidInput.Error()+": ")
	}
	if ex.cfg.Sendable {
		return sendable(e)
	}
	return e, ""
}

// toCeiling moves the sending chain of a record to the ceiling of its row, unless it is abandoned: no counter below was promised to anybody else, and none above has
// left.
func toCeiling(v *recordValue) {
	form := v.form.Load()
	name, counter := v.sendingChain()
	ceiling := form.sends.row.counter
	if name == nil || !v.mayUse(name) || ceiling <= counter {
		return
	}
	if ceiling-counter < widestGap {
		if stepped, err := stepTo(form.record, ceiling); err == nil {
			v.form.Store(&recordForm{record: stepped, sends: form.sends})
			return
		}
	}
	form.sends.abandoned = append(form.sends.abandoned, string(name))
}

// sendable leaves out of an entry what must not be sent on, or all of it.
func sendable(e portable.Entry) (_ portable.Entry, reason string) {
	const abandoned = "its sending chain is abandoned, the client begins it anew"
	switch e := e.(type) {
	case *portable.PreKey:
		if e.Stale {
			return nil, "it was made before the database went back"
		}
	case *portable.SenderKey:
		if ownSenderKey(e.Record) && slices.Contains(e.Abandoned, string(senderKeyID(e.Record))) {
			return nil, abandoned
		}
	case *portable.Session:
		at, ok := ratchetOf(e.Record)
		if !ok || slices.Contains(e.Abandoned, string(at.chain)) {
			return nil, abandoned
		}
		if len(stillIn(e.Record, e.Abandoned)) == 0 {
			break
		}
		parsed, err := parseSession(e.Record)
		if err != nil {
			return nil, "no session that libsignal could read"
		}
		parsed.PreviousStates = slices.DeleteFunc(parsed.PreviousStates, func(st *sessionState) bool {
			return slices.Contains(e.Abandoned, base64.StdEncoding.EncodeToString(st.SenderChain.SenderRatchetKeyPublic))
		})
		if e.Record, err = encodeSession(parsed); err != nil {
			return nil, "no session that libsignal could read"
		}
		e.Abandoned = nil
	}
	return e, ""
}

// note notes whose pairs of the LID map belong to the instance: those of everybody whom it names.
func (ex *exporting) note(e portable.Entry) {
	var names []portable.Text
	switch e := e.(type) {
	case *portable.Credentials:
		names = []portable.Text{e.JID, e.LID}
	case *portable.Identity:
		names = []portable.Text{e.Address}
	case *portable.Session:
		names = []portable.Text{e.Address}
	case *portable.SenderKey:
		names = []portable.Text{e.Sender}
	case *portable.Contact:
		names = []portable.Text{e.JID}
	case *portable.ChatSettings:
		names = []portable.Text{e.Chat}
	case *portable.PrivacyToken:
		names = []portable.Text{e.JID}
	case *portable.MessageSecret:
		names = []portable.Text{e.Chat, e.Sender}
	case *portable.OutgoingEvent:
		names = []portable.Text{e.Chat}
	}
	for _, name := range names {
		if jid, err := types.ParseJID(string(name)); err == nil && jid.Server == types.GroupServer {
			continue
		}
		user, _, _ := strings.Cut(string(name), "@")
		user, _, _ = strings.Cut(user, ":")
		user, _, _ = strings.Cut(user, "_")
		if user != "" {
			ex.users[user] = true
		}
	}
}

// pairs yields the pairs of the LID map that belong to the instance.
func (ex *exporting) pairs(ctx context.Context, tx pgx.Tx, yield func(portable.Entry) bool) error {
	seen := make(map[string]bool)
	for some := range slices.Chunk(slices.Sorted(maps.Keys(ex.users)), importPiece) {
		ids := make([]string, len(some))
		for i, user := range some {
			ids[i] = keyID(user)
		}
		rows, err := tx.Query(ctx, ex.c.sql(`SELECT lid, pn FROM {schema}.lid_map WHERE lid = ANY($1) UNION SELECT lid, pn FROM {schema}.lid_map WHERE pn = ANY($1)`), pgx.QueryExecModeExec, ids)
		if err != nil {
			return err
		}
		pairs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ LID, PN string }])
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if seen[p.LID] {
				continue
			}
			seen[p.LID] = true
			if !yield(&portable.LIDPair{LID: text(unescapeID(p.LID)), PN: text(unescapeID(p.PN))}) {
				return errStopped
			}
		}
	}
	return nil
}

// end lets go of the instance, behind the fence or as it was.
func (ex *exporting) end(ctx context.Context, fenced bool) error {
	switch {
	case ex.in == nil:
		return nil
	case !fenced:
		return ex.c.putBack(ctx, ex.in.id, ex.in.epoch())
	}
	err := ex.c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		var left bool
		err := ex.c.pool.QueryRow(ctx, ex.c.sql(`WITH was AS (UPDATE {schema}.instances SET clean_at_epoch = epoch, process = NULL,
				step_through = greatest(step_through, seq), abandon_through = greatest(abandon_through, seq)
			WHERE id = $1 AND epoch = $2 RETURNING id, `+byLibrary+`)
			SELECT EXISTS (SELECT FROM was), (SELECT {schema}.audit_note(id, 'exported', 'to ' || $3) FROM was), pg_notify($4, ''), `+durably),
			pgx.QueryExecModeExec, ex.in.id, ex.in.epoch(), cmp.Or(ex.cfg.Target, "entries"), ex.c.channel()).Scan(&left, nil, nil, nil)
		if err == nil && !left {
			return ErrOwnershipLost
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the instance could not be fenced: %w", err)
	}
	return nil
}

// putBack lets go of an instance that was taken for something that came to nothing. The take has noted what the owner before had left behind, and nothing was written since.
func (c *Container) putBack(ctx context.Context, id string, epoch int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	err := c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		_, err := c.pool.Exec(ctx, c.sql(`WITH was AS (UPDATE {schema}.instances SET clean_at_epoch = epoch, process = NULL WHERE id = $1 AND epoch = $2 RETURNING id)
			SELECT id, pg_notify($3, '') FROM was`), pgx.QueryExecModeExec, id, epoch, c.channel())
		return err
	})
	if err != nil {
		return fmt.Errorf("the instance could not be let go of: %w", err)
	}
	return nil
}
