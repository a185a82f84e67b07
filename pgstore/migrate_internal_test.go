package pgstore

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// Two processes that find an old schema migrate it one after the other: the second finds what the first has done, whatever the schema is called.
func TestMigratingAgainChangesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dsn := pgtest.Open(t)
	for _, schema := range []string{DefaultSchema, "select"} {
		c, err := NewWithConfig(ctx, Config{DSN: dsn, Schema: schema})
		require.NoError(t, err)
		require.NoError(t, c.tryMigrate(ctx))
		require.NoError(t, c.Close())
	}
}
