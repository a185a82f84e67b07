package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const (
	oldestServer  = 140000
	slowRoundTrip = 20 * time.Millisecond // a flush is one, and new chains wait for it
	skewTold      = 5 * time.Second
	roundTrips    = 5
	poolerTries   = 5
	poolerPatient = 2 * time.Second
)

func (db *database) checkConnection(ctx context.Context) (finding, error) {
	fastest := time.Hour
	for range roundTrips {
		began := time.Now()
		if err := db.Ping(ctx); err != nil {
			return finding{}, err
		}
		fastest = min(fastest, time.Since(began))
	}
	cfg := db.Config().ConnConfig
	where := fmt.Sprintf("database %s on %s as %s", cfg.Database, cfg.Host, cfg.User)
	if fastest > slowRoundTrip {
		return warn("first answers to a contact wait for a round trip: have the database near", "%s, a round trip takes %v", where, fastest.Round(time.Millisecond)), nil
	}
	return ok("%s", where), nil
}

func (db *database) checkVersion(ctx context.Context) (finding, error) {
	var number int
	var name string
	if err := db.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version')`).Scan(&number, &name); err != nil {
		return finding{}, err
	}
	if number < oldestServer {
		return fail("upgrade to PostgreSQL 14 or newer", "PostgreSQL %s", name), nil
	}
	return ok("PostgreSQL %s", name), nil
}

func (db *database) checkWritable(ctx context.Context) (finding, error) {
	var standby, readOnly bool
	if err := db.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool`).Scan(&standby, &readOnly); err != nil {
		return finding{}, err
	}
	switch {
	case standby:
		return fail("connect to the primary: several hosts in the DSN, and target_session_attrs=read-write", "it is a standby"), nil
	case readOnly:
		return fail("ALTER ROLE … SET default_transaction_read_only = off", "default_transaction_read_only is on"), nil
	}
	return ok("it is a primary and takes writes"), nil
}

// checkPooler finds out whether a pooler is in between, and its mode, by which server processes answer: one that is in between tells a client another process id
// than the server's; in transaction mode two clients share a server process, or one has several.
func (db *database) checkPooler(ctx context.Context) (finding, error) {
	first, err := db.Acquire(ctx)
	if err != nil {
		return finding{}, err
	}
	defer first.Release()
	server, err := backend(ctx, first)
	if err != nil {
		return finding{}, err
	}
	if server == first.Conn().PgConn().PID() {
		return ok("none in between"), nil
	}
	second, err := db.Acquire(ctx)
	if err != nil {
		return finding{}, err
	}
	defer second.Release()
	shared := false
	for i := 0; i < poolerTries && !shared; i++ {
		if shared, err = sharesServers(ctx, first, second); err != nil {
			return fail("transactions are needed: pool_mode = transaction, or session", "a pooler is in between that has no transactions: %s", reason(err)), nil
		}
	}
	if shared {
		return ok("in between, in transaction mode: works, without prepared statements; LISTEN and session locks are not used"), nil
	}
	return ok("in between, in session mode: works; transaction mode needs fewer connections"), nil
}

type queryRower interface {
	QueryRow(ctx context.Context, statement string, args ...any) pgx.Row
}

func backend(ctx context.Context, conn queryRower) (pid uint32, err error) {
	err = conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid)
	return pid, err
}

// sharesServers says whether a client is given the server process of another one, or another process than before, while the other is in a transaction.
func sharesServers(ctx context.Context, first, second *pgxpool.Conn) (bool, error) {
	before, err := backend(ctx, first)
	if err != nil {
		return false, err
	}
	tx, err := second.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	others, err := backend(ctx, tx)
	if err != nil || others == before {
		return err == nil, err
	}
	patient, cancel := context.WithTimeout(ctx, poolerPatient)
	defer cancel()
	now, err := backend(patient, first)
	return err == nil && now != before, err
}

func (db *database) checkClock(ctx context.Context) (finding, error) {
	began := time.Now()
	now, err := scalar[time.Time](ctx, db, `SELECT clock_timestamp()`)
	if err != nil {
		return finding{}, err
	}
	if skew := max(began.Sub(now), time.Until(now)); skew > skewTold {
		return warn("synchronize both clocks (NTP); times of messages and logs are wrong, nothing else", "this machine's clock and the server's are %v apart", skew.Round(time.Second)), nil
	}
	return ok("this machine's clock and the server's agree"), nil
}

func (db *database) setting(ctx context.Context, name string) (string, error) {
	return scalar[string](ctx, db, `SELECT current_setting($1)`, name)
}

func (db *database) checkFsync(ctx context.Context) (finding, error) {
	value, err := db.setting(ctx, "fsync")
	if err == nil && value == "off" {
		return fail("set fsync = on: what is reported as durable is lost with the machine, and with it the pairing", "off"), nil
	}
	return ok("%s", value), err
}

func (db *database) checkFullPageWrites(ctx context.Context) (finding, error) {
	value, err := db.setting(ctx, "full_page_writes")
	if err == nil && value == "off" {
		return fail("set full_page_writes = on, unless the file system writes pages whole (ZFS)", "off"), nil
	}
	return ok("%s", value), err
}

func (db *database) checkSynchronousCommit(ctx context.Context) (finding, error) {
	value, err := db.setting(ctx, "synchronous_commit")
	if err == nil && value == "off" {
		return ok("off; the library raises it to on for what is reported as durable"), nil
	}
	return ok("%s", value), err
}

func (db *database) checkAutovacuum(ctx context.Context) (finding, error) {
	value, err := db.setting(ctx, "autovacuum")
	if err == nil && value == "off" {
		return fail("set autovacuum = on: the rows are updated all the time", "off"), nil
	}
	return ok("%s", value), err
}

func (db *database) checkConnections(ctx context.Context) (finding, error) {
	var used, limit int
	err := db.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
		current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int`).Scan(&used, &limit)
	if err != nil {
		return finding{}, err
	}
	if 5*used > 4*limit {
		return warn("lower pool_max_conns in the DSNs (four are enough for thousands of instances), use PgBouncer, or raise max_connections", "%d of %d are used", used, limit), nil
	}
	return ok("%d of %d are used", used, limit), nil
}

// checkTimeline reads what every take and every flush reads (pgstore/open.go).
func (db *database) checkTimeline(ctx context.Context) (finding, error) {
	var timeline, system string
	err := db.QueryRow(ctx, `SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
		(SELECT system_identifier::text FROM pg_control_system())`).Scan(&timeline, &system)
	if err != nil {
		return fail("GRANT EXECUTE ON FUNCTION pg_control_system, pg_current_wal_insert_lsn, pg_walfile_name to the role", "cannot be read, and no instance can be taken: %s", reason(err)), nil
	}
	return ok("timeline %s of system %s", timeline, system), nil
}

func (db *database) checkSchema(ctx context.Context) (finding, error) {
	steps, err := pgstore.Migrations(ctx, pgstore.Config{Pool: db.Pool, Schema: db.name})
	if err != nil {
		return finding{}, err
	}
	applied, pending, newer := 0, 0, 0
	for _, m := range steps {
		switch {
		case !m.Applied:
			pending++
		case m.Name == "":
			newer++
			applied = max(applied, m.Version)
		default:
			applied = max(applied, m.Version)
		}
	}
	const up = "run 'whatsmeow-pgstore migrate up', or start a program that may migrate"
	switch {
	case applied == 0:
		return fail(up, "schema %s is not there", db.name), nil
	case newer > 0:
		return warn("update this command; programs of this version start if the schema says that they may", "version %d, which this version does not know", applied), nil
	case pending > 0:
		return warn(up, "version %d, of which this version knows %d newer", applied, pending), nil
	}
	return ok("version %d, which is the newest", applied), nil
}

// written are the tables that who runs writes to (roles.sql).
var written = []string{"instances", "auth_keys", "set_aside", "lid_map", "processes", "settings"}

func (db *database) checkRights(ctx context.Context) (finding, error) {
	lacking, err := collect[struct{ Right string }](ctx, db, `
		SELECT r.privilege || ' on ' || t.name FROM unnest($1::text[]) AS t (name), unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS r (privilege)
		WHERE to_regclass($2 || '.' || quote_ident(t.name)) IS NOT NULL AND NOT has_table_privilege($2 || '.' || quote_ident(t.name), r.privilege)
		UNION ALL SELECT 'USAGE on epochs' WHERE NOT has_sequence_privilege($2 || '.epochs', 'USAGE')`, written, db.schema)
	if err != nil {
		return finding{}, err
	}
	var role string
	var superuser bool
	if err = db.QueryRow(ctx, `SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&role, &superuser); err != nil {
		return finding{}, err
	}
	if len(lacking) > 0 {
		var names []string
		for _, l := range lacking {
			names = append(names, l.Right)
		}
		return warn("it is enough to look; for who runs bots see roles.sql", "role %s lacks %s", role, strings.Join(names, ", ")), nil
	}
	if superuser {
		return warn("use a role that may only what roles.sql grants", "role %s is a superuser", role), nil
	}
	return ok("role %s may run bots", role), nil
}

// tableOptions are what the migrations set, so that updates are heap-only and vacuum keeps up.
var tableOptions = map[string][]string{
	"auth_keys": {"fillfactor=45", "toast_tuple_target=8160", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_delay=0"},
	"instances": {"fillfactor=50"},
	"processes": {"fillfactor=50"},
}

func (db *database) checkTables(ctx context.Context) (finding, error) {
	type row struct {
		Name    string
		Options []string
		Storage string
	}
	tables, err := collect[row](ctx, db, `SELECT c.relname, coalesce(c.reloptions, '{}'),
			coalesce((SELECT attstorage::text FROM pg_attribute WHERE attrelid = c.oid AND attname = 'data' AND c.relname = 'auth_keys'), '')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r' ORDER BY c.relname`, db.name)
	if err != nil {
		return finding{}, err
	}
	var missing []string
	for _, t := range tables {
		for _, option := range tableOptions[t.Name] {
			if !slices.Contains(t.Options, option) {
				missing = append(missing, t.Name+" "+option)
			}
		}
		if t.Name == "auth_keys" && t.Storage != "e" {
			missing = append(missing, "auth_keys.data STORAGE EXTERNAL")
		}
	}
	if len(missing) > 0 {
		return warn("set them again (ALTER TABLE … SET), and VACUUM FULL once in a quiet hour", "not as the migrations set them: %s", strings.Join(missing, ", ")), nil
	}
	return ok("fillfactor, TOAST and autovacuum settings are as the migrations set them"), nil
}

const (
	hotEnough  = 1000 // updates, before their share is told
	hotPercent = 80
)

func (db *database) checkHOT(ctx context.Context) (finding, error) {
	var updates, hot, live, dead int64
	err := db.QueryRow(ctx, `SELECT n_tup_upd, n_tup_hot_upd, n_live_tup, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'auth_keys'`, db.name).
		Scan(&updates, &hot, &live, &dead)
	switch {
	case err != nil:
		return finding{}, err
	case updates < hotEnough:
		return ok("too few updates to tell"), nil
	case 100*hot < hotPercent*updates:
		return warn("look at the size of records and at table settings; autovacuum has more to do", "%s of %d updates of auth_keys are heap-only", percent(hot, updates), updates), nil
	case dead > live:
		return warn("autovacuum does not keep up: look for old transactions in pg_stat_activity", "auth_keys has %d dead rows and %d living ones", dead, live), nil
	}
	return ok("%s of %d updates of auth_keys are heap-only, %d dead rows", percent(hot, updates), updates, dead), nil
}

func (db *database) checkInstances(ctx context.Context) (finding, error) {
	var all, unclean, orphaned int64
	err := db.QueryRow(ctx, db.sql(`SELECT count(*), count(*) FILTER (WHERE NOT living AND i.clean_at_epoch <> i.epoch), count(*) FILTER (WHERE NOT living AND i.process IS NOT NULL)
		FROM {schema}.instances i, LATERAL (SELECT EXISTS (SELECT FROM {schema}.processes p WHERE p.id = i.process AND p.expires > clock_timestamp()) AS living) AS l`)).
		Scan(&all, &unclean, &orphaned)
	if err != nil {
		return finding{}, err
	}
	if unclean > 0 || orphaned > 0 {
		return warn("who takes them sees to it; if nobody does, start a process, or 'whatsmeow-pgstore release'",
			"%d instances, of which processes that live no more have %d, and have left %d uncleanly", all, orphaned, unclean), nil
	}
	return ok("%d, none left uncleanly", all), nil
}

func (db *database) checkSetAside(ctx context.Context) (finding, error) {
	n, err := scalar[int64](ctx, db, `SELECT count(*) FROM {schema}.set_aside`)
	if err == nil && n > 0 {
		return warn("look at table set_aside (reason, at): something has written rows that the library cannot read; delete them when you know what", "%d rows could not be read", n), nil
	}
	return ok("no row could not be read"), err
}

// checkPartitions looks whether entries of the trail go where they can be dropped by month.
func (db *database) checkPartitions(ctx context.Context) (finding, error) {
	n, err := scalar[int64](ctx, db, `SELECT (SELECT count(*) FROM {schema}.audit_default) + (SELECT count(*) FROM {schema}.audit_keys_default)`)
	if err == nil && n > 0 {
		return warn("a process that may call audit_partitions makes months ahead; what is in the default partition is not dropped by prune --audit", "%d entries are in no month", n), nil
	}
	return ok("every entry is in its month"), err
}
