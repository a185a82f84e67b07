package storetest_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

func TestMain(m *testing.M) {
	// A panic in a decryption leaves sqlstore's transaction open for ever.
	os.Exit(pgtest.Main(m.Run, goleak.IgnoreTopFunction("database/sql.(*Tx).awaitDone"), goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener")))
}

// encrypted is a configuration with encryption and a key of its own.
func encrypted(t testing.TB) func(*pgstore.Config) {
	key, err := encryption.NewKey("test")
	require.NoError(t, err)
	keys, err := encryption.Parse(key)
	require.NoError(t, err)
	return func(cfg *pgstore.Config) {
		cfg.Encryption, cfg.EncryptionMode = encryption.New(keys), pgstore.Encrypted
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("backends", func(t *testing.T) {
		for _, b := range []storetest.Backend{
			storetest.Pgstore("pgstore", func(*pgstore.Config) {}),
			storetest.Pgstore("pgstore that evicts all it may", func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }),
			storetest.Pgstore("pgstore that encrypts", encrypted(t)),
			storetest.Pgstore("pgstore that encrypts and evicts all it may", encrypted(t), func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }),
			storetest.SqlstorePostgres(),
			storetest.SqlstoreSQLite(),
		} {
			t.Run(b.Name, func(t *testing.T) {
				t.Parallel()
				storetest.Conformance(t, b)
			})
		}
	})
	require.Empty(t, storetest.Unexercised(), "differences that no case looks at")
}

var (
	seeds = flag.Int("differential.seeds", 3, "random sequences to compare with sqlstore; the long form is 10")
	steps = flag.Int("differential.steps", 1000, "calls in each; the long form is 10000")
)

func TestDifferential(t *testing.T) {
	t.Parallel()
	for seed := range *seeds {
		for _, ours := range []storetest.Backend{
			storetest.Pgstore("in memory", func(*pgstore.Config) {}),
			storetest.Pgstore("evicting", func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }),
			storetest.Pgstore("encrypting and evicting", encrypted(t), func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }),
		} {
			t.Run(fmt.Sprintf("seed %d %s", seed, ours.Name), func(t *testing.T) {
				t.Parallel()
				storetest.Differential(t, ours, storetest.SqlstoreSQLite(), uint64(seed), *steps)
			})
		}
	}
}

func TestP7AContextThatEndsInTheMiddleOfACallLosesNothing(t *testing.T) {
	t.Parallel()
	for mode, sends := range map[string]pgstore.SendMode{"Reserved": pgstore.Reserved, "Durable": pgstore.Durable, "WriteBehind": pgstore.WriteBehind} {
		for memory, budget := range map[string]int64{"resident": 0, "evicting": 1} {
			t.Run(mode+" "+memory, func(t *testing.T) {
				t.Parallel()
				storetest.Cancelled(t, func(cfg *pgstore.Config) { cfg.Sends, cfg.MemoryBudget = sends, budget })
			})
		}
	}
}

func TestP8EveryCallAfterCloseMatchesCanceled(t *testing.T) {
	t.Parallel()
	storetest.Closed(t, storetest.Pgstore("pgstore", func(*pgstore.Config) {}))
}
