package soak

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/types"
)

// spoilable is a type of which the model knows rows.
type spoilable struct {
	keyType string
	known   map[string]string        // what is put under which name
	id      func(name string) string // the row's key_id
}

// names are those of rows that can be told in SQL.
func (s spoilable) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.known)), func(name string) bool { return !ordinary(name) })
}

func (r *resident) spoilable() []spoilable {
	us := r.device.ID.ToNonAD().String()
	person := func(who string) string { return types.NewJID(who, types.DefaultUserServer).String() }
	binary := func(name string) string { return base64.RawURLEncoding.EncodeToString([]byte(name)) }
	as := func(name string) string { return name }
	preKeys := make(map[string]string)
	for _, id := range r.model.preKeys {
		preKeys[strconv.FormatUint(uint64(id), 10)] = ""
	}
	salt := make(map[string]string)
	if r.model.salt != "" {
		salt["salt"] = r.model.salt
	}
	return []spoilable{
		{"session", r.model.sessions, as},
		{"sender_key", r.model.senderKeys, func(group string) string { return "somebody:0|" + group }},
		{"pre_key", preKeys, as},
		{"app_state_key", r.model.syncKeys, binary},
		{"app_state_mac", r.model.macs, func(index string) string { return "regular|" + binary(string(macIndex(index))) }},
		{"contact", r.model.names, person},
		{"message_secret", r.model.secrets, func(id string) string { return us + "|" + us + "|" + id }},
		{"privacy_token", r.model.tokens, person},
		{"nct_salt", salt, as},
		{"buffered_event", r.model.events, binary},
		{"outgoing_event", r.model.outgoing, func(id string) string { return us + "|" + id }},
	}
}

// lose lets the model know that a row is gone.
func (r *resident) lose(s spoilable, name string) {
	delete(s.known, name)
	switch s.keyType {
	case "app_state_key":
		delete(r.model.syncKeyTimes, name)
	case "pre_key":
		r.model.preKeys = slices.DeleteFunc(r.model.preKeys, func(id uint32) bool { return strconv.FormatUint(uint64(id), 10) == name })
	case "nct_salt":
		r.model.salt = ""
	}
}

// spoil spoils a row that the model knows, of a random type, and lets the model forget it. It returns the row's key, or nil if there is none.
func (r *resident) spoil(t testing.TB, b *badDays) (row []any) {
	t.Helper()
	there := slices.DeleteFunc(r.spoilable(), func(s spoilable) bool { return len(s.names()) == 0 })
	if len(there) == 0 {
		return nil
	}
	s := there[b.rng.IntN(len(there))]
	names := s.names()
	name := names[b.rng.IntN(len(names))]
	row = []any{r.device.ID.String(), s.keyType, s.id(name)}
	var spoilt int
	b.query(t, []any{&spoilt}, `WITH spoilt AS (
		UPDATE whatsmeow.auth_keys SET data = '{}' WHERE instance_id = $1 AND key_type = $2 AND key_id = $3 RETURNING 1) SELECT count(*) FROM spoilt`, row...)
	require.Equal(t, 1, spoilt, row)
	r.lose(s, name)
	b.spoilt[s.keyType]++
	return row
}

// spoilRows spoils a row of some instances of a process while that is closed. When it is opened again they are found and set aside, and what
// was in them is absent.
func spoilRows(t testing.TB, b *badDays) {
	p := b.processes[b.rng.IntN(len(b.processes))]
	p.mu.Lock()
	defer p.mu.Unlock()
	within := func(do func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, do(ctx))
	}
	within(p.container.Shutdown)
	rows := make(map[int][]any)
	for _, i := range b.rng.Perm(*many / processes)[:3] {
		if row := p.residents[i].spoil(t, b); row != nil {
			rows[i] = row
		}
	}
	require.NoError(t, p.open())
	for _, r := range p.residents {
		within(func(ctx context.Context) error { return r.comeBack(ctx, p.container) })
	}
	for i, row := range rows {
		within(p.residents[i].checkAll)
		require.Eventually(t, func() bool {
			var aside bool
			b.query(t, []any{&aside}, `SELECT EXISTS (SELECT FROM whatsmeow.set_aside WHERE instance_id = $1 AND key_type = $2 AND key_id = $3)
				AND NOT EXISTS (SELECT FROM whatsmeow.auth_keys WHERE instance_id = $1 AND key_type = $2 AND key_id = $3)`, row...)
			return aside
		}, patience, 10*time.Millisecond, "%v is not set aside", row)
	}
}
