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
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// ErrDeviceExists says that the target has the device already. See [ExportOptions].Replace.
var ErrDeviceExists = errors.New("migrate: the target has this device already")

// ExportOptions say how an instance is exported.
type ExportOptions struct {
	// Replace writes over a device that the target has: the one that was imported from there, for instance. The instance here must be the newer of the two.
	Replace bool

	// Progress, if set, is called now and then. It must not block.
	Progress func(Progress)
}

// ToSqlstore hands an instance over to a sqlstore, whose schema it makes or brings up to date. All of it is written in one transaction there, and the instance is fenced
// here before that is committed: see [pgstore.Container.Export]. Left out, and told, is what sqlstore has no word for: sessions whose sending chain is abandoned, and
// on PostgreSQL rows with NUL bytes or broken UTF-8 in a name.
func ToSqlstore(ctx context.Context, c *pgstore.Container, id string, to Sqlstore, opts ExportOptions) (*pgstore.ExportResult, error) {
	if err := sqlstore.NewWithDB(to.DB, to.Dialect, nil).Upgrade(ctx); err != nil {
		return nil, fmt.Errorf("migrate: making the target's schema: %w", err)
	}
	tx, err := to.DB.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // or it was committed
	w := &sqlstoreWriter{tx: tx, sqlite: to.sqlite(), replace: opts.Replace, statements: make(map[string]*sql.Stmt)}
	cfg := pgstore.ExportConfig{Target: "sqlstore", Sendable: true}
	if opts.Progress != nil {
		cfg.Progress = func(done, total int) { opts.Progress(Progress{Device: w.device, Done: done, Total: total}) }
	}
	result, err := c.Export(ctx, id, cfg, func(entries iter.Seq2[portable.Entry, error]) error { return w.writeAll(ctx, entries) })
	if err != nil {
		return nil, err
	}
	if err = tx.Commit(); err != nil {
		return nil, fmt.Errorf("migrate: the instance is fenced, and its copy was not committed: %w", err)
	}
	result.Skipped = append(result.Skipped, w.skipped...)
	for _, s := range w.skipped {
		result.Counts[s.Kind]--
	}
	return result, nil
}

// sqlstoreWriter writes one device in one transaction.
type sqlstoreWriter struct {
	tx              *sql.Tx
	sqlite, replace bool
	statements      map[string]*sql.Stmt

	jid     string
	device  types.JID
	counter uint32 // the next pre-key id here
	highest uint32 // pre-key id that was written
	skipped []pgstore.Skipped
}

func (w *sqlstoreWriter) writeAll(ctx context.Context, entries iter.Seq2[portable.Entry, error]) error {
	defer func() {
		for _, s := range w.statements {
			_ = s.Close() // they end with the transaction
		}
	}()
	for e, err := range entries {
		if err != nil {
			return err
		}
		if err = w.write(ctx, e); err != nil {
			return fmt.Errorf("writing %s: %w", e.Kind(), err)
		}
	}
	return w.keepCounter(ctx)
}

// keepCounter adds a fresh pre-key under the next id, that is uploaded with the next ones, if all below were used up: sqlstore counts on from the highest that it has, so that
// ids would come back.
func (w *sqlstoreWriter) keepCounter(ctx context.Context) error {
	if w.counter <= w.highest+1 {
		return nil
	}
	fresh := keys.NewPreKey(w.counter)
	return w.exec(ctx, insertPreKey, w.jid, fresh.KeyID, fresh.Priv[:], false)
}

const insertPreKey = `INSERT INTO whatsmeow_pre_keys (jid, key_id, key, uploaded) VALUES ($1, $2, $3, $4)`

// exec runs a statement that is prepared at its first use.
func (w *sqlstoreWriter) exec(ctx context.Context, query string, args ...any) error {
	s := w.statements[query]
	if s == nil {
		var err error
		if s, err = w.tx.PrepareContext(ctx, query); err != nil {
			return err
		}
		w.statements[query] = s
	}
	_, err := s.ExecContext(ctx, args...)
	return err
}

func (w *sqlstoreWriter) write(ctx context.Context, e portable.Entry) error {
	if creds, ok := e.(*portable.Credentials); ok && !w.sqlite {
		w.clean(creds)
	} else if !w.sqlite && !storable(e) {
		w.skipped = append(w.skipped, pgstore.Skipped{Kind: e.Kind(), Name: e.Name(), Reason: "PostgreSQL takes no NUL and no broken UTF-8 in a name"})
		return nil
	}
	switch e := e.(type) {
	case *portable.Credentials:
		return w.writeDevice(ctx, e)
	case *portable.PreKeyCounter:
		w.counter = e.Next
		return nil
	case *portable.Identity:
		return w.exec(ctx, `INSERT INTO whatsmeow_identity_keys (our_jid, their_id, identity) VALUES ($1, $2, $3)`, w.jid, string(e.Address), e.Key)
	case *portable.Session:
		return w.exec(ctx, `INSERT INTO whatsmeow_sessions (our_jid, their_id, session) VALUES ($1, $2, $3)`, w.jid, string(e.Address), e.Record)
	case *portable.PreKey:
		w.highest = max(w.highest, e.ID)
		return w.exec(ctx, insertPreKey, w.jid, e.ID, e.Private, e.Uploaded)
	case *portable.SenderKey:
		return w.exec(ctx, `INSERT INTO whatsmeow_sender_keys (our_jid, chat_id, sender_id, sender_key) VALUES ($1, $2, $3, $4)`, w.jid, string(e.Group), string(e.Sender), e.Record)
	case *portable.AppStateKey:
		return w.exec(ctx, `INSERT INTO whatsmeow_app_state_sync_keys (jid, key_id, key_data, timestamp, fingerprint) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, e.ID, e.Data, e.Timestamp, notNil(e.Fingerprint))
	case *portable.AppStateVersion:
		return w.exec(ctx, insertVersion, w.jid, string(e.Collection), int64(e.Version), e.Hash) //nolint:gosec // it is stored as the client has it
	case *portable.AppStateMAC:
		return w.exec(ctx, `INSERT INTO whatsmeow_app_state_mutation_macs (jid, name, version, index_mac, value_mac) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, string(e.Collection), int64(e.Version), e.IndexMAC, e.ValueMAC) //nolint:gosec // likewise
	case *portable.LIDPair:
		return w.writePair(ctx, e)
	}
	return w.writePlain(ctx, e)
}

const insertVersion = `INSERT INTO whatsmeow_app_state_version (jid, name, version, hash) VALUES ($1, $2, $3, $4)`

// writePlain writes what holds no keys of the protocol.
func (w *sqlstoreWriter) writePlain(ctx context.Context, e portable.Entry) error {
	switch e := e.(type) {
	case *portable.Contact:
		return w.exec(ctx, `INSERT INTO whatsmeow_contacts (our_jid, their_jid, first_name, full_name, push_name, business_name, redacted_phone) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			w.jid, string(e.JID), string(e.FirstName), string(e.FullName), string(e.PushName), string(e.BusinessName), string(e.RedactedPhone))
	case *portable.ChatSettings:
		return w.exec(ctx, `INSERT INTO whatsmeow_chat_settings (our_jid, chat_jid, muted_until, pinned, archived) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, string(e.Chat), e.MutedUntil, e.Pinned, e.Archived)
	case *portable.MessageSecret:
		return w.exec(ctx, `INSERT INTO whatsmeow_message_secrets (our_jid, chat_jid, sender_jid, message_id, key) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, string(e.Chat), string(e.Sender), string(e.ID), notNil(e.Secret))
	case *portable.PrivacyToken:
		return w.exec(ctx, `INSERT INTO whatsmeow_privacy_tokens (our_jid, their_jid, token, timestamp, sender_timestamp) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, string(e.JID), notNil(e.Token), e.Timestamp, e.SenderTimestamp)
	case *portable.NCTSalt:
		return w.exec(ctx, `INSERT INTO whatsmeow_nct_salt (our_jid, salt) VALUES ($1, $2)`, w.jid, notNil(e.Salt))
	case *portable.BufferedEvent:
		return w.exec(ctx, `INSERT INTO whatsmeow_event_buffer (our_jid, ciphertext_hash, plaintext, server_timestamp, insert_timestamp) VALUES ($1, $2, $3, $4, $5)`,
			w.jid, e.CiphertextHash, e.Plaintext, e.ServerSeconds, e.InsertMillis)
	case *portable.OutgoingEvent:
		return w.exec(ctx, `INSERT INTO whatsmeow_retry_buffer (our_jid, chat_jid, message_id, format, plaintext, timestamp) VALUES ($1, $2, $3, $4, $5, $6)`,
			w.jid, string(e.Chat), string(e.ID), string(e.Format), notNil(e.Plaintext), e.InsertMillis)
	}
	return fmt.Errorf("no table for %s", e.Kind())
}

// writeDevice writes the credentials, and removes what the target had of the device, if it may.
func (w *sqlstoreWriter) writeDevice(ctx context.Context, e *portable.Credentials) error {
	w.jid = string(e.JID)
	var err error
	if w.device, err = types.ParseJID(w.jid); err != nil {
		return err
	}
	var exists bool
	if err = w.tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM whatsmeow_device WHERE jid=$1)`, w.jid).Scan(&exists); err != nil {
		return err
	}
	if exists && !w.replace {
		return ErrDeviceExists
	}
	for _, statement := range []string{
		`DELETE FROM whatsmeow_device WHERE jid=$1`, // all but the privacy tokens go with it
		`DELETE FROM whatsmeow_privacy_tokens WHERE our_jid=$1`,
	} {
		if err = w.exec(ctx, statement, w.jid); err != nil {
			return err
		}
	}
	facebook := uuid.NullUUID{}
	if e.FacebookUUID != nil {
		facebook = uuid.NullUUID{UUID: *e.FacebookUUID, Valid: true}
	}
	return w.exec(ctx, `INSERT INTO whatsmeow_device (jid, lid, registration_id, noise_key, identity_key, signed_pre_key, signed_pre_key_id, signed_pre_key_sig,
			adv_key, adv_details, adv_account_sig, adv_account_sig_key, adv_device_sig,
			platform, business_name, push_name, facebook_uuid, lid_migration_ts, companion_meta_nonce)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		w.jid, string(e.LID), e.RegistrationID, e.NoiseKey, e.IdentityKey, e.SignedPreKey, e.SignedPreKeyID, e.SignedPreKeySignature,
		e.AdvKey, e.AdvDetails, e.AdvAccountSig, e.AdvAccountSigKey, e.AdvDeviceSig,
		string(e.Platform), string(e.BusinessName), string(e.PushName), facebook, e.LIDMigrationTimestamp, string(e.CompanionMetaNonce))
}

// writePair writes a pair of the LID map. What the target knows otherwise gives way.
func (w *sqlstoreWriter) writePair(ctx context.Context, e *portable.LIDPair) error {
	for _, statement := range []string{
		`DELETE FROM whatsmeow_lid_map WHERE lid=$1 OR pn=$2`,
		`INSERT INTO whatsmeow_lid_map (lid, pn) VALUES ($1, $2)`,
	} {
		if err := w.exec(ctx, statement, string(e.LID), string(e.PN)); err != nil {
			return err
		}
	}
	return nil
}

// clean empties the names in credentials that PostgreSQL does not take: the device must not be left out for them.
func (w *sqlstoreWriter) clean(e *portable.Credentials) {
	for _, name := range []*portable.Text{&e.Platform, &e.BusinessName, &e.PushName, &e.CompanionMetaNonce} {
		if !name.Storable() {
			*name = ""
		}
	}
}

// storable says whether PostgreSQL takes the texts of an entry.
func storable(e portable.Entry) bool {
	var texts []portable.Text
	switch e := e.(type) {
	case *portable.Identity:
		texts = []portable.Text{e.Address}
	case *portable.Session:
		texts = []portable.Text{e.Address}
	case *portable.SenderKey:
		texts = []portable.Text{e.Group, e.Sender}
	case *portable.Contact:
		texts = []portable.Text{e.JID, e.FirstName, e.FullName, e.PushName, e.BusinessName, e.RedactedPhone}
	case *portable.ChatSettings:
		texts = []portable.Text{e.Chat}
	case *portable.MessageSecret:
		texts = []portable.Text{e.Chat, e.Sender, e.ID}
	case *portable.PrivacyToken:
		texts = []portable.Text{e.JID}
	case *portable.OutgoingEvent:
		texts = []portable.Text{e.Chat, e.ID, e.Format}
	case *portable.LIDPair:
		texts = []portable.Text{e.LID, e.PN}
	}
	for _, t := range texts {
		if !t.Storable() {
			return false
		}
	}
	return true
}

// notNil is what a column that is not null takes for an empty value.
func notNil(b []byte) []byte { return append([]byte{}, b...) }
