package pgstore

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// Whatever an entry says, it is refused, or its row is read back as the same entry.
func FuzzEntries(f *testing.F) {
	const key = `"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="`
	for kind, entry := range map[string]string{
		"creds":             `{"jid":"1:2@s.whatsapp.net","lid":"3@lid","noise_key":` + key + `}`,
		"pre_key_counter":   `{"next":16777217}`,
		"identity":          `{"address":"1:0","key":` + key + `}`,
		"session":           `{"address":"1:0","record":"e30="}`,
		"sender_key":        `{"group":"g","sender":"1|0","record":"e30="}`,
		"pre_key":           `{"id":16777214,"private":` + key + `,"uploaded":true,"stale":true}`,
		"app_state_key":     `{"id":"AA==","data":"AA=="}`,
		"app_state_version": `{"collection":"regular","version":3}`,
		"app_state_mac":     `{"collection":"regular","version":3,"index_mac":` + key + `,"value_mac":` + key + `}`,
		"contact":           `{"jid":{"b64":"AP8="},"first_name":"x"}`,
		"chat_settings":     `{"chat":"1@s.whatsapp.net","muted_until":-1}`,
		"message_secret":    `{"chat":"a","sender":"b","id":"c\\\\","secret":"AA=="}`,
		"privacy_token":     `{"jid":"a","token":"AA==","timestamp":1,"sender_timestamp":0}`,
		"nct_salt":          `{"salt":""}`,
		"buffered_event":    `{"ciphertext_hash":` + key + `,"plaintext":"","insert_ms":1}`,
		"outgoing_event":    `{"chat":"a","id":"b","format":"c","insert_ms":1}`,
		"lid_pair":          `{"lid":"1","pn":"2"}`,
	} {
		f.Add(kind, []byte(entry))
	}
	f.Fuzz(func(t *testing.T, kind string, data []byte) {
		e := portable.New(kind)
		if e == nil || json.Unmarshal(data, e) != nil {
			return
		}
		k, v, err := rowOf(e)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidInput)
			return
		}
		encoded, err := encode(v)
		require.NoError(t, err)
		back, err := decodeKey(k, []byte(encoded))
		require.NoError(t, err, encoded)
		if rec, ok := back.(*recordValue); ok {
			require.True(t, rec.decoded())
		}
		again, err := entryOf(k, back)
		if len(k.ID) > maxIDBytes {
			return
		}
		if errors.Is(err, ErrInvalidInput) {
			require.Failf(t, "a row has no entry", "%s: %s", kind, err)
		}
		require.NoError(t, err)
		_, v, err = rowOf(again)
		require.NoError(t, err)
		same, err := encode(v)
		require.NoError(t, err)
		require.True(t, sameJSON(encoded, same), "%s, then %s", encoded, same)
		require.Equal(t, e.Name(), again.Name())
	})
}
