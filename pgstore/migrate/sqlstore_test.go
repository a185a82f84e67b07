package migrate_test

import (
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore/upgrades"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// A client that talked on sqlstore goes on talking here, without a QR code, with the sessions and the sender key that it had.
func TestP4AClientGoesOnHereWithWhatItHadOnSqlstore(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(from))
		k.converse()
		k.converse()
		k.logout()
		begun := k.chains()

		dsn := pgtest.Open(t)
		c := open(t, dsn)
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
		require.NoError(t, err)
		require.Len(t, results, 1)
		require.True(t, results[0].Exact)
		require.Empty(t, results[0].Skipped)
		require.Positive(t, results[0].Counts["session"])
		require.Positive(t, results[0].Counts["sender_key"])
		require.Positive(t, results[0].Sampled)

		k.login(c)
		k.converse()
		require.Zero(t, c.Stats().Healed)
		require.Equal(t, begun, k.chains(), "nothing was begun anew")
		k.logout()
		require.NoError(t, c.Close())

		// Also after an end of its own.
		c = open(t, dsn)
		k.login(c)
		k.converse()
		k.judge()
	})
}

// Without the word that the client is stopped, no chain of sqlstore is sent on, and everybody reads everything.
func TestP4WithoutTheWordThatCountersAreExactAllChainsAreAbandoned(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		k := newTalk(t)
		k.login(container(from))
		k.converse()
		k.logout()

		c := open(t, pgtest.Open(t))
		_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{})
		require.NoError(t, err)

		// The source is older than what has left: that is what the word is about.
		k.login(container(from))
		k.converse()
		k.logout()
		begun := k.chains()

		k.login(c)
		k.converse()
		require.EqualValues(t, 1, c.Stats().Healed)
		require.Len(t, k.chains(), len(begun)+2, "both were begun anew")
		k.judge()
	})
}

// Everything that sqlstore keeps answers here as it did there, and is told of.
func TestEverythingThatSqlstoreKeepsIsImported(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		theirs := container(from)
		d := theirs.NewDevice()
		peer := fillDevice(t, d, theirs.NewDevice())
		other := theirs.NewDevice()
		fillDevice(t, other, theirs.NewDevice())
		c := open(t, pgtest.Open(t), func(cfg *pgstore.Config) { cfg.Audit = pgstore.AuditAll })
		var seen []migrate.Progress
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{
			Exact: true, Devices: []types.JID{*d.ID}, Instance: func(jid types.JID) string { return "shop " + jid.User },
			Progress: func(p migrate.Progress) { seen = append(seen, p) },
		})
		require.NoError(t, err)
		require.Len(t, results, 1)
		require.Equal(t, map[string]int{
			"creds": 2, "identity": 2, "session": 1, "pre_key": 4, "sender_key": 1, "app_state_key": 2, "app_state_version": 1, "app_state_mac": 2,
			"contact": 2, "chat_settings": 2, "message_secret": 1, "privacy_token": 2, "nct_salt": 1, "buffered_event": 3, "outgoing_event": 1,
		}, results[0].Counts)
		require.Empty(t, results[0].Skipped)
		require.Equal(t, 3, results[0].LIDPairs, "of both devices, and of the chat")
		require.EqualValues(t, 1006, results[0].NextPreKeyID)
		require.NotEmpty(t, seen)
		require.Equal(t, seen[len(seen)-1].Total, seen[len(seen)-1].Done-1, "all, and the counter")

		devices, err := c.GetAllDevices(ctx)
		require.NoError(t, err)
		require.Len(t, devices, 1)
		require.Equal(t, "shop "+d.ID.User, pgstore.InstanceID(devices[0]))
		require.Equal(t, answersOf(t, d, []string{peer, "2:0"}), answersOf(t, devices[0], []string{peer, "2:0"}))
		require.Equal(t, d.Account.String(), devices[0].Account.String())
		require.Zero(t, c.Stats().Healed)
	})
}

// An import is repeated as often as one likes until somebody has used the instance; then it would take it back.
func TestP4ADeviceThatWasUsedHereIsNotImportedAgain(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		theirs := container(from)
		d := theirs.NewDevice()
		peer := fillDevice(t, d, theirs.NewDevice())
		dsn := pgtest.Open(t)
		c := open(t, dsn, func(cfg *pgstore.Config) { cfg.Lease = time.Hour }) // so that it finds out at its flush and not by itself
		for _, exact := range []bool{false, true, true} {
			results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: exact})
			require.NoError(t, err)
			require.Equal(t, exact, results[0].Exact)
		}
		_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true, Instance: func(types.JID) string { return "other" }})
		require.ErrorIs(t, err, pgstore.ErrDeviceConflict)

		ours, err := c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.Zero(t, c.Stats().Healed, "the last import was exact")
		session, err := ours.Sessions.GetSession(ctx, peer)
		require.NoError(t, err)
		require.NotNil(t, session)
		require.NoError(t, c.Release(ctx, pgstore.InstanceID(ours)))
		_, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
		require.ErrorIs(t, err, pgstore.ErrAlreadyTaken)

		// One that fails after the take lets go of the instance, and nothing was burned.
		broken := func(yield func(portable.Entry, error) bool) {
			_ = yield(credentialsOf(t, from), nil) && yield(nil, io.ErrUnexpectedEOF)
		}
		_, err = c.Import(ctx, "", broken, pgstore.ImportConfig{Replace: true})
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.True(t, scalar[bool](t, dsn, `SELECT process IS NULL AND clean_at_epoch = epoch AND abandon_through < seq FROM whatsmeow.instances`))

		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true, Replace: true})
		require.NoError(t, err)
		require.False(t, results[0].Exact)
		ours, err = c.GetFirstDevice(ctx)
		require.NoError(t, err)
		require.EqualValues(t, 1, c.Stats().Healed)
		session, err = ours.Sessions.GetSession(ctx, peer)
		require.NoError(t, err)
		require.Nil(t, session, "its chain is abandoned")

		// It has it now, and is told.
		_, err = migrate.FromSqlstore(ctx, open(t, dsn), from, migrate.Options{Replace: true})
		require.NoError(t, err)
		require.ErrorIs(t, ours.NCTSalt.PutNCTSalt(ctx, fill(1, 16)), pgstore.ErrOwnershipLost)
	})
}

// credentialsOf are those of the only device of a sqlstore.
func credentialsOf(t testing.TB, of migrate.Sqlstore) *portable.Credentials {
	t.Helper()
	d, err := container(of).GetFirstDevice(ctx)
	require.NoError(t, err)
	return &portable.Credentials{
		JID: portable.Text(d.ID.String()), NoiseKey: d.NoiseKey.Priv[:], IdentityKey: d.IdentityKey.Priv[:],
		SignedPreKey: d.SignedPreKey.Priv[:], SignedPreKeySignature: d.SignedPreKey.Signature[:], AdvDetails: d.Account.Details,
		AdvAccountSig: d.Account.AccountSignature, AdvAccountSigKey: d.Account.AccountSignatureKey, AdvDeviceSig: d.Account.DeviceSignature,
	}
}

// What sqlstore would have failed on at its use is left out and told, and keeps nothing else from coming along.
func TestRowsThatCannotBeUsedAreToldAndLeftOut(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		theirs := container(from)
		d := theirs.NewDevice()
		fillDevice(t, d, theirs.NewDevice())
		require.NoError(t, d.Sessions.PutSession(ctx, "5:0", []byte(`{"SessionState":{}}`)))
		require.NoError(t, d.Sessions.PutSession(ctx, "6:0", nil))
		require.NoError(t, d.SenderKeys.PutSenderKey(ctx, "g@g.us", "6:0", []byte("none")))
		require.NoError(t, d.AppState.PutAppStateVersion(ctx, "critical", 0, [128]byte{}))
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte(fill(40, 32)), []byte{}, time.Unix(1, 0)))
		c := open(t, pgtest.Open(t))
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
		require.NoError(t, err)
		var left []string
		for _, s := range results[0].Skipped {
			left = append(left, s.Kind+" "+s.Name)
			require.NotEmpty(t, s.Reason)
		}
		require.ElementsMatch(t, []string{"session 5:0", "session 6:0", "sender_key g@g.us 6:0", "app_state_version critical"}, left)
		ours, err := c.GetFirstDevice(ctx)
		require.NoError(t, err)
		has, err := ours.Sessions.HasSession(ctx, "5:0")
		require.NoError(t, err)
		require.False(t, has)
		event, err := ours.EventBuffer.GetBufferedEvent(ctx, [32]byte(fill(40, 32)))
		require.NoError(t, err)
		require.NotNil(t, event.Plaintext, "it was not processed yet")
	})
}

// A source that is none, or of another version, is refused before anything is written.
func TestSourcesThatCannotBeReadAreRefused(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, from migrate.Sqlstore) {
		c := open(t, pgtest.Open(t))
		results, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Devices: []types.JID{chat}})
		require.ErrorIs(t, err, migrate.ErrNoDevice)
		require.Empty(t, results)
		results, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{})
		require.NoError(t, err)
		require.Empty(t, results, "it has no devices")
		for version, compatible := range map[int]int{14: 8, 99: 98} {
			_, err = from.DB.ExecContext(ctx, `UPDATE whatsmeow_version SET version=$1, compat=$2`, version, compatible)
			require.NoError(t, err)
			_, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{SkipUpgrade: true})
			require.ErrorIs(t, err, migrate.ErrSourceSchema)
		}
		_, err = from.DB.ExecContext(ctx, `DROP TABLE whatsmeow_version`)
		require.NoError(t, err)
		_, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{SkipUpgrade: true})
		require.ErrorIs(t, err, migrate.ErrSourceSchema)
		instances, err := c.Instances(ctx)
		require.NoError(t, err)
		require.Empty(t, instances)
	})
}

// The tables that are read are those that whatsmeow has, so a new one is noticed here.
func TestAllTablesOfSqlstoreAreKnown(t *testing.T) {
	t.Parallel()
	from := backends[0].open(t)
	var version int
	require.NoError(t, from.DB.QueryRowContext(ctx, `SELECT version FROM whatsmeow_version`).Scan(&version))
	require.Equal(t, len(upgrades.Table), version)
	require.Equal(t, 15, version, "migrate.sqlstoreVersion")
	rows, err := from.DB.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type='table' AND name LIKE 'whatsmeow_%' ORDER BY name`)
	require.NoError(t, err)
	defer func() { require.NoError(t, rows.Close()) }()
	var tables []string
	for rows.Next() {
		var name string
		require.NoError(t, rows.Scan(&name))
		tables = append(tables, name)
	}
	require.NoError(t, rows.Err())
	require.Equal(t, []string{
		"whatsmeow_app_state_mutation_macs", "whatsmeow_app_state_sync_keys", "whatsmeow_app_state_version", "whatsmeow_chat_settings", "whatsmeow_contacts",
		"whatsmeow_device", "whatsmeow_event_buffer", "whatsmeow_identity_keys", "whatsmeow_lid_map", "whatsmeow_message_secrets", "whatsmeow_nct_salt",
		"whatsmeow_pre_keys", "whatsmeow_privacy_tokens", "whatsmeow_retry_buffer", "whatsmeow_sender_keys", "whatsmeow_sessions", "whatsmeow_version",
	}, tables)
}

// An import is told by the audit trail, which fits the rows.
func TestAnImportIsToldByTheAuditTrail(t *testing.T) {
	t.Parallel()
	from := backends[0].open(t)
	theirs := container(from)
	d := theirs.NewDevice()
	fillDevice(t, d, theirs.NewDevice())
	dsn := pgtest.Open(t)
	c := open(t, dsn, func(cfg *pgstore.Config) { cfg.Audit = pgstore.AuditAll })
	for _, replace := range []bool{false, false, true} {
		_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Replace: replace})
		require.NoError(t, err)
	}
	ours, err := c.GetFirstDevice(ctx)
	require.NoError(t, err)
	require.NoError(t, ours.NCTSalt.PutNCTSalt(ctx, fill(1, 16)))
	require.NoError(t, c.Close())
	pool, err := pgxpool.New(ctx, dsn)
	require.NoError(t, err)
	defer pool.Close()
	report, err := audit.Verify(ctx, pool, audit.Options{})
	require.NoError(t, err)
	require.Empty(t, report.Breaks)
	require.Empty(t, report.Outsiders)
	require.Equal(t, "imported imported imported imported taken released imported taken released", scalar[string](t, dsn,
		`SELECT string_agg(event, ' ' ORDER BY n) FROM whatsmeow.audit WHERE event <> 'flushed' AND event <> 'rewound'`))
	require.Equal(t, 3, scalar[int](t, dsn, `SELECT count(*)::int FROM whatsmeow.audit WHERE detail ~ '^from sqlstore, 27 keys, sending chains are abandoned$'`))
}

// Rows that are not what was written are found before anything counts: here somebody's trigger drops one, or changes it.
func TestAnImportWhoseRowsAreNotWhatWasWrittenIsUndone(t *testing.T) {
	t.Parallel()
	from := backends[0].open(t)
	theirs := container(from)
	fillDevice(t, theirs.NewDevice(), theirs.NewDevice())
	for name, does := range map[string]string{"dropped": `RETURN NULL`, "changed": `new.data := jsonb_set(new.data, '{secret}', '"AAAA"'); RETURN new`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			c := open(t, dsn)
			conn, err := pgx.Connect(ctx, dsn)
			require.NoError(t, err)
			defer func() { require.NoError(t, conn.Close(ctx)) }()
			_, err = conn.Exec(ctx, `CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+does+`; END $$;
				CREATE TRIGGER meddle BEFORE INSERT ON whatsmeow.auth_keys FOR EACH ROW WHEN (new.key_type = 'message_secret') EXECUTE FUNCTION meddle()`)
			require.NoError(t, err)
			_, err = migrate.FromSqlstore(ctx, c, from, migrate.Options{})
			require.ErrorContains(t, err, "rows are not what was written")
			instances, err := c.Instances(ctx)
			require.NoError(t, err)
			require.Empty(t, instances)
		})
	}
}

// Of several who import one device at once, while somebody waits to use it, each succeeds or finds that it is used; who uses it has all of it.
func TestP6ManyWhoImportADeviceAtOnceLeaveOne(t *testing.T) {
	t.Parallel()
	from := backends[0].open(t)
	theirs := container(from)
	d := theirs.NewDevice()
	peer := fillDevice(t, d, theirs.NewDevice())
	want := answersOf(t, d, []string{peer})
	dsn := pgtest.Open(t)
	containers := make([]*pgstore.Container, 5)
	for i := range containers {
		containers[i] = open(t, dsn)
	}
	user := containers[0]
	errs := make(chan error)
	for _, c := range containers[1:] {
		go func() {
			_, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{Exact: true})
			errs <- err
		}()
	}
	var used *store.Device
	for used == nil {
		var err error
		used, err = user.GetDevice(ctx, *d.ID)
		require.NoError(t, err)
	}
	for range containers[1:] {
		if err := <-errs; err != nil {
			require.ErrorIs(t, err, pgstore.ErrAlreadyTaken)
		}
	}
	require.Equal(t, want, answersOf(t, used, []string{peer}))
	require.NoError(t, user.Flush(ctx), "nobody took it away")
	require.Zero(t, user.Stats().Healed)
}
