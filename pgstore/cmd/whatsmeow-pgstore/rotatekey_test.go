package main_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

func TestRotateKey(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	dir := t.TempDir()
	first, err := encryption.NewKey("2026")
	require.NoError(t, err)
	second, err := encryption.NewKey("2027")
	require.NoError(t, err)
	for _, key := range []string{first, second} {
		s.secrets.Add("wrapping key", []byte(key[len("2026:"):]))
	}
	write(t, dir+"/old", first+"\n")
	write(t, dir+"/both", second+"\n"+first+"\n")
	write(t, dir+"/new", second+"\n")
	write(t, dir+"/broken", second[:20]+"\n")
	encrypted := func(path string) func(*pgstore.Config) {
		return func(cfg *pgstore.Config) {
			keys, err := encryption.FromFile(path)
			require.NoError(t, err)
			cfg.Encryption = encryption.New(keys)
		}
	}
	plain := s.open()
	s.pair(plain, "plain")
	require.NoError(t, plain.Close())
	s.fails(2, "rotate-key")
	s.fails(1, "rotate-key", "--keys", dir+"/broken")
	require.Contains(t, s.fails(4, "rotate-key", "--keys", dir+"/old"), "no instance of this database is encrypted")
	s.ok("release", "plain", "--keys", dir+"/old")
	require.Zero(t, scalar[int](s, `SELECT count(*) FROM whatsmeow.encryption`), "only a program of the installation begins with it")
	s.exec(`DELETE FROM whatsmeow.instances`)

	c := s.open(encrypted(dir + "/old"))
	_, peer := s.pair(c, "shop-1")
	type rotation struct {
		WrappingKey string `json:"wrapping_key"`
		Rewrapped   int
		Rotated     []string
	}
	require.Equal(t, rotation{WrappingKey: "2027", Rewrapped: 1, Rotated: []string{}}, parse[rotation](t, s.ok("rotate-key", "--keys", dir+"/both", "--json")))
	require.NoError(t, c.Flush(ctx), "nobody who has an instance notices")
	require.Contains(t, s.ok("rotate-key", "--keys", dir+"/both"), "0 data keys")
	require.Contains(t, s.fails(4, "rotate-key", "shop-1", "--keys", dir+"/both"), "which lives")
	require.NoError(t, c.Close())

	require.Contains(t, s.fails(2, "heal", "shop-1", "--yes"), "are encrypted")
	s.fails(1, "heal", "shop-1", "--yes", "--keys", dir+"/old")
	was := scalar[string](s, `SELECT id FROM whatsmeow.encryption`)
	require.Equal(t, rotation{WrappingKey: "2027", Rotated: []string{"shop-1"}}, parse[rotation](t, s.ok("rotate-key", "shop-1", "--keys", dir+"/new", "--json")))
	require.NotEqual(t, was, scalar[string](s, `SELECT id FROM whatsmeow.encryption`))
	require.Zero(t, scalar[int](s, `SELECT sum(keys - encrypted) FROM whatsmeow.instance_sizes`))
	require.True(t, scalar[bool](s, `SELECT process IS NULL AND clean_at_epoch = epoch FROM whatsmeow.instances`))

	// The other commands can do with it what they do.
	s.exec(`UPDATE whatsmeow.instances SET system = 'another'`)
	require.Contains(t, s.ok("drill", "--keys", dir+"/new"), "1 instances, 1 healed")
	next, err := s.open(encrypted(dir+"/new")).Instance(ctx, "shop-1")
	require.NoError(t, err)
	ours := signaltest.NewPeer(next)
	signaltest.Say(t, peer, ours, "in")
	signaltest.Say(t, ours, peer, "out")
}
