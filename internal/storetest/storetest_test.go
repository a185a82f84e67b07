package storetest_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/storetest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m.Run)) }

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("backends", func(t *testing.T) {
		for _, b := range []storetest.Backend{
			storetest.Pgstore("pgstore", func(*pgstore.Config) {}),
			storetest.Pgstore("pgstore that evicts all it may", func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }),
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
