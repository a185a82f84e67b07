package migrate_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/secrettest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

// Results, errors, logs and the audit trail hold no secret of what was moved, also where it is broken, and an archive shows none from outside.
func TestP12MovingWritesDownNoSecret(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	from, dsn := backends[0].open(t), pgtest.Open(t)
	theirs := container(from)
	d := theirs.NewDevice()
	fillDevice(t, d, theirs.NewDevice())
	c := open(t, dsn, func(cfg *pgstore.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&said, nil)) })
	imported, err := migrate.FromSqlstore(ctx, c, from, migrate.Options{})
	require.NoError(t, err)
	fmt.Fprintf(&said, "%+v\n", *imported[0])
	var secrets secrettest.Secrets
	secrets.Note(t, dsn)
	require.NotEmpty(t, secrets.Kinds())
	_, err = c.GetFirstDevice(ctx) // which heals it
	require.NoError(t, err)
	secrets.Note(t, dsn)

	identity := newIdentity(t)
	var file bytes.Buffer
	exported, err := migrate.WriteArchive(ctx, c, d.ID.String(), &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{identity.Recipient()}, Move: true})
	require.NoError(t, err)
	fmt.Fprintf(&said, "%+v\n", *exported)
	secrets.RequireNoneIn(t, "an archive", file.String())
	_, err = migrate.ReadArchive(ctx, c, bytes.NewReader(file.Bytes()[:file.Len()-10]), migrate.ReadArchiveOptions{Identities: []age.Identity{identity}})
	require.Error(t, err)
	fmt.Fprintln(&said, err)

	folder := asBaileys(t, d, from)
	for name, f := range folder { // cut off in the middle of a key, or with a number in its place
		whole := f.Data
		for _, broken := range [][]byte{whole[:len(whole)/2], bytes.Replace(whole, []byte(`"data":"`), []byte(`"data":"!`), 1), bytes.Replace(whole, []byte(`:"`), []byte(`:7,"`), 1)} {
			folder[name].Data = broken
			_, err = migrate.FromBaileys(ctx, c, folder, migrate.BaileysOptions{Replace: true})
			fmt.Fprintln(&said, err)
		}
		f.Data = whole
	}
	said.WriteString(scalar[string](t, dsn, `SELECT string_agg(event || ' ' || detail, E'\n') FROM whatsmeow.audit`))
	secrets.RequireNoneIn(t, "what was said", said.String())
}
