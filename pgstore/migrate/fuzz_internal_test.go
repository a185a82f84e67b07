package migrate

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// Whatever is inside of an archive, it is read or refused.
func FuzzArchive(f *testing.F) {
	const header = `{"format":"whatsmeow-pgstore archive","version":1}` + "\n"
	f.Add([]byte(header + `{"kind":"identity","entry":{"address":"1:0","key":"AAAA"}}` + "\n" + `{"end":1}`))
	f.Add([]byte(header + `{"kind":"contact","entry":{"jid":{"b64":"AP8="},"push_name":null}}` + "\n" + `{"end":1}`))
	f.Add([]byte(header + `{"end":0}`))
	f.Add([]byte(header + `{"end":0}{}`))
	f.Add([]byte(header + `{"kind":"session","entry":null}` + `{"kind":"pre_key","entry":[]}`))
	f.Add([]byte(`{"format":"whatsmeow-pgstore archive","version":2}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, inside []byte) {
		r := newLineReader(bytes.NewReader(inside))
		if _, err := r.header(); err != nil {
			require.ErrorIs(t, err, ErrArchive)
			return
		}
		for e, err := range r.entries() {
			if err != nil {
				require.ErrorIs(t, err, ErrArchive)
				require.Nil(t, e)
				continue
			}
			data, err := json.Marshal(e)
			require.NoError(t, err)
			again := portable.New(e.Kind())
			require.NoError(t, json.Unmarshal(data, again))
			require.Equal(t, e, again)
		}
	})
}

// Whatever the files of a folder hold, and whatever they are called, they are read or left out.
func FuzzBaileys(f *testing.F) {
	creds, err := os.ReadFile("../../testdata/baileys/paired/creds.json")
	require.NoError(f, err)
	for file, data := range map[string]string{
		"creds.json": `{"me":{"id":"1:2@s.whatsapp.net","lid":"3@lid"}}`, "pre-key-1.json": `{"private":{"type":"Buffer","data":[1,2]}}`,
		"app-state-sync-key-AA__A.json": `{"keyData":"AAAA","timestamp":"1","fingerprint":{"rawId":1}}`, "lid-mapping-1.json": `"2"`, "lid-mapping-1_reverse.json": `"2"`,
		"identity-key-1_1.0.json": `{"type":"Buffer","data":"BQ=="}`, "tctoken-1@lid.json": `{"token":"AAAA","timestamp":1,"senderTimestamp":null}`, "session-1.0.json": `{}`,
		"x": "",
	} {
		f.Add(file, []byte(data))
	}
	f.Fuzz(func(t *testing.T, file string, data []byte) {
		folder := fstest.MapFS{"creds.json": {Data: creds}}
		folder[file] = &fstest.MapFile{Data: data}
		r := &baileysReader{folder: folder}
		read, err := r.credentials()
		if err != nil {
			require.ErrorIs(t, err, ErrBaileys)
			return
		}
		for e, err := range r.entries(read) {
			if err == nil {
				require.NotNil(t, e)
			}
		}
		for _, s := range r.skipped {
			require.NotEmpty(t, s.Reason)
		}
	})
}
