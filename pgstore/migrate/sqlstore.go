package migrate

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"

	"github.com/google/uuid"
	"go.mau.fi/whatsmeow/store/sqlstore"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// Sqlstore is a database of whatsmeow's sqlstore. Whoever opened it closes it. This package imports no driver.
type Sqlstore struct {
	DB      *sql.DB
	Dialect string // as for sqlstore.NewWithDB: postgres, pgx, sqlite3, …
}

// Options say how devices are imported.
type Options struct {
	// Devices are the JIDs of those that are imported. Defaults to all.
	Devices []types.JID

	// Instance names a device's instance. Defaults to its JID. It is called once per device.
	Instance func(device types.JID) string

	// Exact, Replace: see [pgstore.ImportConfig].
	Exact, Replace bool

	// SkipUpgrade leaves the source as it is. Without it, a schema of an older whatsmeow is brought up to date first, by whatsmeow's own code;
	// with it, that is [ErrSourceSchema].
	SkipUpgrade bool

	// Progress, if set, is called now and then while a device is read. It must not block.
	Progress func(Progress)
}

// Progress is how far the import or export of a device has got.
type Progress struct {
	Device      types.JID
	Done, Total int // keys; Total is 0 if it is not known
}

// Errors to be tested with [errors.Is].
var (
	// ErrSourceSchema says that the source is not the database of a sqlstore that this version knows.
	ErrSourceSchema = errors.New("migrate: not a sqlstore database of a version that can be read")
	// ErrNoDevice says that the source has no such device.
	ErrNoDevice = errors.New("migrate: no such device")
	// ErrSourceChanged says that the source was written while it was read: something uses it.
	ErrSourceChanged = errors.New("migrate: the source changed while it was read")
)

// sqlstoreVersion is the newest schema of sqlstore that is read and written here. A test compares it with whatsmeow's.
const sqlstoreVersion = 15

// FromSqlstore imports devices of a sqlstore, each in one transaction of its own, with the LID map. It returns what was imported, also with an error, which is
// of the device after these. It may be repeated: see [pgstore.Container.Import]. Nothing must be connected with these devices.
func FromSqlstore(ctx context.Context, c *pgstore.Container, from Sqlstore, opts Options) ([]*pgstore.ImportResult, error) {
	if !opts.SkipUpgrade {
		if err := sqlstore.NewWithDB(from.DB, from.Dialect, nil).Upgrade(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSourceSchema, err)
		}
	}
	if err := from.check(ctx); err != nil {
		return nil, err
	}
	devices := opts.Devices
	if devices == nil {
		var err error
		if devices, err = from.devices(ctx); err != nil {
			return nil, err
		}
	}
	var results []*pgstore.ImportResult
	for i, jid := range devices {
		result, err := from.importDevice(ctx, c, jid, i == 0, opts)
		if err != nil {
			return results, fmt.Errorf("migrate: device %s: %w", jid, err)
		}
		results = append(results, result)
	}
	return results, nil
}

func (s Sqlstore) importDevice(ctx context.Context, c *pgstore.Container, jid types.JID, withLIDs bool, opts Options) (*pgstore.ImportResult, error) {
	tx, err := s.DB.BeginTx(ctx, s.snapshot())
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // it has only read
	reader := &sqlstoreReader{tx: tx, jid: jid.String(), withLIDs: withLIDs, nextPreKey: 1 + preKeysUsed}
	if err = reader.count(ctx); err != nil {
		return nil, err
	}
	id := ""
	if opts.Instance != nil {
		id = opts.Instance(jid)
	}
	cfg := pgstore.ImportConfig{Source: "sqlstore", Exact: opts.Exact, Replace: opts.Replace}
	if opts.Progress != nil {
		cfg.Progress = func(done int) { opts.Progress(Progress{Device: jid, Done: done, Total: reader.total}) }
	}
	return c.Import(ctx, id, reader.entries(ctx), cfg)
}

// snapshot is how a transaction sees one moment. SQLite's always does.
func (s Sqlstore) snapshot() *sql.TxOptions {
	if s.sqlite() {
		return nil
	}
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
}

// sqlite says which of the two it is, by the names that sqlstore knows them by.
func (s Sqlstore) sqlite() bool { return s.Dialect != "postgres" && s.Dialect != "pgx" }

// check looks whether this is a sqlstore that can be read.
func (s Sqlstore) check(ctx context.Context) error {
	var version int
	var compatible sql.NullInt64
	err := s.DB.QueryRowContext(ctx, `SELECT version, compat FROM whatsmeow_version`).Scan(&version, &compatible)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrSourceSchema, err)
	case version < sqlstoreVersion:
		return fmt.Errorf("%w: it is at version %d, upgrade it to %d first", ErrSourceSchema, version, sqlstoreVersion)
	case version > sqlstoreVersion && compatible.Int64 > sqlstoreVersion:
		return fmt.Errorf("%w: it is at version %d, this one knows %d", ErrSourceSchema, version, sqlstoreVersion)
	}
	return nil
}

func (s Sqlstore) devices(ctx context.Context) (jids []types.JID, err error) {
	rows, err := s.DB.QueryContext(ctx, `SELECT jid FROM whatsmeow_device ORDER BY jid`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var jid types.JID
		if err = rows.Scan(&jid); err != nil {
			return nil, err
		}
		jids = append(jids, jid)
	}
	return jids, rows.Err()
}

// sqlstoreReader reads one device at one moment.
type sqlstoreReader struct {
	tx          *sql.Tx
	jid         string
	withLIDs    bool
	total, read int
	nextPreKey  uint32 // as far as pre-keys were read
}

// preKeysUsed is how many pre-key ids are left out. Sqlstore gives out the highest that is left plus one, so of the ids above it some may have been used up; a client uploads
// 812 at once at the most (whatsmeow prekeys.go). With another key under one of them, peers that fetched the old one could not be read.
const preKeysUsed = 1000

// table is how one table of sqlstore is read: a query with the device as its only argument, and the entry of a row.
type table struct {
	query string
	scan  func(*sql.Rows) (portable.Entry, error)
}

// newestMACs are those that GetAppStateMutationMAC answers, and that this library keeps: sqlstore keeps older versions beside them.
const newestMACs = `FROM whatsmeow_app_state_mutation_macs m JOIN (
	SELECT name, index_mac, MAX(version) AS version FROM whatsmeow_app_state_mutation_macs WHERE jid=$1 GROUP BY name, index_mac
) newest ON newest.name=m.name AND newest.index_mac=m.index_mac AND newest.version=m.version WHERE m.jid=$1`

// sqlstoreTables are all tables that belong to a device but the first, whatsmeow_device.
var sqlstoreTables = []table{
	{`SELECT their_id, identity FROM whatsmeow_identity_keys WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.Identity)
		return e, r.Scan(&e.Address, &e.Key)
	}},
	{`SELECT key_id, key, uploaded FROM whatsmeow_pre_keys WHERE jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.PreKey)
		return e, r.Scan(&e.ID, &e.Private, &e.Uploaded)
	}},
	{`SELECT their_id, session FROM whatsmeow_sessions WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.Session)
		return e, r.Scan(&e.Address, &e.Record)
	}},
	{`SELECT chat_id, sender_id, sender_key FROM whatsmeow_sender_keys WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.SenderKey)
		return e, r.Scan(&e.Group, &e.Sender, &e.Record)
	}},
	{`SELECT key_id, key_data, timestamp, fingerprint FROM whatsmeow_app_state_sync_keys WHERE jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.AppStateKey)
		return e, r.Scan(&e.ID, &e.Data, &e.Timestamp, &e.Fingerprint)
	}},
	{`SELECT name, version, hash FROM whatsmeow_app_state_version WHERE jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.AppStateVersion)
		return e, r.Scan(&e.Collection, &e.Version, &e.Hash)
	}},
	{`SELECT m.name, m.version, m.index_mac, m.value_mac ` + newestMACs, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.AppStateMAC)
		return e, r.Scan(&e.Collection, &e.Version, &e.IndexMAC, &e.ValueMAC)
	}},
	{`SELECT their_jid, COALESCE(first_name, ''), COALESCE(full_name, ''), COALESCE(push_name, ''), COALESCE(business_name, ''), COALESCE(redacted_phone, '')
		FROM whatsmeow_contacts WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.Contact)
		return e, r.Scan(&e.JID, &e.FirstName, &e.FullName, &e.PushName, &e.BusinessName, &e.RedactedPhone)
	}},
	{`SELECT chat_jid, muted_until, pinned, archived FROM whatsmeow_chat_settings WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.ChatSettings)
		return e, r.Scan(&e.Chat, &e.MutedUntil, &e.Pinned, &e.Archived)
	}},
	{`SELECT chat_jid, sender_jid, message_id, key FROM whatsmeow_message_secrets WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.MessageSecret)
		return e, r.Scan(&e.Chat, &e.Sender, &e.ID, &e.Secret)
	}},
	{`SELECT their_jid, token, timestamp, sender_timestamp FROM whatsmeow_privacy_tokens WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.PrivacyToken)
		return e, r.Scan(&e.JID, &e.Token, &e.Timestamp, &e.SenderTimestamp)
	}},
	{`SELECT salt FROM whatsmeow_nct_salt WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.NCTSalt)
		return e, r.Scan(&e.Salt)
	}},
	{`SELECT ciphertext_hash, plaintext, plaintext IS NULL, server_timestamp, insert_timestamp FROM whatsmeow_event_buffer WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e, processed := new(portable.BufferedEvent), false
		err := r.Scan(&e.CiphertextHash, &e.Plaintext, &processed, &e.ServerSeconds, &e.InsertMillis)
		if e.Plaintext == nil && !processed { // so does a driver read what is empty
			e.Plaintext = []byte{}
		}
		return e, err
	}},
	{`SELECT chat_jid, message_id, format, plaintext, timestamp FROM whatsmeow_retry_buffer WHERE our_jid=$1`, func(r *sql.Rows) (portable.Entry, error) {
		e := new(portable.OutgoingEvent)
		return e, r.Scan(&e.Chat, &e.ID, &e.Format, &e.Plaintext, &e.InsertMillis)
	}},
}

// lidTable belongs to no device; its query has no use for the argument, and PostgreSQL wants it used.
var lidTable = table{`SELECT lid, pn FROM whatsmeow_lid_map WHERE $1<>''`, func(r *sql.Rows) (portable.Entry, error) {
	e := new(portable.LIDPair)
	return e, r.Scan(&e.LID, &e.PN)
}}

func (r *sqlstoreReader) tables() []table {
	if r.withLIDs {
		return append([]table{lidTable}, sqlstoreTables...)
	}
	return sqlstoreTables
}

// count counts what is there.
func (r *sqlstoreReader) count(ctx context.Context) error {
	r.total = 1
	for _, t := range r.tables() {
		var n int
		if err := r.tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM (`+t.query+`) AS rows`, r.jid).Scan(&n); err != nil {
			return err
		}
		r.total += n
	}
	return nil
}

// entries reads all, the credentials first. What was read must be as many as were counted.
func (r *sqlstoreReader) entries(ctx context.Context) iter.Seq2[portable.Entry, error] {
	return func(yield func(portable.Entry, error) bool) {
		creds, err := r.credentials(ctx)
		if err != nil || !yield(creds, nil) {
			if err != nil {
				yield(nil, err)
			}
			return
		}
		r.read = 1
		for _, t := range r.tables() {
			if goOn, err := r.each(ctx, t, yield); err != nil {
				yield(nil, err)
				return
			} else if !goOn {
				return
			}
		}
		if r.read != r.total {
			yield(nil, fmt.Errorf("%w: %d rows read, %d counted", ErrSourceChanged, r.read, r.total))
			return
		}
		yield(&portable.PreKeyCounter{Next: r.nextPreKey}, nil)
	}
}

func (r *sqlstoreReader) each(ctx context.Context, t table, yield func(portable.Entry, error) bool) (goOn bool, err error) {
	rows, err := r.tx.QueryContext(ctx, t.query, r.jid)
	if err != nil {
		return false, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		e, err := t.scan(rows)
		if err != nil {
			return false, err
		}
		r.read++
		if preKey, ok := e.(*portable.PreKey); ok {
			r.nextPreKey = max(r.nextPreKey, preKey.ID+1+preKeysUsed)
		}
		if !yield(e, nil) {
			return false, nil
		}
	}
	return true, rows.Err()
}

func (r *sqlstoreReader) credentials(ctx context.Context) (*portable.Credentials, error) {
	e := new(portable.Credentials)
	var lid sql.NullString
	var facebook uuid.NullUUID
	err := r.tx.QueryRowContext(ctx, `SELECT jid, lid, registration_id, noise_key, identity_key, signed_pre_key, signed_pre_key_id, signed_pre_key_sig,
			adv_key, adv_details, adv_account_sig, adv_account_sig_key, adv_device_sig,
			platform, business_name, push_name, facebook_uuid, lid_migration_ts, companion_meta_nonce
		FROM whatsmeow_device WHERE jid=$1`, r.jid).Scan(
		&e.JID, &lid, &e.RegistrationID, &e.NoiseKey, &e.IdentityKey, &e.SignedPreKey, &e.SignedPreKeyID, &e.SignedPreKeySignature,
		&e.AdvKey, &e.AdvDetails, &e.AdvAccountSig, &e.AdvAccountSigKey, &e.AdvDeviceSig,
		&e.Platform, &e.BusinessName, &e.PushName, &facebook, &e.LIDMigrationTimestamp, &e.CompanionMetaNonce)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNoDevice
	}
	e.LID = portable.Text(lid.String)
	if facebook.Valid {
		e.FacebookUUID = &facebook.UUID
	}
	return e, err
}
