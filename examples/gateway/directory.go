package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// The gateway's own tables, in a schema of their own beside the store's. Who has which instance and who lives is not in them: that is asked of the
// store's views owners and process_load, which are right whatever dies.
const schema = `
CREATE SCHEMA IF NOT EXISTS gateway;

-- One row for each instance: also of those that are not linked, of which the store knows nothing. Address is the process that has its client, or had it last.
CREATE TABLE IF NOT EXISTS gateway.instances (
    id         text COLLATE "C" PRIMARY KEY,
    address    text NOT NULL DEFAULT '',
    state      text NOT NULL DEFAULT 'new',
    detail     text NOT NULL DEFAULT '',
    codes      bigint NOT NULL DEFAULT 0,
    received   bigint NOT NULL DEFAULT 0,
    sent       bigint NOT NULL DEFAULT 0,
    active_at  timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Sends that have an idempotency key: under which message id they leave, and what was answered.
CREATE TABLE IF NOT EXISTS gateway.sends (
    instance    text COLLATE "C" NOT NULL REFERENCES gateway.instances ON DELETE CASCADE,
    key         text COLLATE "C" NOT NULL,
    fingerprint text NOT NULL,
    message_id  text NOT NULL,
    sent_at     timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (instance, key)
);
CREATE INDEX IF NOT EXISTS sends_created_at ON gateway.sends (created_at);`

// migrate makes the tables, and those of the webhooks' queue, whatever number of processes begins at once: one transaction holds a lock, and other
// connections make the tables, since River's migrations need transactions of their own.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('whatsmeow gateway'))`); err != nil {
			return err
		}
		if _, err := pool.Exec(ctx, schema, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: "gateway", Logger: quiet})
		if err != nil {
			return err
		}
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	})
}

// directory is what all processes know of all instances.
type directory struct {
	pool *pgxpool.Pool
	self string // this process's address
}

// instanceInfo is what is told of an instance.
type instanceInfo struct {
	ID       string     `json:"id"`
	JID      string     `json:"jid,omitempty"` // of one that is linked
	State    string     `json:"state"`         // new, pairing, connecting, connected, moving, failed, logged_out, or unowned: nobody has it just now
	Detail   string     `json:"detail,omitempty"`
	Owner    string     `json:"owner,omitempty"` // the name of the process that has it
	Address  string     `json:"-"`
	Codes    int64      `json:"codes"` // how often a code was shown for it
	Received int64      `json:"received"`
	Sent     int64      `json:"sent"`
	Active   *time.Time `json:"active_at,omitempty"`
	Created  *time.Time `json:"created_at,omitempty"`
}

// listStatement: what the store has and what the directory has, whichever of the two is missing. A process that shows codes has no ownership
// yet, but has to be alive for them to be worth anything.
const listStatement = `
SELECT coalesce(g.id, o.id), coalesce(o.jid, ''),
       CASE WHEN o.id IS NOT NULL AND NOT o.alive THEN 'unowned'
            WHEN o.id IS NULL AND g.state NOT IN ('new', 'logged_out') AND p.address IS NULL THEN 'new'
            WHEN o.id IS NOT NULL AND g.state IN ('new', 'pairing', 'logged_out') THEN 'connecting'
            ELSE coalesce(g.state, 'connecting') END,
       coalesce(g.detail, ''),
       CASE WHEN o.alive THEN o.owner ELSE coalesce(p.owner, '') END,
       CASE WHEN o.alive THEN o.address ELSE coalesce(p.address, '') END,
       coalesce(g.codes, 0), coalesce(g.received, 0), coalesce(g.sent, 0), g.active_at, g.created_at
FROM gateway.instances g
FULL JOIN whatsmeow.owners o ON o.id = g.id
LEFT JOIN LATERAL (SELECT p.owner, p.address FROM whatsmeow.processes p
                   WHERE o.id IS NULL AND p.address = g.address AND p.expires > clock_timestamp() LIMIT 1) AS p ON true`

func scanInstance(row pgx.CollectableRow) (i instanceInfo, err error) {
	err = row.Scan(&i.ID, &i.JID, &i.State, &i.Detail, &i.Owner, &i.Address, &i.Codes, &i.Received, &i.Sent, &i.Active, &i.Created)
	return i, err
}

func (d *directory) list(ctx context.Context) ([]instanceInfo, error) {
	rows, _ := d.pool.Query(ctx, listStatement+` ORDER BY 1`)
	return pgx.CollectRows(rows, scanInstance)
}

// find returns an instance, errUnknown if there is none.
func (d *directory) find(ctx context.Context, id string) (instanceInfo, error) {
	rows, _ := d.pool.Query(ctx, `SELECT * FROM (`+listStatement+` WHERE g.id = $1 OR o.id = $1) AS one`, id)
	i, err := pgx.CollectExactlyOneRow(rows, scanInstance)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errUnknown
	}
	return i, err
}

// process is what is told of a process.
type process struct {
	Name      string    `json:"name"`
	Address   string    `json:"-"`
	Alive     bool      `json:"alive"`
	Instances int       `json:"instances"`
	Unsaved   int64     `json:"unsaved"` // keys that are not in the database yet
	Heartbeat float64   `json:"last_sign_seconds"`
	Started   time.Time `json:"started_at"`
}

func (d *directory) processes(ctx context.Context) ([]process, error) {
	rows, _ := d.pool.Query(ctx, `SELECT owner, address, alive, instances, pending, extract(epoch FROM heartbeat_age)::float8, started_at
		FROM whatsmeow.process_load WHERE claims AND heartbeat_age < '1 minute' ORDER BY alive DESC, started_at`)
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p process, err error) {
		err = row.Scan(&p.Name, &p.Address, &p.Alive, &p.Instances, &p.Unsaved, &p.Heartbeat, &p.Started)
		return p, err
	})
}

// create notes a name, errExists if it is taken.
func (d *directory) create(ctx context.Context, id string) error {
	tag, err := d.pool.Exec(ctx, `INSERT INTO gateway.instances (id, address) VALUES ($1, $2) ON CONFLICT DO NOTHING`, id, d.self)
	if err == nil && tag.RowsAffected() == 0 {
		err = errExists
	}
	return err
}

func (d *directory) remove(ctx context.Context, id string) error {
	_, err := d.pool.Exec(ctx, `DELETE FROM gateway.instances WHERE id = $1`, id)
	return err
}

// adopt makes this process the one that shows the codes of an instance, unless another one does that lives.
func (d *directory) adopt(ctx context.Context, id string) (bool, error) {
	tag, err := d.pool.Exec(ctx, `UPDATE gateway.instances SET address = $2, state = 'pairing', detail = ''
		WHERE id = $1 AND (address = $2 OR state <> 'pairing' OR address NOT IN (SELECT address FROM whatsmeow.processes WHERE expires > clock_timestamp()))`, id, d.self)
	return tag.RowsAffected() == 1, err
}

// took notes that this process has taken instances.
func (d *directory) took(ctx context.Context, ids []string) error {
	_, err := d.pool.Exec(ctx, `INSERT INTO gateway.instances AS g (id, address, state) SELECT unnest($1::text[]), $2, 'connecting'
		ON CONFLICT (id) DO UPDATE SET address = excluded.address, state = excluded.state, detail = ''`, ids, d.self)
	return err
}

// status is what a process tells the directory of an instance: how it is, and what has happened since it last said so.
type status struct {
	State, Detail         string
	Codes, Received, Sent int64
	Active                time.Time
}

// statuses are those that have changed, by instance.
type statuses map[string]status

// add adds what came later.
func (all statuses) add(id string, s status) {
	before := all[id]
	s.Codes, s.Received, s.Sent = s.Codes+before.Codes, s.Received+before.Received, s.Sent+before.Sent
	if s.Active.IsZero() {
		s.Active = before.Active
	}
	all[id] = s
}

// saveTimeout is how long the directory may take to write down statuses.
const saveTimeout = 5 * time.Second

// save writes them down. What another process has taken meanwhile is left as that one says.
func (d *directory) save(ctx context.Context, changed statuses) error {
	var ids, states, details []string //nolint:prealloc // it is shorter
	var codes, received, sent []int64 //nolint:prealloc // it is shorter
	var active []*time.Time
	for id, s := range changed {
		ids, states, details = append(ids, id), append(states, s.State), append(details, s.Detail)
		codes, received, sent = append(codes, s.Codes), append(received, s.Received), append(sent, s.Sent)
		if at := s.Active; at.IsZero() {
			active = append(active, nil)
		} else {
			active = append(active, &at)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	_, err := d.pool.Exec(ctx, `
		UPDATE gateway.instances g SET codes = g.codes + c.codes, received = g.received + c.received, sent = g.sent + c.sent,
		       active_at = greatest(g.active_at, c.active),
		       state = CASE WHEN g.address = $1 THEN c.state ELSE g.state END, detail = CASE WHEN g.address = $1 THEN c.detail ELSE g.detail END
		FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::timestamptz[])
		     AS c (id, state, detail, codes, received, sent, active)
		WHERE g.id = c.id`, d.self, ids, states, details, codes, received, sent, active)
	return err
}

// retention is how long an idempotency key is good for.
const retention = 24 * time.Hour

func (d *directory) sweep(ctx context.Context) error {
	_, err := d.pool.Exec(ctx, `DELETE FROM gateway.sends WHERE created_at < now() - make_interval(secs => $1)`, retention.Seconds())
	return err
}
