package life

// What the tables hold, as somebody sees it who looks at them from outside.

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

// database looks at a database.
type database struct {
	t       testing.TB
	backend backend
	pool    *pgxpool.Pool
}

func newDatabase(t testing.TB, b backend, dsn string) *database {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return &database{t: t, backend: b, pool: pool}
}

// The kinds of rows, by their key types on pgstore, and where sqlstore has them.
var sqlstoreTables = map[string]string{
	"creds":             "whatsmeow_device",
	"identity":          "whatsmeow_identity_keys",
	"session":           "whatsmeow_sessions",
	"pre_key":           "whatsmeow_pre_keys",
	"sender_key":        "whatsmeow_sender_keys",
	"app_state_key":     "whatsmeow_app_state_sync_keys",
	"app_state_version": "whatsmeow_app_state_version",
	"app_state_mac":     "whatsmeow_app_state_mutation_macs",
	"contact":           "whatsmeow_contacts",
	"chat_settings":     "whatsmeow_chat_settings",
	"message_secret":    "whatsmeow_message_secrets",
	"privacy_token":     "whatsmeow_privacy_tokens",
	"nct_salt":          "whatsmeow_nct_salt",
	"buffered_event":    "whatsmeow_event_buffer",
	"outgoing_event":    "whatsmeow_retry_buffer",
}

// rows are all rows of devices: how often each is there, by its whole text, without what changes on its own (who owns an
// instance, and when a row was written).
func (d *database) rows() map[string]int {
	d.t.Helper()
	if d.backend.ours {
		return d.texts(`SELECT 'instance ' || id || ' ' || jid || ' ' || lid FROM whatsmeow.instances UNION ALL
			SELECT key_type || ' ' || key_id || ' ' || instance_id || ' ' || data::text FROM whatsmeow.auth_keys UNION ALL
			SELECT 'set aside ' || a::text FROM whatsmeow.set_aside a`)
	}
	query := ""
	for kind, table := range sqlstoreTables {
		if query != "" {
			query += " UNION ALL "
		}
		query += fmt.Sprintf("SELECT '%s ' || r::text FROM %s r", kind, table)
	}
	return d.texts(query)
}

func (d *database) texts(query string) map[string]int {
	d.t.Helper()
	rows, err := d.pool.Query(context.Background(), query)
	require.NoError(d.t, err)
	defer rows.Close()
	found := make(map[string]int)
	for rows.Next() {
		var text string
		require.NoError(d.t, rows.Scan(&text))
		found[text]++
	}
	require.NoError(d.t, rows.Err())
	return found
}

// count is how many rows of a kind there are.
func (d *database) count(kind string) int {
	d.t.Helper()
	if d.backend.ours {
		return d.number(`SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = $1`, kind)
	}
	return d.number("SELECT count(*) FROM " + sqlstoreTables[kind])
}

// buffered are the keys of the event buffer.
func (d *database) buffered() map[string]int {
	d.t.Helper()
	if d.backend.ours {
		return d.texts(`SELECT key_id FROM whatsmeow.auth_keys WHERE key_type = 'buffered_event'`)
	}
	return d.texts(`SELECT rtrim(translate(encode(ciphertext_hash, 'base64'), '+/', '-_'), '=') FROM whatsmeow_event_buffer`)
}

// about is how many sessions or identities of an address there are.
func (d *database) about(kind, address string) int {
	d.t.Helper()
	if d.backend.ours {
		return d.number(`SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = $1 AND key_id = $2`, kind, address)
	}
	return d.number("SELECT count(*) FROM "+sqlstoreTables[kind]+" WHERE their_id = $1", address)
}

// senderKeys is how many sender keys of somebody for a group there are.
func (d *database) senderKeys(group, of types.JID) int {
	d.t.Helper()
	if d.backend.ours {
		return d.number(`SELECT count(*) FROM whatsmeow.auth_keys WHERE key_type = 'sender_key' AND key_id = $1`, of.SignalAddress().String()+"|"+group.String())
	}
	return d.number(`SELECT count(*) FROM whatsmeow_sender_keys WHERE sender_id = $1 AND chat_id = $2`, of.SignalAddress().String(), group.String())
}

// lidMap is the table that maps phone numbers and LIDs.
func (d *database) lidMap() string {
	if d.backend.ours {
		return "whatsmeow.lid_map"
	}
	return "whatsmeow_lid_map"
}

// number is a query's only value.
func (d *database) number(query string, args ...any) int {
	d.t.Helper()
	var n int
	require.NoError(d.t, d.pool.QueryRow(context.Background(), query, args...).Scan(&n))
	return n
}
