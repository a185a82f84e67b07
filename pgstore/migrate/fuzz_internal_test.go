package migrate

import (
	"bytes"
	"encoding/json"
	"testing"

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
