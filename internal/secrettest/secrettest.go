// Package secrettest searches what a program says, its logs, errors, spans and the like, for what only the table of keys may hold.
package secrettest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// Secrets are byte sequences that nobody but the table may see: all that is binary in its rows, private and public. The zero value has none. A test notes
// them as it goes, since a ratchet forgets.
type Secrets struct {
	forms  map[string]string // what it is by how it may be written
	values map[string]bool
}

const (
	shortestSecret = 12 // bytes; shorter ones occur by chance
	alignments     = 3  // of base64: a secret may be in the midst of something that is encoded as a whole
)

// Note reads all rows of the database.
func (s *Secrets) Note(t testing.TB, dsn string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	rows, err := conn.Query(context.Background(), `SELECT key_type, data::text FROM whatsmeow.auth_keys UNION ALL SELECT key_type, data::text FROM whatsmeow.set_aside`)
	require.NoError(t, err)
	var kind, data string
	_, err = pgx.ForEachRow(rows, []any{&kind, &data}, func() error { return s.NoteRow(kind, data) })
	require.NoError(t, err)
}

// NoteRow reads one row's JSON.
func (s *Secrets) NoteRow(kind, data string) error {
	var parsed any
	if err := json.Unmarshal([]byte(data), &parsed); err != nil {
		return err
	}
	s.collect(kind, parsed)
	return nil
}

// collect walks a row. A string that is base64, or a record that libsignal has written as text, holds secrets.
func (s *Secrets) collect(kind string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, field := range v {
			s.collect(kind, field)
		}
	case []any:
		for _, element := range v {
			s.collect(kind, element)
		}
	case string:
		var record any
		if strings.HasPrefix(v, "{") && json.Unmarshal([]byte(v), &record) == nil {
			s.collect(kind, record)
			return
		}
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			if raw, err := encoding.DecodeString(v); err == nil && len(raw) >= shortestSecret {
				s.Add(kind, raw)
				return
			}
		}
	}
}

// Add notes a secret in all the ways in which it may be written.
func (s *Secrets) Add(kind string, raw []byte) {
	if s.forms == nil {
		s.forms, s.values = make(map[string]string), make(map[string]bool)
	}
	if s.values[string(raw)] {
		return
	}
	s.values[string(raw)] = true
	numbers := strings.Trim(fmt.Sprintf("%d", raw), "[]")
	for _, form := range []string{
		string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
		numbers, strings.ReplaceAll(numbers, " ", ", "), strings.Trim(fmt.Sprintf("%q", raw), `"`),
	} {
		s.forms[form] = kind
	}
	for shift := range alignments {
		shifted := append(make([]byte, shift), raw...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(shifted)
			s.forms[text[(shift*8+5)/6:len(shifted)*8/6]] = kind // without the characters that hold bits of what is beside it
		}
	}
}

// FoundIn lists the kinds of secrets that a text holds.
func (s *Secrets) FoundIn(text string) []string {
	found := make(map[string]bool)
	for form, kind := range s.forms {
		if strings.Contains(text, form) {
			found[kind] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// RequireNoneIn fails if a text holds secrets, or none are known. It says what kind of secret was found, and not which.
func (s *Secrets) RequireNoneIn(t testing.TB, where, text string) {
	t.Helper()
	require.NotEmpty(t, s.forms)
	require.NotEmpty(t, text, where)
	require.Empty(t, s.FoundIn(text), "secrets of these kinds are in %s", where)
}

// RequireNoneInTables fails if a row of these tables holds secrets, in a text or in bytes.
func (s *Secrets) RequireNoneInTables(t testing.TB, dsn string, tables ...string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	for _, table := range tables {
		rows, err := conn.Query(context.Background(), `SELECT t::text FROM `+table+` AS t`) // bytes are in hex then
		require.NoError(t, err)
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		s.RequireNoneIn(t, table, strings.Join(all, "\n"))
	}
}

// Kinds lists the key types of which a secret is known.
func (s *Secrets) Kinds() []string {
	kinds := make(map[string]bool)
	for _, kind := range s.forms {
		kinds[kind] = true
	}
	return slices.Sorted(maps.Keys(kinds))
}
