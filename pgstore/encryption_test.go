package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/audit"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

// wrappingKeys makes wrapping keys; the first one wraps.
func wrappingKeys(t testing.TB, ids ...string) map[string]string {
	t.Helper()
	keys := make(map[string]string)
	for _, id := range ids {
		key, err := encryption.NewKey(id)
		require.NoError(t, err)
		keys[id] = key
	}
	return keys
}

func keysOf(t testing.TB, texts ...string) encryption.Keys {
	t.Helper()
	keys, err := encryption.Parse(strings.Join(texts, "\n"))
	require.NoError(t, err)
	return keys
}

// encrypting is a configuration with encryption.
func encrypting(t testing.TB, mode pgstore.EncryptionMode, texts ...string) func(*pgstore.Config) {
	t.Helper()
	with := encryption.New(keysOf(t, texts...))
	return func(cfg *pgstore.Config) { cfg.Encryption, cfg.EncryptionMode = with, mode }
}

// encrypted is encrypting with a key of its own.
func encrypted(t testing.TB) func(*pgstore.Config) {
	t.Helper()
	return encrypting(t, pgstore.Encrypted, wrappingKeys(t, "a")["a"])
}

// plainRows and sealedRows count what is stored.
func plainRows(t testing.TB, dsn string) int {
	t.Helper()
	return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE NOT data ? 'enc'`)
}

func sealedRows(t testing.TB, dsn string) int {
	t.Helper()
	return scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE data ? 'enc'`)
}

// everything puts something of every type that is not made by pairing and talking.
func everything(t testing.TB, d *store.Device) {
	t.Helper()
	chat := types.NewJID("4967890", types.DefaultUserServer)
	fill := func(b byte) [32]byte { return [32]byte{b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} }
	bytesOf := func(b byte) []byte { a := fill(b); return a[:] }
	for _, err := range []error{
		d.AppStateKeys.PutAppStateSyncKey(ctx, []byte{1, 2, 3}, store.AppStateSyncKey{Data: bytesOf(13), Fingerprint: []byte{1}, Timestamp: 1700000000000}),
		d.AppState.PutAppStateVersion(ctx, "regular", 3, [128]byte{1, 2, 3}),
		d.AppState.PutAppStateMutationMACs(ctx, "regular", 3, []store.AppStateMutationMAC{{IndexMAC: bytesOf(16), ValueMAC: bytesOf(17)}}),
		d.Contacts.PutContactName(ctx, chat, "first", "full name"),
		d.ChatSettings.PutPinned(ctx, chat, true),
		d.MsgSecrets.PutMessageSecret(ctx, chat, chat, "ID", bytesOf(18)),
		d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: chat, Token: bytesOf(19), Timestamp: time.Unix(1700000000, 0)}),
		d.NCTSalt.PutNCTSalt(ctx, bytesOf(20)),
		d.EventBuffer.PutBufferedEvent(ctx, fill(21), []byte("a plaintext that somebody wrote"), time.Unix(1700000000, 0)),
		d.EventBuffer.AddOutgoingEvent(ctx, chat, "A", "wa", []byte("a plaintext that we wrote")),
	} {
		require.NoError(t, err)
	}
	_, err := d.PreKeys.GetOrGenPreKeys(ctx, 3)
	require.NoError(t, err)
}

// requireEverything looks whether it is there.
func requireEverything(t testing.TB, d *store.Device) {
	t.Helper()
	chat := types.NewJID("4967890", types.DefaultUserServer)
	key, err := d.AppStateKeys.GetAppStateSyncKey(ctx, []byte{1, 2, 3})
	require.NoError(t, err)
	require.NotNil(t, key)
	version, _, err := d.AppState.GetAppStateVersion(ctx, "regular")
	require.NoError(t, err)
	require.EqualValues(t, 3, version)
	mac, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", []byte{16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 31: 0})
	require.NoError(t, err)
	require.NotNil(t, mac)
	contact, err := d.Contacts.GetContact(ctx, chat)
	require.NoError(t, err)
	require.Equal(t, "full name", contact.FullName)
	settings, err := d.ChatSettings.GetChatSettings(ctx, chat)
	require.NoError(t, err)
	require.True(t, settings.Pinned)
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, chat, chat, "ID")
	require.NoError(t, err)
	require.Len(t, secret, 32)
	token, err := d.PrivacyTokens.GetPrivacyToken(ctx, chat)
	require.NoError(t, err)
	require.NotNil(t, token)
	salt, err := d.NCTSalt.GetNCTSalt(ctx)
	require.NoError(t, err)
	require.Len(t, salt, 32)
	event, err := d.EventBuffer.GetBufferedEvent(ctx, [32]byte{21, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	require.NoError(t, err)
	require.NotNil(t, event)
	require.Equal(t, "a plaintext that somebody wrote", string(event.Plaintext))
	_, plaintext, err := d.EventBuffer.GetOutgoingEvent(ctx, chat, types.EmptyJID, "A")
	require.NoError(t, err)
	require.Equal(t, "a plaintext that we wrote", string(plaintext))
	pre, err := d.PreKeys.GetPreKey(ctx, 2)
	require.NoError(t, err)
	require.NotNil(t, pre)
}

// overheard is an encryption that notes what is encrypted.
type overheard struct {
	pgstore.Encryption
	mu      sync.Mutex
	secrets secrettest.Secrets
}

type overheardKey struct {
	pgstore.DataKey
	o *overheard
}

func (o *overheard) NewKey(ctx context.Context) (pgstore.DataKey, error) {
	key, err := o.Encryption.NewKey(ctx)
	return overheardKey{key, o}, err
}

func (o *overheard) Wrap(ctx context.Context, instance string, key pgstore.DataKey) (pgstore.WrappedKey, error) {
	return o.Encryption.Wrap(ctx, instance, key.(overheardKey).DataKey)
}

func (o *overheard) Unwrap(ctx context.Context, instance string, wrapped pgstore.WrappedKey) (pgstore.DataKey, error) {
	key, err := o.Encryption.Unwrap(ctx, instance, wrapped)
	return overheardKey{key, o}, err
}

func (k overheardKey) Seal(plain, associated []byte) (string, error) {
	kind := strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, string(associated)))
	k.o.mu.Lock()
	err := k.o.secrets.NoteRow(kind[0], string(plain))
	k.o.mu.Unlock()
	if err != nil {
		return "", err
	}
	return k.DataKey.Seal(plain, associated)
}

// dump is all that stands in the tables.
func dump(t testing.TB, dsn string) string {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'whatsmeow'`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Contains(t, tables, "whatsmeow.data_keys")
	var all strings.Builder
	for _, table := range tables {
		rows, err := conn.Query(ctx, `SELECT x::text FROM `+table+` x`)
		require.NoError(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		all.WriteString(strings.Join(lines, "\n"))
	}
	return all.String()
}

func TestP12NoSecretOfADeviceStandsInAnEncryptedDatabase(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Open(t)
	heard := &overheard{Encryption: encryption.New(keysOf(t, wrappingKeys(t, "a")["a"]))}
	live := func(edit func(*pgstore.Config)) {
		c := reopen(t, dsn, edit)
		d := pair(t, c.NewDevice())
		a := signaltest.NewPeer(d)
		b := signaltest.NewPeer(pair(t, c.NewDevice()))
		signaltest.Meet(t, a, b)
		signaltest.Say(t, a, b, "hello")
		signaltest.Say(t, b, a, "answer")
		group := types.NewJID("123", types.GroupServer)
		distribution, err := a.JoinGroup(ctx, group)
		require.NoError(t, err)
		require.NoError(t, b.Welcome(ctx, group, a.Address(), distribution))
		everything(t, d)
		require.NoError(t, c.Close())
	}
	live(func(cfg *pgstore.Config) {
		cfg.Encryption, cfg.EncryptionMode, cfg.Audit = heard, pgstore.Encrypted, pgstore.AuditAll
	})
	require.Zero(t, plainRows(t, dsn))
	require.Greater(t, sealedRows(t, dsn), 20)
	heard.secrets.RequireNoneIn(t, "the tables", dump(t, dsn))

	live(func(*pgstore.Config) {}) // the judge fires
	heard.secrets.Note(t, dsn)
	require.NotEmpty(t, heard.secrets.FoundIn(dump(t, dsn)))
}

// Nobody who has no key, or another one, finds a database without devices, or takes an instance from who has it.
func TestP8AWrongOrMissingKeyIsAnErrorAndNeverNoDevice(t *testing.T) {
	t.Parallel()
	keys := wrappingKeys(t, "a", "b")
	right := encrypting(t, pgstore.Encrypting, keys["a"])
	c, dsn := open(t, right)
	d := pair(t, c.NewDevice())
	everything(t, d)
	require.NoError(t, c.Flush(ctx))
	epoch := scalar[int](t, dsn, `SELECT epoch FROM whatsmeow.instances`)
	id, jid := d.ID.String(), *d.ID

	refused := func(t testing.TB, c *pgstore.Container, whole bool) {
		t.Helper()
		for name, call := range map[string]func() (any, error){
			"GetAllDevices":  func() (any, error) { all, err := c.GetAllDevices(ctx); return all, err },
			"GetDevice":      func() (any, error) { return c.GetDevice(ctx, jid) },
			"GetFirstDevice": func() (any, error) { return c.GetFirstDevice(ctx) },
			"Instance":       func() (any, error) { return c.Instance(ctx, id) },
		} {
			got, err := call()
			require.ErrorIs(t, err, pgstore.ErrDataKey, name)
			require.ErrorIs(t, err, context.Canceled, name)
			require.Empty(t, got, name)
		}
		if whole {
			require.Equal(t, epoch, scalar[int](t, dsn, `SELECT epoch FROM whatsmeow.instances`), "nobody has taken it")
		}
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
	}
	for name, text := range map[string]string{"another key": keys["b"], "another key of that name": "a" + strings.TrimPrefix(keys["b"], "b")} {
		cfg := pgstore.Config{DSN: dsn}
		encrypting(t, pgstore.Encrypting, text)(&cfg)
		_, err := pgstore.NewWithConfig(ctx, cfg)
		require.ErrorIs(t, err, pgstore.ErrDataKey, name)
	}
	refused(t, reopen(t, dsn), true)
	require.NoError(t, d.Save(ctx), "who has it goes on")
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, c.Close())

	// A key that comes and goes: the first process that looks has it, and the database has lost it.
	require.NoError(t, execSQL(t, dsn, `CREATE TABLE public.lost AS TABLE whatsmeow.data_keys`, `DELETE FROM whatsmeow.data_keys`))
	refused(t, reopen(t, dsn, right), false)
	refused(t, reopen(t, dsn), false)
	require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.data_keys`, `INSERT INTO whatsmeow.data_keys SELECT * FROM public.lost`))
	c = reopen(t, dsn, right)
	all, err := c.GetAllDevices(ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, d.NoiseKey, all[0].NoiseKey)
	requireEverything(t, mustDevice(t, c, jid))
}

// A key service that is away is waited for.
func TestP8AKeyServiceThatIsAwayIsNotNoDevice(t *testing.T) {
	t.Parallel()
	service := &away{Keys: keysOf(t, wrappingKeys(t, "a")["a"])}
	with := func(cfg *pgstore.Config) { cfg.Encryption = encryption.New(service) }
	c, dsn := open(t, with)
	for range 2 { // New asks for the key of one of them
		pair(t, c.NewDevice())
	}
	require.NoError(t, c.Close())
	c = reopen(t, dsn, with)
	service.away.Store(true)
	cfg := pgstore.Config{DSN: dsn}
	with(&cfg)
	_, err := pgstore.NewWithConfig(within(t, 300*time.Millisecond), cfg)
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	_, err = c.GetAllDevices(within(t, 300*time.Millisecond))
	require.ErrorIs(t, err, pgstore.ErrUnavailable)
	type answer struct {
		devices []*store.Device
		err     error
	}
	answered := make(chan answer, 1)
	go func() {
		all, err := c.GetAllDevices(ctx)
		answered <- answer{all, err}
	}()
	service.away.Store(false)
	found := <-answered
	require.NoError(t, found.err)
	require.Len(t, found.devices, 2)
}

// away is a key service that may be away.
type away struct {
	encryption.Keys
	away atomic.Bool
}

func (a *away) Unwrap(ctx context.Context, id string, wrapped, associated []byte) ([]byte, error) {
	if a.away.Load() {
		return nil, errors.New("key service is away")
	}
	return a.Keys.Unwrap(ctx, id, wrapped, associated)
}

// exchanging is a device one of whose rows, the identity of 1:0, is exchanged while nobody has it. The tables older and foreign have an older row of that, and
// the row of another instance.
type exchanging struct {
	testing.TB
	dsn  string
	id   string
	jid  types.JID
	with func(*pgstore.Config)
}

const exchangedRow = `instance_id = $1 AND key_type = 'identity' AND key_id = '1:0'`

func newExchanging(t testing.TB) *exchanging {
	x := &exchanging{TB: t, with: encrypting(t, pgstore.Encrypting, wrappingKeys(t, "a")["a"])}
	c, dsn := open(t, x.with, func(cfg *pgstore.Config) { cfg.Audit = pgstore.AuditAll })
	x.dsn = dsn
	require.NoError(t, pair(t, c.NewDevice()).Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	d := pair(t, c.NewDevice())
	x.id, x.jid = d.ID.String(), *d.ID
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, dsn, `CREATE TABLE public.older AS SELECT * FROM whatsmeow.auth_keys WHERE `+strings.ReplaceAll(exchangedRow, "$1", "'"+x.id+"'"),
		`CREATE TABLE public.other AS SELECT * FROM whatsmeow.auth_keys WHERE key_id = '1:0' AND instance_id <> '`+x.id+`'`))
	require.NoError(t, d.Identities.PutIdentity(ctx, "2:0", [32]byte{2}))
	require.NoError(t, d.NCTSalt.PutNCTSalt(ctx, make([]byte, 32)))
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{3}))
	require.NoError(t, c.Close())
	return x
}

// exchange sets what the row is.
func (x *exchanging) exchange(set string) {
	x.Helper()
	require.NoError(x, execSQL(x, x.dsn, strings.ReplaceAll(`UPDATE whatsmeow.auth_keys SET `+set+` WHERE `+exchangedRow, "$1", "'"+x.id+"'")))
}

// found opens the device, and says which identity of 1:0 it trusts: 0 for none.
func (x *exchanging) found() byte {
	x.Helper()
	d := mustDevice(x, reopen(x, x.dsn, x.with), x.jid)
	salt, err := d.NCTSalt.GetNCTSalt(ctx)
	require.NoError(x, err)
	require.Len(x, salt, 32, "the others are there")
	for n := range byte(4) {
		if is, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{n, 200}); err == nil && is {
			return 0 // any is: there is none
		}
		is, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{n})
		require.NoError(x, err)
		if is {
			return n
		}
	}
	x.Fatal("another identity")
	return 0
}

// Rows that were exchanged are refused, each for itself, and set aside.
func TestExchangedRowsAreRefused(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"another key's":                    `(data, seq) = (SELECT data, seq FROM whatsmeow.auth_keys WHERE instance_id = $1 AND key_type = 'identity' AND key_id = '2:0')`,
		"another type's":                   `(data, seq) = (SELECT data, seq FROM whatsmeow.auth_keys WHERE instance_id = $1 AND key_type = 'nct_salt')`,
		"another instance's":               `(data, seq) = (SELECT data, seq FROM public.other)`,
		"truncated":                        `data = jsonb_build_object('enc', left(data->>'enc', -4))`,
		"only the id of its data key":      `data = jsonb_build_object('enc', left(data->>'enc', 8))`,
		"changed":                          `data = jsonb_build_object('enc', overlay(data->>'enc' PLACING CASE substr(data->>'enc', 60, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM 60))`,
		"no text":                          `data = '{"enc": 7}'`,
		"something beside it":              `data = data || '{"value": "AAAA"}'`,
		"an older one":                     `data = (SELECT data FROM public.older)`,
		"an older one with another seq":    `data = (SELECT data FROM public.older), seq = seq - 1`,
		"as it was, but for an older seq":  `seq = seq - 1`,
		"as it was, but for a seq to come": `seq = seq + 100`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExchanging(t)
			require.EqualValues(t, 3, x.found())
			x.exchange(set)
			require.Zero(t, x.found())
			require.Equal(t, 1, scalar[int](t, x.dsn, `SELECT count(*) FROM whatsmeow.set_aside WHERE key_type = 'identity' AND key_id = '1:0'`))
		})
	}
}

// A data key stays while a row that was set aside is under it, and goes with the next rotation after somebody has deleted that.
func TestADataKeyStaysForWhatWasSetAside(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{1}))
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET seq = seq - 1 WHERE key_type = 'identity'`))
	c = reopen(t, dsn, with)
	d = mustDevice(t, c, *d.ID)
	_, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{1})
	require.NoError(t, err)
	under := `SELECT count(*) FROM whatsmeow.set_aside s JOIN whatsmeow.data_keys k ON starts_with(s.data->>'enc', k.id)`
	eventually(t, dsn, `(`+under+`) = 1`)
	id := pgstore.InstanceID(d)
	require.NoError(t, c.RotateDataKey(ctx, id))
	require.Equal(t, 1, scalar[int](t, dsn, under))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.data_keys`))
	require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.set_aside`))
	require.NoError(t, c.RotateDataKey(ctx, id))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.data_keys`))
}

// Two types whose values look alike may have keys with one id.
func TestARowOfAnotherTypeWithTheSameIDIsRefused(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.NCTSalt.PutNCTSalt(ctx, make([]byte, 32)))
	require.NoError(t, d.Identities.PutIdentity(ctx, "salt", [32]byte{1}))
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET (data, seq) = (SELECT data, seq FROM whatsmeow.auth_keys WHERE key_type = 'nct_salt') WHERE key_type = 'identity'`))
	mustDevice(t, reopen(t, dsn, with), *d.ID)
	require.Equal(t, "identity", scalar[string](t, dsn, `SELECT key_type FROM whatsmeow.set_aside`))
}

// What is bound to a row is its own seq, so an older row that comes back with that is read. The audit trail tells: of who did it, or, if he has kept the trigger
// from that, of a row that is not what was written.
func TestAnOlderRowThatIsPutBackWithItsSeqIsNoticedByTheAuditTrailAlone(t *testing.T) {
	t.Parallel()
	for name, told := range map[string]bool{"as anybody": true, "as who owns the table": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExchanging(t)
			conn, err := pgx.Connect(ctx, x.dsn)
			require.NoError(t, err)
			defer func() { require.NoError(t, conn.Close(ctx)) }()
			verify := func() *audit.Report {
				report, err := audit.Verify(ctx, conn, audit.Options{})
				require.NoError(t, err)
				return report
			}
			before := verify()
			require.Empty(t, before.Breaks)
			require.Empty(t, before.Outsiders)
			if !told {
				require.NoError(t, execSQL(t, x.dsn, `ALTER TABLE whatsmeow.auth_keys DISABLE TRIGGER audit_outsider`))
			}
			x.exchange(`(data, seq) = (SELECT data, seq FROM public.older)`)
			require.EqualValues(t, 1, x.found())
			report := verify()
			if told {
				require.Len(t, report.Outsiders, 1)
				require.Equal(t, "1:0", report.Outsiders[0].KeyID)
			} else {
				require.Len(t, report.Breaks, 1)
			}
		})
	}
}

// An owner that lives does not believe a row that was put back: what it has in memory counts, and overwrites it.
func TestAnOlderRowThatIsPutBackUnderItsOwnerIsOverwritten(t *testing.T) {
	t.Parallel()
	x := newExchanging(t)
	c := reopen(t, x.dsn, x.with)
	d := mustDevice(t, c, x.jid)
	x.exchange(`(data, seq) = (SELECT data, seq FROM public.older)`)
	is, err := d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{3})
	require.NoError(t, err)
	require.True(t, is)
	require.NoError(t, d.Identities.PutIdentity(ctx, "1:0", [32]byte{4}))
	require.NoError(t, c.Close())
	x.exchange(`updated_at = now()`)
	d = mustDevice(t, reopen(t, x.dsn, x.with), x.jid)
	is, err = d.Identities.IsTrustedIdentity(ctx, "1:0", [32]byte{4})
	require.NoError(t, err)
	require.True(t, is)
}

// Whoever puts an instance back and leaves its rows as they are is noticed, and nothing is set aside for it.
func TestAnInstanceThatIsPutBackWithoutItsRowsIsRefused(t *testing.T) {
	t.Parallel()
	x := newExchanging(t)
	require.NoError(t, execSQL(t, x.dsn, `UPDATE whatsmeow.instances SET seq = 1`))
	_, err := reopen(t, x.dsn, x.with).GetDevice(ctx, x.jid)
	require.ErrorIs(t, err, pgstore.ErrCorrupt)
	require.Zero(t, scalar[int](t, x.dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
}

// Credentials of another instance are those of nobody.
func TestP8ExchangedCredentialsAreAnError(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]string{
		"another instance's": `data = (SELECT data FROM whatsmeow.auth_keys WHERE key_id = 'device' AND instance_id <> $1)`,
		"truncated":          `data = jsonb_build_object('enc', left(data->>'enc', -4))`,
		"another seq":        `seq = seq + 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newExchanging(t)
			require.NoError(t, execSQL(t, x.dsn, strings.ReplaceAll(`UPDATE whatsmeow.auth_keys SET `+set+` WHERE key_type = 'creds' AND instance_id = $1`, "$1", "'"+x.id+"'")))
			d, err := reopen(t, x.dsn, x.with).GetDevice(ctx, x.jid)
			require.Nil(t, d)
			require.ErrorIs(t, err, context.Canceled)
			require.True(t, errors.Is(err, pgstore.ErrCorrupt) || errors.Is(err, pgstore.ErrDataKey), err)
			require.Zero(t, scalar[int](t, x.dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
		})
	}
}

// A data key that was damaged is the matter of its instance: the others open. Only if none of those that are tried opens is it the wrapping key.
func TestP10ADamagedDataKeyKeepsNobodyFromTheOtherInstances(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	var devices []*store.Device
	for range 5 {
		devices = append(devices, pair(t, c.NewDevice()))
	}
	require.NoError(t, c.Close())
	damage := func(devices ...*store.Device) {
		ids := ""
		for _, d := range devices {
			ids += pgstore.InstanceID(d) + " "
		}
		// All are written, so that they stay in their order.
		require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.data_keys
			SET wrapped = CASE WHEN strpos('`+ids+`', instance_id || ' ') > 0 THEN set_byte(wrapped, 40, get_byte(wrapped, 40) # 1) ELSE wrapped END`))
	}
	damage(devices[0], devices[3], devices[4]) // the newest ones are tried first
	c = reopen(t, dsn, with)
	for i, d := range devices {
		_, err := c.GetDevice(ctx, *d.ID)
		if i == 1 || i == 2 {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, pgstore.ErrDataKey)
		}
	}
	require.NoError(t, c.Close())

	damage(devices[2])
	cfg := pgstore.Config{DSN: dsn}
	with(&cfg)
	_, err := pgstore.NewWithConfig(ctx, cfg)
	require.ErrorIs(t, err, pgstore.ErrDataKey)
}

// A data key of another instance is refused, whatever rows there are.
func TestADataKeyOfAnotherInstanceIsRefused(t *testing.T) {
	t.Parallel()
	x := newExchanging(t)
	require.NoError(t, execSQL(t, x.dsn, `UPDATE whatsmeow.data_keys SET (id, wrapped) = (SELECT id, wrapped FROM whatsmeow.data_keys WHERE instance_id <> '`+x.id+`') WHERE instance_id = '`+x.id+`'`))
	cfg := pgstore.Config{DSN: x.dsn}
	x.with(&cfg)
	c, err := pgstore.NewWithConfig(ctx, cfg)
	if err == nil { // New has asked for the other one
		defer func() { require.NoError(t, c.Close()) }()
		_, err = c.GetDevice(ctx, x.jid)
	}
	require.ErrorIs(t, err, pgstore.ErrDataKey)
}

// traffic lets a device write and read until stop is called, which says what must be there.
func traffic(t testing.TB, d *store.Device) (stop func() map[string]byte) {
	var over atomic.Bool
	var wg sync.WaitGroup
	last := make([]map[string]byte, 3)
	for w := range last {
		last[w] = make(map[string]byte)
		wg.Go(func() {
			for i := 0; !over.Load(); i++ {
				peer := fmt.Sprintf("%d%d:0", w, i%50)
				if err := d.Identities.PutIdentity(ctx, peer, [32]byte{byte(i)}); err != nil {
					t.Error(err)
					return
				}
				last[w][peer] = byte(i)
				if is, err := d.Identities.IsTrustedIdentity(ctx, peer, [32]byte{byte(i)}); err != nil || !is {
					t.Error("not what was put", err)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	return func() map[string]byte {
		over.Store(true)
		wg.Wait()
		all := make(map[string]byte)
		for _, l := range last {
			maps.Copy(all, l)
		}
		return all
	}
}

func requireTrusted(t testing.TB, d *store.Device, all map[string]byte) {
	t.Helper()
	require.NotEmpty(t, all)
	for peer, n := range all {
		is, err := d.Identities.IsTrustedIdentity(ctx, peer, [32]byte{n})
		require.NoError(t, err)
		require.True(t, is, peer)
	}
}

func eventually(t testing.TB, dsn, condition string) {
	t.Helper()
	require.Eventually(t, func() bool { return scalar[bool](t, dsn, `SELECT `+condition) }, time.Minute, 20*time.Millisecond, condition)
}

const (
	allSealed = `NOT EXISTS (SELECT FROM whatsmeow.auth_keys WHERE NOT data ? 'enc') AND (SELECT bool_and(complete) FROM whatsmeow.data_keys)`
	allPlain  = `NOT EXISTS (SELECT FROM whatsmeow.auth_keys WHERE data ? 'enc') AND NOT EXISTS (SELECT FROM whatsmeow.data_keys)`
)

// Switching on and off, with clients that run, processes that end in the middle, and what memory does not hold.
func TestEncryptionIsSwitchedOnAndOffUnderTraffic(t *testing.T) {
	t.Parallel()
	for name, budget := range map[string]int64{"resident": 0, "evicting": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keys := wrappingKeys(t, "a")
			small := func(cfg *pgstore.Config) { cfg.MemoryBudget = budget }
			c, dsn := open(t, small)
			d := pair(t, c.NewDevice())
			everything(t, d)
			for i := range 1000 {
				trust(t, fmt.Sprintf("old %d:0", i), d)
			}
			require.NoError(t, c.Close())
			jid := *d.ID

			for range 2 { // the first one ends before it is done, or at once after that
				c = reopen(t, dsn, small, encrypting(t, pgstore.Encrypting, keys["a"]))
				mustDevice(t, c, jid)
				require.NoError(t, c.Close())
			}
			c = reopen(t, dsn, small, encrypting(t, pgstore.Encrypting, keys["a"]))
			d = mustDevice(t, c, jid)
			stop := traffic(t, d)
			eventually(t, dsn, allSealed)
			all := stop()
			requireTrusted(t, d, all)
			require.NoError(t, c.Close())
			require.Zero(t, plainRows(t, dsn))
			require.Greater(t, scalar[int](t, dsn, `SELECT sum(encrypted) FROM whatsmeow.instance_sizes`), 1000)
			require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.encryption WHERE complete`))

			c = reopen(t, dsn, small, encrypting(t, pgstore.Encrypted, keys["a"]))
			d = mustDevice(t, c, jid)
			requireEverything(t, d)
			requireTrusted(t, d, all)
			require.NoError(t, c.Close())

			c = reopen(t, dsn, small, encrypting(t, pgstore.Decrypting, keys["a"]))
			d = mustDevice(t, c, jid)
			stop = traffic(t, d)
			eventually(t, dsn, allPlain)
			maps.Copy(all, stop())
			require.NoError(t, c.Close())
			require.Zero(t, sealedRows(t, dsn))

			d = mustDevice(t, reopen(t, dsn, small), jid)
			requireEverything(t, d)
			requireTrusted(t, d, all)
			require.Equal(t, 1000, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_id LIKE 'old %'`))
			require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
			require.Positive(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.audit WHERE event = 'rotated' AND detail LIKE 'all values are plain%'`))
		})
	}
}

// A plain row is refused where all are encrypted: nobody can put one in the place of an encrypted one.
func TestAPlainRowIsRefusedWhereAllAreEncrypted(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = '{"value": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}' WHERE key_type = 'identity'`))
	_, err := reopen(t, dsn, with).GetDevice(ctx, *d.ID)
	require.ErrorIs(t, err, pgstore.ErrNotEncrypted)
	require.Equal(t, 1, plainRows(t, dsn), "it stays where it is")
}

// Both kinds of keys are rotated while clients run; afterwards the old ones are of no use and not needed.
func TestKeysAreRotatedUnderTraffic(t *testing.T) {
	t.Parallel()
	keys := wrappingKeys(t, "old", "new")
	dsn := pgtest.Open(t)
	c := reopen(t, dsn, encrypting(t, pgstore.Encrypted, keys["new"], keys["old"]))
	before := reopen(t, dsn, encrypting(t, pgstore.Encrypted, keys["old"], keys["new"]))
	elsewhere := pair(t, before.NewDevice())
	everything(t, elsewhere)
	d := pair(t, before.NewDevice())
	everything(t, d)
	require.NoError(t, before.Release(ctx, d.ID.String()))
	d = mustDevice(t, c, *d.ID)
	stop, stopElsewhere := traffic(t, d), traffic(t, elsewhere)

	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.encryption WHERE wrapping_key = 'old'`))
	n, err := c.Rewrap(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = c.Rewrap(ctx)
	require.NoError(t, err)
	require.Zero(t, n)
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.encryption WHERE wrapping_key = 'new'`))
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.audit WHERE event = 'rotated' AND detail LIKE '%: wrapping key old to new'`))

	id := d.ID.String()
	dataKey := func() string {
		return scalar[string](t, dsn, `SELECT id FROM whatsmeow.data_keys WHERE instance_id = $1`, id)
	}
	first := dataKey()
	var wg sync.WaitGroup
	for range 3 { // one after the other
		wg.Go(func() {
			if err := c.RotateDataKey(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.NotEqual(t, first, dataKey(), "there is one, and another one")
	all, allElsewhere := stop(), stopElsewhere()
	require.NoError(t, c.Close())
	require.NoError(t, before.Close())
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE instance_id = $1 AND NOT starts_with(data->>'enc', $2)`, id, dataKey()))
	require.Equal(t, 3, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.audit WHERE event = 'rotated' AND detail LIKE 'all values are under data key %, deleted: %'`))

	c = reopen(t, dsn, encrypting(t, pgstore.Encrypted, keys["new"]))
	d, elsewhere = mustDevice(t, c, *d.ID), mustDevice(t, c, *elsewhere.ID)
	requireEverything(t, d)
	requireEverything(t, elsewhere)
	requireTrusted(t, d, all)
	requireTrusted(t, elsewhere, allElsewhere)
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
	require.ErrorIs(t, c.RotateDataKey(ctx, "nobody"), pgstore.ErrDeviceDeleted)
	require.ErrorIs(t, reopen(t, pgtest.Open(t)).RotateDataKey(ctx, id), pgstore.ErrInvalidInput)
}

// A process that ends in the middle of a rotation leaves rows under two keys, and who takes the instance goes on.
func TestARotationThatWasInterruptedGoesOn(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	for i := range 1000 {
		trust(t, fmt.Sprintf("%d:0", i), d)
	}
	require.NoError(t, c.Flush(ctx))
	over, cancel := context.WithCancel(ctx)
	require.NoError(t, execSQL(t, dsn, // the second piece does not come through
		`CREATE FUNCTION public.stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF (SELECT count(*) FROM whatsmeow.auth_keys WHERE NOT starts_with(data->>'enc', (SELECT id FROM whatsmeow.data_keys ORDER BY created_at LIMIT 1))) > 100 THEN RAISE 'not now' USING ERRCODE = '57014'; END IF;
			RETURN new;
		END $$`,
		`CREATE TRIGGER stop BEFORE UPDATE ON whatsmeow.auth_keys FOR EACH STATEMENT EXECUTE FUNCTION public.stop()`))
	rotated := make(chan error, 1)
	go func() { rotated <- c.RotateDataKey(over, d.ID.String()) }()
	eventually(t, dsn, `(SELECT count(DISTINCT left(data->>'enc', 8)) = 2 FROM whatsmeow.auth_keys)`)
	cancel()
	require.Error(t, <-rotated)
	require.NoError(t, execSQL(t, dsn, `DROP TRIGGER stop ON whatsmeow.auth_keys`))
	require.NoError(t, c.Close())
	require.Equal(t, 2, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.data_keys`))

	d = mustDevice(t, reopen(t, dsn, with), *d.ID)
	eventually(t, dsn, `(SELECT count(DISTINCT left(data->>'enc', 8)) = 1 FROM whatsmeow.auth_keys) AND (SELECT count(*) = 1 FROM whatsmeow.data_keys)`)
	for i := range 1000 {
		is, err := d.Identities.IsTrustedIdentity(ctx, fmt.Sprintf("%d:0", i), [32]byte{1})
		require.NoError(t, err)
		require.True(t, is)
	}
}

// No row is written whose data key the database has lost: its owner stores the key again before.
func TestP3NoRowIsWithoutItsDataKeyWhenADatabaseGoesBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ promoted, rotated bool }{
		"promoted, to before the key": {promoted: true}, "put back, to before the key": {},
		"promoted, to before its rotation": {promoted: true, rotated: true}, "put back, to before its rotation": {rotated: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with := encrypted(t)
			m := newMoving(t, with)
			everything(t, m.d)
			m.send("one")
			m.remember()
			restore := `SELECT 1`
			if c.rotated { // then the key that was, and nothing else
				require.NoError(t, execSQL(t, m.dsn, `CREATE TABLE saved.data_keys AS TABLE whatsmeow.data_keys`))
				restore = `INSERT INTO whatsmeow.data_keys SELECT * FROM saved.data_keys`
				require.NoError(t, m.c.RotateDataKey(ctx, m.d.ID.String()))
				require.NoError(t, m.c.Close())
				m.open(with) // who has never heard of the old one
			}
			for i := range 10 {
				m.send(fmt.Sprint("lost ", i))
			}
			require.NoError(t, m.c.Flush(ctx))
			m.goBack(c.promoted)
			require.NoError(t, execSQL(t, m.dsn, restore))
			trust(t, "after:0", m.d)
			m.send("after")
			require.NoError(t, m.c.Flush(ctx))
			require.Equal(t, int64(1), m.c.Stats().Replayed)
			if c.rotated {
				requireWhatIsOnDemand(t, m.d)
			}
			require.NoError(t, m.c.Close())
			m.open(with)
			is, err := m.d.Identities.IsTrustedIdentity(ctx, "after:0", [32]byte{1})
			require.NoError(t, err)
			require.True(t, is)
			m.send("again")
			if c.rotated {
				requireWhatIsOnDemand(t, m.d)
				require.Zero(t, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
			}
			require.Zero(t, scalar[int](t, m.dsn, `SELECT count(*) FROM whatsmeow.auth_keys k WHERE NOT EXISTS (
				SELECT FROM whatsmeow.data_keys d WHERE d.instance_id = k.instance_id AND starts_with(k.data->>'enc', d.id)) AND NOT EXISTS (
				SELECT FROM saved.auth_keys s WHERE s.instance_id = k.instance_id AND s.key_type = k.key_type AND s.key_id = k.key_id AND s.data = k.data)`), "but for those that came back")
		})
	}
}

// requireWhatIsOnDemand reads what no memory holds.
func requireWhatIsOnDemand(t testing.TB, d *store.Device) {
	t.Helper()
	chat := types.NewJID("4967890", types.DefaultUserServer)
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, chat, chat, "ID")
	require.NoError(t, err)
	require.Len(t, secret, 32)
}

// A database that went back to before a rotation, with nothing else lost, takes nothing under the key that it does not have.
func TestP3ADataKeyThatIsLostAloneIsStoredAgain(t *testing.T) {
	t.Parallel()
	with := encrypted(t)
	c, dsn := open(t, with)
	d := pair(t, c.NewDevice())
	trust(t, "1:0", d)
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.data_keys`))
	trust(t, "2:0", d)
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.data_keys`))
	require.NoError(t, c.Close())
	d = mustDevice(t, reopen(t, dsn, with), *d.ID)
	require.NotNil(t, d)
}

// The first secret of a message stays, also when its row cannot be read in SQL.
func TestTheFirstSecretStaysWhenItIsEncrypted(t *testing.T) {
	t.Parallel()
	c, dsn := open(t, encrypted(t), func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 })
	d := pair(t, c.NewDevice())
	for _, secret := range []string{"first", "second"} {
		require.NoError(t, d.MsgSecrets.PutMessageSecret(ctx, spoiledChat, spoiledChat, "A", []byte(secret)))
		require.NoError(t, c.Flush(ctx))
	}
	require.NotEmpty(t, dsn)
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, spoiledChat, spoiledChat, "A")
	require.NoError(t, err)
	require.Equal(t, "first", string(secret))
}

// aged is an encryption that makes all events look old when they are read.
type aged struct{ pgstore.Encryption }

type agedKey struct{ pgstore.DataKey }

func (a aged) NewKey(ctx context.Context) (pgstore.DataKey, error) {
	key, err := a.Encryption.NewKey(ctx)
	return agedKey{key}, err
}

func (a aged) Wrap(ctx context.Context, instance string, key pgstore.DataKey) (pgstore.WrappedKey, error) {
	return a.Encryption.Wrap(ctx, instance, key.(agedKey).DataKey)
}

func (k agedKey) Open(sealed string, associated []byte) ([]byte, error) {
	plain, err := k.DataKey.Open(sealed, associated)
	return regexp.MustCompile(`"insert_ms":\d+`).ReplaceAll(plain, []byte(`"insert_ms":1`)), err
}

// Old events are found by the time of their row, and deleted by what is in them.
func TestOldEncryptedEventsAreDeleted(t *testing.T) {
	t.Parallel()
	keys := keysOf(t, wrappingKeys(t, "a")["a"])
	c, dsn := open(t, func(cfg *pgstore.Config) { cfg.Encryption, cfg.MemoryBudget = aged{encryption.New(keys)}, 1 })
	d := pair(t, c.NewDevice())
	for i := range byte(3) {
		require.NoError(t, d.EventBuffer.PutBufferedEvent(ctx, [32]byte{i}, nil, time.Now()))
	}
	require.NoError(t, c.Flush(ctx))
	require.NoError(t, d.EventBuffer.DeleteOldBufferedHashes(ctx))
	require.NoError(t, c.Flush(ctx))
	events := `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`
	require.Equal(t, 3, scalar[int](t, dsn, events), "their rows are young")
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET updated_at = now() - interval '15 days' WHERE key_id = (SELECT min(key_id) FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event')`))
	require.NoError(t, d.EventBuffer.DeleteOldBufferedHashes(ctx))
	require.NoError(t, c.Flush(ctx))
	require.Equal(t, 2, scalar[int](t, dsn, events))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.set_aside`))
}

// An older library would take encrypted rows for spoilt ones: it may use the schema until there are some.
func TestASchemaWithDataKeysIsTooNewForOlderLibraries(t *testing.T) {
	t.Parallel()
	usableFrom := `SELECT usable_from FROM whatsmeow.schema_info ORDER BY version DESC LIMIT 1`
	c, dsn := open(t)
	pair(t, c.NewDevice())
	require.Equal(t, 1, scalar[int](t, dsn, usableFrom))
	pair(t, reopen(t, dsn, encrypting(t, pgstore.Encrypting, wrappingKeys(t, "a")["a"])).NewDevice())
	require.Equal(t, 7, scalar[int](t, dsn, usableFrom))

	// Nor does a later migration let them in again. (What those that there are have made is undone.)
	require.NoError(t, execSQL(t, dsn, `DELETE FROM whatsmeow.schema_info WHERE version > 7`, `DELETE FROM whatsmeow.goose_version WHERE version_id > 7`,
		`ALTER TABLE whatsmeow.processes DROP COLUMN max_instances`))
	reopen(t, dsn, func(*pgstore.Config) {})
	require.Equal(t, 7, scalar[int](t, dsn, usableFrom))
	require.Greater(t, scalar[int](t, dsn, `SELECT max(version) FROM whatsmeow.schema_info`), 7)
}

func TestInvalidEncryptionConfig(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgstore.EncryptionMode{pgstore.Encrypted, pgstore.Decrypting, 7, -1} {
		_, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: "postgres://nowhere", EncryptionMode: mode})
		require.ErrorIs(t, err, pgstore.ErrInvalidInput)
		require.ErrorContains(t, err, "EncryptionMode")
	}
}

// A record that cannot be read is found at its first use, and that may be when it is to be encrypted.
func TestARecordThatCannotBeReadIsSetAsideWhenItIsToBeEncrypted(t *testing.T) {
	t.Parallel()
	c, dsn := open(t)
	d := pair(t, c.NewDevice())
	require.NoError(t, d.Sessions.PutSession(ctx, "1:0", sessionAt(1)))
	require.NoError(t, d.Sessions.PutSession(ctx, "2:0", sessionAt(1)))
	require.NoError(t, c.Close())
	require.NoError(t, execSQL(t, dsn, `UPDATE whatsmeow.auth_keys SET data = '{"record": "{}"}' WHERE key_type = 'session' AND key_id = '1:0'`))
	with := encrypting(t, pgstore.Encrypting, wrappingKeys(t, "a")["a"])
	d = mustDevice(t, reopen(t, dsn, with), *d.ID)
	eventually(t, dsn, allSealed)
	require.JSONEq(t, `{"record": "{}"}`, scalar[string](t, dsn, `SELECT data::text FROM whatsmeow.set_aside WHERE key_type = 'session' AND key_id = '1:0'`))
	for address, there := range map[string]bool{"1:0": false, "2:0": true} {
		has, err := d.Sessions.HasSession(ctx, address)
		require.NoError(t, err)
		require.Equal(t, there, has)
	}
}
