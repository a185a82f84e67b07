package pgstore_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// A server that wants certificates gets them from the DSN, on each connection that the container opens: those of the pool, of the lease and of what listens. Whoever shows
// none, a stranger's or another role's is not let in, and a server that cannot show one is not talked to.
func TestP12TLSWithClientCertificates(t *testing.T) {
	t.Parallel()
	s := pgtest.NewTLS(t)
	cert, key := s.Certificate("postgres")
	dsn := s.DSN("postgres", "sslcert", cert, "sslkey", key)
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Lease: time.Second})
	require.NoError(t, err)
	pair(t, c.NewDevice())
	require.EqualValues(t, 1, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.owners WHERE alive`))
	require.NotZero(t, scalar[int](t, dsn, `SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_port > 0`))
	require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_port > 0 AND (NOT ssl OR client_dn <> '/CN=postgres')`))
	require.NoError(t, c.Close())

	root, foreign, foreignKey := s.Stranger("postgres")
	other, otherKey := s.Certificate("somebody")
	for name, refused := range map[string]string{
		"without a certificate":           s.DSN("postgres"),
		"with a stranger's":               s.DSN("postgres", "sslcert", foreign, "sslkey", foreignKey),
		"with another role's":             s.DSN("postgres", "sslcert", other, "sslkey", otherKey),
		"a server that a stranger signed": s.DSN("postgres", "sslcert", cert, "sslkey", key, "sslrootcert", root),
		"a server of another name":        strings.Replace(dsn, "127.0.0.1", "localhost", 1),
		"without TLS":                     s.DSN("postgres", "sslmode", "disable"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := pgstore.New(within(t, 20*time.Second), refused, nil)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "PRIVATE KEY")
			t.Log(err)
		})
	}
}
