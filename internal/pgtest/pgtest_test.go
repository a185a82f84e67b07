package pgtest

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStartSaysWhichDatabaseTheEnvironmentNames(t *testing.T) {
	t.Setenv("PGSTORE_TEST_DSN", "")
	t.Setenv("DATABASE_URL", "postgres://ada:secret@db.example:5433/shop")
	server, err := Start(t.Context())
	require.NoError(t, err)
	require.Equal(t, "shop on db.example:5433, which DATABASE_URL names", server.Description)

	t.Setenv("PGSTORE_TEST_DSN", "postgres://ada:secret@db.example:port/shop")
	_, err = Start(t.Context())
	require.ErrorContains(t, err, "PGSTORE_TEST_DSN: ")
	require.NotContains(t, err.Error(), "secret")
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Setenv("PGSTORE_TEST_DSN", "")
	t.Setenv("DATABASE_URL", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Start(ctx)
	require.Equal(t, context.Canceled, err)
}

func TestStartLocalLeavesNothingWhenItFails(t *testing.T) {
	if _, err := binaries(); err != nil {
		Missing(t, "a PostgreSQL that is installed")
	}
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := startLocal(ctx)
	require.ErrorIs(t, err, context.Canceled)
	left, err := os.ReadDir(temporary)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAKilledServerComesBackWithWhatWasCommitted(t *testing.T) {
	for name, start := range map[string]func(context.Context) (*Server, error){"Docker": startDocker, "local": startLocal} {
		t.Run(name, func(t *testing.T) {
			server, err := start(t.Context())
			if err != nil {
				Missing(t, err.Error())
			}
			defer func() { require.NoError(t, server.Stop()) }()
			require.NoError(t, server.exec(t.Context(), `CREATE TABLE kept ()`))
			require.NoError(t, server.Kill(t.Context()))
			require.NoError(t, server.exec(t.Context(), `TABLE kept`))
		})
	}
}
