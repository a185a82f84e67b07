package migrate_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"testing"

	"filippo.io/age"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
	"github.com/wataki/whatsmeow-pgstore/pgstore/migrate"
)

func newIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	return identity
}

// An instance that is moved by an archive goes on in the other database with what it had; the one that stays behind is fenced.
func TestP4AnInstanceMovesToAnotherDatabaseInAnArchive(t *testing.T) {
	t.Parallel()
	k, identity := newTalk(t), newIdentity(t)
	first := open(t, pgtest.Open(t))
	k.login(first)
	k.converse()
	k.say(k.friend.LID())
	k.logout()
	begun, id := k.chains(), instanceOf(t, first)

	var file bytes.Buffer
	written, err := migrate.WriteArchive(ctx, first, id, &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{identity.Recipient()}, Move: true})
	require.NoError(t, err)
	require.Empty(t, written.Skipped)
	require.NotContains(t, file.String(), k.friend.LID().User)
	second := open(t, pgtest.Open(t))
	for range 2 { // until it is used
		read, err := migrate.ReadArchive(ctx, second, bytes.NewReader(file.Bytes()), migrate.ReadArchiveOptions{Identities: []age.Identity{identity}, Exact: true})
		require.NoError(t, err)
		require.Equal(t, id, read.Instance)
		require.Equal(t, written.Counts["session"], read.Counts["session"])
	}
	k.login(second)
	k.converse()
	require.Zero(t, second.Stats().Healed)
	require.Equal(t, begun, k.chains())
	k.logout()
	_, err = migrate.ReadArchive(ctx, second, bytes.NewReader(file.Bytes()), migrate.ReadArchiveOptions{Identities: []age.Identity{identity}, Exact: true})
	require.ErrorIs(t, err, pgstore.ErrAlreadyTaken)

	k.login(first)
	require.EqualValues(t, 1, first.Stats().Healed)
	k.converse()
	k.judge()
}

// A copy is written while its client talks on, and whoever reads it begins everything anew.
func TestP4ACopyInAnArchiveIsHealed(t *testing.T) {
	t.Parallel()
	k, identity := newTalk(t), newIdentity(t)
	first := open(t, pgtest.Open(t))
	k.login(first)
	k.converse()
	begun, id := k.chains(), instanceOf(t, first)
	var file bytes.Buffer
	_, err := migrate.WriteArchive(ctx, first, id, &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{identity.Recipient()}})
	require.NoError(t, err)
	k.converse()
	require.Equal(t, begun, k.chains(), "nothing happened to it")
	k.logout()

	second := open(t, pgtest.Open(t))
	read := func(opts migrate.ReadArchiveOptions) error {
		opts.Identities = []age.Identity{identity}
		_, err := migrate.ReadArchive(ctx, second, bytes.NewReader(file.Bytes()), opts)
		return err
	}
	require.ErrorIs(t, read(migrate.ReadArchiveOptions{Exact: true}), migrate.ErrArchiveIsCopy)
	require.NoError(t, read(migrate.ReadArchiveOptions{Instance: "restored"}))
	require.Equal(t, "restored", instanceOf(t, second))
	k.login(second)
	require.EqualValues(t, 1, second.Stats().Healed)
	k.converse()
	require.Len(t, k.chains(), len(begun)+2)
	k.judge()
}

// Everything comes out of an archive as it went in, whether values are encrypted in the one database or in the other, each with a key of its own.
func TestEverythingIsInAnArchive(t *testing.T) {
	t.Parallel()
	for _, encrypted := range [][2]bool{{false, false}, {true, true}, {true, false}, {false, true}} {
		t.Run(fmt.Sprint(encrypted), func(t *testing.T) {
			t.Parallel()
			identity := newIdentity(t)
			dsns := [2]string{pgtest.Open(t), pgtest.Open(t)}
			var stores [2]*pgstore.Container
			for i, dsn := range dsns {
				stores[i] = open(t, dsn, func(cfg *pgstore.Config) {
					if encrypted[i] {
						line, err := encryption.NewKey("a")
						require.NoError(t, err)
						keys, err := encryption.Parse(line)
						require.NoError(t, err)
						cfg.Encryption, cfg.EncryptionMode = encryption.New(keys), pgstore.Encrypted
					}
				})
			}
			first, second := stores[0], stores[1]
			d := first.NewDevice()
			peer := fillDevice(t, d, first.NewDevice())
			before := answersOf(t, d, []string{peer})
			var file bytes.Buffer
			_, err := migrate.WriteArchive(ctx, first, pgstore.InstanceID(d), &file, migrate.WriteArchiveOptions{Recipients: []age.Recipient{identity.Recipient()}, Move: true})
			require.NoError(t, err)
			for range 2 {
				result, err := migrate.ReadArchive(ctx, second, bytes.NewReader(file.Bytes()), migrate.ReadArchiveOptions{Identities: []age.Identity{identity}, Exact: true})
				require.NoError(t, err)
				require.Empty(t, result.Skipped)
			}
			for i, dsn := range dsns {
				require.Equal(t, encrypted[i], scalar[bool](t, dsn, `SELECT bool_and(data ? 'enc') FROM whatsmeow.auth_keys`))
				require.Equal(t, encrypted[i], scalar[bool](t, dsn, `SELECT bool_or(data ? 'enc') FROM whatsmeow.auth_keys`))
			}
			moved, err := second.GetFirstDevice(ctx)
			require.NoError(t, err)
			after := answersOf(t, moved, []string{peer})
			require.NotNil(t, after.Sessions[peer])
			before.Sessions, after.Sessions = nil, nil // it was moved to its ceiling
			require.Equal(t, before, after)
		})
	}
}

// brokenWriter fails after so many bytes.
type brokenWriter struct{ left int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

// An archive that was cut off or changed anywhere imports nothing, and one that could not be written fences nothing.
func TestArchivesThatAreNotWholeImportNothing(t *testing.T) {
	t.Parallel()
	identity := newIdentity(t)
	c := open(t, pgtest.Open(t))
	d := c.NewDevice()
	fillDevice(t, d, c.NewDevice())
	id, to := pgstore.InstanceID(d), []age.Recipient{identity.Recipient()}
	var secrets []store.MessageSecretInsert
	for i := range 2000 {
		secrets = append(secrets, store.MessageSecretInsert{Chat: chat, Sender: chat, ID: strconv.Itoa(i), Secret: fill(byte(i), 32)})
	}
	require.NoError(t, d.MsgSecrets.PutMessageSecrets(ctx, secrets))
	_, err := migrate.WriteArchive(ctx, c, id, &brokenWriter{100_000}, migrate.WriteArchiveOptions{Recipients: to, Move: true})
	require.ErrorContains(t, err, "disk full")
	_, err = migrate.WriteArchive(ctx, c, id, io.Discard, migrate.WriteArchiveOptions{Move: true})
	require.Error(t, err, "nobody could read it")
	_, err = c.GetFirstDevice(ctx)
	require.NoError(t, err)
	require.Zero(t, c.Stats().Healed)
	var file bytes.Buffer
	_, err = migrate.WriteArchive(ctx, c, id, &file, migrate.WriteArchiveOptions{Recipients: to})
	require.NoError(t, err)

	other := open(t, pgtest.Open(t))
	read := func(data []byte, by age.Identity) error {
		_, err := migrate.ReadArchive(ctx, other, bytes.NewReader(data), migrate.ReadArchiveOptions{Identities: []age.Identity{by}})
		return err
	}
	whole := file.Bytes()
	for at := 0; at < len(whole); at += 1 + len(whole)/40 {
		require.ErrorIs(t, read(whole[:at], identity), migrate.ErrArchive, at)
		changed := slices.Clone(whole)
		changed[at] ^= 1
		require.ErrorIs(t, read(changed, identity), migrate.ErrArchive, at)
	}
	require.ErrorIs(t, read(append(slices.Clone(whole), 0), identity), migrate.ErrArchive)
	require.ErrorIs(t, read(whole, newIdentity(t)), migrate.ErrArchive)
	instances, err := other.Instances(ctx)
	require.NoError(t, err)
	require.Empty(t, instances)
	require.NoError(t, read(whole, identity))
}
