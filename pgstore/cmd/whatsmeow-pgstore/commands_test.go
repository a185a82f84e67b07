package main_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

type migrations struct {
	Schema     string
	Migrations []struct {
		Version   int
		Name      string
		Applied   bool
		AppliedAt *time.Time `json:"applied_at"`
		SQL       string
	}
}

type owned struct {
	ID, JID, LID, Owner, Address, State string
	Clean                               bool
	TakenAt                             time.Time `json:"taken_at"`
	CreatedAt                           time.Time `json:"created_at"`
	HeartbeatAge                        *float64  `json:"heartbeat_age_seconds"`
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	before := parse[migrations](t, s.ok("migrate", "status", "--json"))
	require.NotEmpty(t, before.Migrations)
	for _, m := range before.Migrations {
		require.False(t, m.Applied)
		require.Nil(t, m.AppliedAt)
	}
	dry := s.ok("migrate", "up", "--dry-run", "--schema", "elsewhere")
	require.Contains(t, dry, `CREATE TABLE "elsewhere".auth_keys`)
	require.Equal(t, 0, scalar[int](s, `SELECT count(*) FROM pg_namespace WHERE nspname IN ('whatsmeow', 'elsewhere')`), "nothing has run")

	// What is printed is what runs.
	s.exec(strings.ReplaceAll(dry, `"elsewhere"`, `"by_hand"`))
	run := parse[migrations](t, s.ok("migrate", "up", "--json"))
	require.Len(t, run.Migrations, len(before.Migrations))
	const shape = `SELECT string_agg(c.relname || '.' || a.attname || ' ' || a.atttypid::regtype, ',' ORDER BY c.relname, a.attnum) FROM pg_class c
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 WHERE c.relkind IN ('r', 'v', 'p') AND c.relname <> 'goose_version' AND c.relnamespace = $1::regnamespace`
	require.Equal(t, scalar[string](s, shape, "whatsmeow"), scalar[string](s, shape, "by_hand"))

	require.Equal(t, "schema whatsmeow is up to date\n", s.ok("migrate", "up"))
	require.Contains(t, s.ok("migrate", "up", "--dry-run"), "up to date")
	for _, m := range parse[migrations](t, s.ok("migrate", "status", "--json")).Migrations {
		require.True(t, m.Applied)
		require.NotNil(t, m.AppliedAt)
	}
	require.Equal(t, 0, scalar[int](s, `SELECT count(*) FROM whatsmeow.settings`), "who migrates decides nothing for those who run")
	s.exec(`INSERT INTO whatsmeow.schema_info VALUES (9999, 1)`)
	require.Contains(t, s.ok("migrate", "status"), "(of a newer version)")
}

func TestInstances(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	d, _ := s.pair(c, "shop-2")
	s.pair(c, "shop-\x1b[31m3")
	require.NoError(t, c.Release(ctx, "shop-1"))
	list := parse[struct{ Instances []owned }](t, s.ok("instances", "list", "--json")).Instances
	require.Len(t, list, 3)
	require.Equal(t, "free", list[1].State)
	require.True(t, list[1].Clean)
	require.Equal(t, "owned", list[2].State)
	require.Equal(t, "worker-1", list[2].Owner)
	require.Equal(t, "10.0.0.1:80", list[2].Address)
	require.NotContains(t, s.ok("instances", "list"), "\x1b", "what somebody else has chosen moves no cursor, and there is no terminal for colours")
	require.Len(t, parse[struct{ Instances []owned }](t, s.ok("instances", "list", "--json", "--state", "free")).Instances, 1)

	type details struct {
		owned
		Epoch          int64
		Seq            int64
		StepThrough    int64 `json:"step_through"`
		AbandonThrough int64 `json:"abandon_through"`
		Timeline       string
		System         string
		ChainsToHeal   int64 `json:"chains_to_heal"`
		SetAside       int64 `json:"set_aside"`
		Sizes          []struct {
			KeyType   string `json:"key_type"`
			Keys      int64
			Bytes     int64
			LastWrite time.Time `json:"last_write"`
		}
	}
	shown := parse[details](t, s.ok("instances", "show", d.ID.String(), "--json"))
	require.Equal(t, "shop-2", shown.ID, "by its JID")
	require.NotEmpty(t, shown.Sizes)
	require.Contains(t, s.ok("instances", "show", "shop-2"), "worker-1 at 10.0.0.1:80")
	require.Contains(t, s.fails(1, "instances", "show", "nobody"), "there is no instance nobody")
	require.Contains(t, s.ok("__complete", "instances", "show", "shop-"), "shop-1\tworker-1\n")
	require.Contains(t, s.ok("__complete", "instances", "list", "--state", ""), "orphaned")
	require.Empty(t, strings.ReplaceAll(start(t, nil, "__complete", "instances", "show", "").out, ":4\n", ""), "no database is named")
}

func TestStats(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	type statistics struct {
		Instances int64
		ByType    []map[string]any `json:"by_type"`
		Largest   []map[string]any
		Tables    []map[string]any
		Settings  []map[string]any
	}
	all := parse[statistics](t, s.ok("stats", "--json"))
	require.EqualValues(t, 1, all.Instances)
	require.Equal(t, "shop-1", all.Largest[0]["instance"])
	require.Len(t, all.Tables, 5)
	for _, field := range []string{"table", "rows", "bytes", "index_bytes", "updates", "hot_updates", "hot_rate", "dead_rows", "last_autovacuum", "blocks_hit", "blocks_read", "cache_hit_rate", "options"} {
		require.Contains(t, all.Tables[0], field)
	}
	text := s.ok("stats", "--instance", "shop-1")
	require.Contains(t, text, "auth_keys: fillfactor=45")
	require.Contains(t, text, "session")
	s.fails(1, "stats", "--instance", "nobody")
	s.fails(2, "stats", "--largest", "-1")
}

func TestReleaseTakesFromTheDeadAndFromTheLivingOnlyByForce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	d, _ := s.pair(c, "shop-1")
	type releasing struct {
		Instance string
		Before   owned
		Released bool
	}
	refusal := s.fails(4, "release", "shop-1")
	require.Contains(t, refusal, "worker-1 at 10.0.0.1:80")
	_, _, err := d.Contacts.PutPushName(ctx, *d.ID, "still here")
	require.NoError(t, err)
	require.NoError(t, c.Flush(ctx), "who was not forced has it still")

	forced := parse[releasing](t, s.ok("release", "shop-1", "--force", "--json"))
	require.True(t, forced.Released)
	require.Equal(t, "worker-1", forced.Before.Owner)
	require.True(t, scalar[bool](s, `SELECT process IS NULL AND clean_at_epoch = epoch FROM whatsmeow.instances`))
	_, _, err = d.Contacts.PutPushName(ctx, *d.ID, "no more")
	if err == nil {
		err = c.Flush(ctx)
	}
	require.ErrorIs(t, err, pgstore.ErrOwnershipLost)
	require.Contains(t, s.ok("release", "shop-1"), "nobody has it")

	// One that died is not asked.
	_, err = c.Instance(ctx, "shop-1")
	require.NoError(t, err)
	s.exec(`UPDATE whatsmeow.instances SET process = gen_random_uuid()`)
	require.Contains(t, s.ok("release", "shop-1"), "released; it was of worker-1")
	require.True(t, scalar[bool](s, `SELECT process IS NULL AND clean_at_epoch = epoch FROM whatsmeow.instances`))
}

func TestReleaseRespectsLeases(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open(func(cfg *pgstore.Config) { cfg.Takes = pgstore.RespectLease })
	s.pair(c, "shop-1")
	path, d, _ := onSqlite(t)
	for _, args := range [][]string{
		{"release", "shop-1"},
		{"export", "sqlstore", "shop-1", path + ".new", "--yes"},
		{"import", "sqlstore", path, "--instance", "shop-1", "--device", d.ID.String(), "--replace"},
	} {
		require.Contains(t, s.fails(4, append(args, "--force", "--wait", "3s")...), "has not let go of it", args)
	}
	require.True(t, scalar[bool](s, `SELECT process IS NOT NULL FROM whatsmeow.instances`))
}

func TestHealAbandonsChainsAndTheClientGoesOn(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	_, peer := s.pair(c, "shop-1")
	s.fails(4, "heal", "shop-1", "--yes")
	require.NoError(t, c.Close())
	require.Contains(t, s.fails(4, "heal", "shop-1"), "say --yes")
	require.Contains(t, s.fails(1, "heal", "nobody", "--yes"), "there is no instance nobody")
	healed := parse[struct {
		Instance string
		Before   owned
		Chains   int
	}](t, s.ok("heal", "shop-1", "--yes", "--json"))
	require.Equal(t, "shop-1", healed.Instance)
	require.Positive(t, healed.Chains)
	require.True(t, scalar[bool](s, `SELECT process IS NULL AND clean_at_epoch = epoch AND abandon_through > 0 FROM whatsmeow.instances`))

	next := s.open()
	d, err := next.Instance(ctx, "shop-1")
	require.NoError(t, err)
	require.Zero(t, next.Stats().Healed, "once is enough")
	ours := signaltest.NewPeer(d)
	_, err = ours.Send(ctx, nil, nil)
	require.NoError(t, err)
	signaltest.Say(t, peer, ours, "in")
	signaltest.Say(t, ours, peer, "out, on a chain that the decrypt has begun")
}

func TestPrune(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	d, _ := s.pair(c, "shop-1")
	s.pair(c, "shop-2")
	for _, id := range []string{"A", "B"} {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, *d.ID, *d.ID, id, []byte("a secret of a message, to be sure")))
		require.NoError(t, d.EventBuffer.AddOutgoingEvent(ctx, *d.ID, id, "text", []byte("a plaintext that is kept for a while")))
	}
	require.NoError(t, c.Flush(ctx))
	s.secrets.Note(t, s.dsn)
	count := func(keyType string) int {
		return scalar[int](s, `SELECT count(*) FROM whatsmeow.auth_keys WHERE instance_id = 'shop-1' AND key_type = $1`, keyType)
	}
	type pruning struct {
		Instances []struct {
			Instance       string
			BufferedEvents int `json:"buffered_events"`
			OutgoingEvents int `json:"outgoing_events"`
			MessageSecrets int `json:"message_secrets"`
			Skipped        string
		}
		AuditPartitions int `json:"audit_partitions"`
	}
	s.fails(2, "prune")
	s.fails(2, "prune", "--message-secrets", "soon")
	s.fails(2, "prune", "--message-secrets", "1d", "--force")
	s.fails(4, "prune", "shop-1", "--message-secrets", "1d")
	require.NoError(t, c.Release(ctx, "shop-1"))
	s.exec(`UPDATE whatsmeow.auth_keys SET updated_at = now() - interval '100 days' WHERE key_type = 'message_secret' AND key_id LIKE '%A'`)

	p := parse[pruning](t, s.ok("prune", "--message-secrets", "99d", "--outgoing-events", "1h", "--buffered-events", "1h", "--json"))
	require.Len(t, p.Instances, 2)
	require.Empty(t, p.Instances[0].Skipped)
	require.Equal(t, 1, p.Instances[0].MessageSecrets)
	require.Zero(t, p.Instances[0].OutgoingEvents)
	require.NotEmpty(t, p.Instances[1].Skipped, "a living process has it")
	require.Equal(t, 1, count("message_secret"))
	require.Equal(t, 2, count("outgoing_event"))
	require.True(t, scalar[bool](s, `SELECT process IS NULL AND clean_at_epoch = epoch FROM whatsmeow.instances WHERE id = 'shop-1'`))

	require.Positive(t, count("buffered_event"))
	require.Contains(t, s.ok("prune", "shop-1", "--outgoing-events", "1ms", "--buffered-events", "1ms"), "shop-1")
	require.Zero(t, count("outgoing_event"))
	require.Zero(t, count("buffered_event"))

	s.exec(`SET timezone = 'UTC'; CREATE TABLE whatsmeow.audit_202001 PARTITION OF whatsmeow.audit FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z')`)
	require.Contains(t, s.ok("prune", "--audit", "400d"), "1 partitions")
}

func TestAudit(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	require.NoError(t, c.Close())
	type entry struct {
		At                           time.Time
		Instance, Event, Owner, Role string
		Detail                       string
		N, Keys                      int
		Epoch, Seq                   *int64
	}
	first := parse[entry](t, s.ok("audit", "tail", "-n", "1", "--json"))
	require.Equal(t, "released", first.Event)
	require.Contains(t, s.ok("audit", "tail", "--instance", "shop-1"), "paired")
	require.Empty(t, s.ok("audit", "tail", "--instance", "nobody"))

	whole := s.ok("audit", "verify", "--json")
	type verification struct {
		OK        bool
		Entries   int
		Breaks    []map[string]any
		Outsiders []map[string]any
		Heads     map[string]map[string]any
	}
	require.True(t, parse[verification](t, whole).OK)
	heads := t.TempDir() + "/heads.json"
	write(t, heads, whole)
	require.Contains(t, s.ok("audit", "verify", "--heads", heads), "the trail is whole")
	write(t, heads, "{}")
	s.fails(1, "audit", "verify", "--heads", heads)

	s.exec(`UPDATE whatsmeow.auth_keys SET data = data || '{"by": "hand"}' WHERE key_type = 'session'`)
	require.Contains(t, s.ok("audit", "verify"), "outsider shop-1")
	s.exec(`UPDATE whatsmeow.audit SET detail = 'nothing' WHERE n = 1`)
	broken := s.run("audit", "verify", "--json")
	require.Equal(t, 3, broken.code)
	require.False(t, parse[verification](t, broken.out).OK)
	require.Empty(t, broken.errs)
}

func TestAuditTailGoesOn(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	cmd := exec.Command(command, "audit", "tail", "-f", "-n", "1", "--dsn", s.dsn)
	lines, stop := follow(t, cmd)
	require.Contains(t, <-lines, "taken", "the last one so far")
	require.NoError(t, c.Release(ctx, "shop-1"))
	require.Contains(t, <-lines, "released")
	_, err := c.Instance(ctx, "shop-1")
	require.NoError(t, err)
	require.Contains(t, <-lines, "taken")
	require.NoError(t, stop(), "Ctrl-C is how it ends")
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	type examination struct {
		Checks []struct{ Check, Status, What, Advice string }
		Warned int
		Failed int
	}
	statuses := func(r said) map[string]string {
		byCheck := make(map[string]string)
		for _, c := range parse[examination](t, r.out).Checks {
			byCheck[c.Check] = c.Status
			require.NotEmpty(t, c.What)
			require.Equal(t, c.Status != "ok", c.Advice != "", c.Check)
		}
		return byCheck
	}
	empty := s.run("doctor", "--json")
	require.Equal(t, 3, empty.code)
	require.Equal(t, "fail", statuses(empty)["schema"])

	c := s.open()
	s.pair(c, "shop-1")
	found := s.run("doctor", "--json")
	require.Empty(t, found.errs)
	now := statuses(found)
	for _, check := range []string{"connection", "version", "writable", "pooler", "clock", "full_page_writes", "synchronous_commit", "autovacuum", "timeline", "schema", "tables", "hot updates", "instances", "set aside", "audit trail"} {
		require.Contains(t, []string{"ok"}, now[check], check)
	}
	require.Equal(t, 3, s.run("doctor", "--strict").code, "it is a superuser")

	s.exec(`ALTER TABLE whatsmeow.auth_keys SET (fillfactor = 100)`,
		`UPDATE whatsmeow.instances SET process = gen_random_uuid(), clean_at_epoch = 0`,
		`INSERT INTO whatsmeow.set_aside SELECT id, 'session', 'x', '{}', 'does not parse' FROM whatsmeow.instances`,
		`INSERT INTO whatsmeow.audit_default SELECT instance_id, n, '2000-01-01', event, epoch, seq, owner, role, detail, keys, digest, hash FROM whatsmeow.audit LIMIT 1`)
	sick := statuses(s.run("doctor", "--json"))
	for _, check := range []string{"tables", "instances", "set aside", "audit trail"} {
		require.Equal(t, "warn", sick[check], check)
	}

	role := pgRole(s, "looks", "")
	s.exec(`GRANT USAGE ON SCHEMA whatsmeow TO `+role.name, `GRANT SELECT ON ALL TABLES IN SCHEMA whatsmeow TO `+role.name)
	looks := start(t, []string{"PGSTORE_DSN=" + role.dsn}, "doctor", "--json")
	require.Equal(t, "warn", statuses(looks)["rights"], looks.out)
	require.NotContains(t, looks.out+looks.errs, role.password)
}

func TestDoctorTellsOfAPgBouncer(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.open()
	r := start(t, []string{"PGSTORE_DSN=" + pgtest.PgBouncer(t, s.dsn, 4)}, "doctor")
	require.Contains(t, r.out, "in transaction mode", r.errs)
}

func TestTopOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	s.pair(c, "shop-2")
	require.NoError(t, c.Release(ctx, "shop-2"))
	type frame struct {
		At                               time.Time
		Instances, Owned, Orphaned, Free int
		FlushRate                        *float64 `json:"flushes_per_second"`
		Processes                        []struct {
			ID, Owner, Address string
			Alive, Claims      bool
			Instances, Pending int
			PendingFor         float64  `json:"pending_for_seconds"`
			HeartbeatAge       float64  `json:"heartbeat_age_seconds"`
			FlushRate          *float64 `json:"flushes_per_second"`
		}
	}
	f := parse[frame](t, s.ok("top", "--json", "--interval", "100ms"))
	require.Equal(t, 2, f.Instances)
	require.Equal(t, 1, f.Owned)
	require.Equal(t, 1, f.Free)
	require.Len(t, f.Processes, 1)
	require.True(t, f.Processes[0].Alive)
	require.NotNil(t, f.FlushRate)
	require.Contains(t, s.ok("top", "--once", "--interval", "100ms"), "worker-1")
	require.Contains(t, s.fails(2, "top"), "needs a terminal")
}

func TestDrill(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	c := s.open()
	s.pair(c, "shop-1")
	d, _ := s.pair(c, "shop-2")
	require.Contains(t, s.fails(4, "drill"), "1 processes live")
	require.NoError(t, c.Close())
	require.Contains(t, s.fails(4, "drill"), "last taken on this very database")

	// As a copy of another system.
	s.exec(`UPDATE whatsmeow.instances SET system = 'another'`)
	type drill struct {
		OK         bool
		Migrations int `json:"migrations_run"`
		Audit      map[string]any
		Instances  []struct {
			Instance, JID, Error string
			OK, Healed           bool
			Chains               int
			SetAside             int `json:"set_aside"`
		}
		Seconds float64
	}
	s.fails(4, "drill", "--realm", "drill")
	first := parse[drill](t, s.ok("drill", "--json"))
	require.True(t, first.OK)
	require.Len(t, first.Instances, 2)
	for _, i := range first.Instances {
		require.True(t, i.OK)
		require.True(t, i.Healed)
		require.Positive(t, i.Chains)
		require.NotEmpty(t, i.JID)
	}
	require.Contains(t, s.ok("drill"), "2 instances, 0 healed", "it is the same copy, and has been rehearsed on")

	// One whose credentials cannot be read, and one whose keys do not fit together.
	s.exec(`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{device,noise_key}', '"AAAA"', false) WHERE key_type = 'creds' AND key_id = 'device' AND instance_id = 'shop-1'`,
		`UPDATE whatsmeow.auth_keys SET data = jsonb_set(data, '{device,signed_pre_key_sig}', to_jsonb(translate(encode(decode(repeat('00', 64), 'hex'), 'base64'), E'\\n', '')), false) WHERE key_type = 'creds' AND key_id = 'device' AND instance_id = 'shop-2'`)
	bad := s.run("drill", "--json")
	require.Equal(t, 3, bad.code, bad.errs)
	second := parse[drill](t, bad.out)
	require.False(t, second.OK)
	for _, i := range second.Instances {
		require.False(t, i.OK, i.Instance)
		require.NotEmpty(t, i.Error)
	}
	require.Contains(t, second.Instances[1].Error, "not signed by its identity key")
	require.Equal(t, d.ID.String(), second.Instances[1].JID)
}
