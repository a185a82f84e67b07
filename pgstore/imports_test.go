package pgstore_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A bot that imports pgstore compiles these modules and no other. Whoever adds one has to say so here.
func TestImportGraphOfPgstore(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".").Output()
	require.NoError(t, err)
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	require.Equal(t, []string{
		"filippo.io/edwards25519",
		"github.com/cenkalti/backoff/v5",
		"github.com/google/uuid",
		"github.com/jackc/pgpassfile",
		"github.com/jackc/pgservicefile",
		"github.com/jackc/pgx/v5",
		"github.com/jackc/puddle/v2",
		"github.com/mattn/go-colorable",
		"github.com/mattn/go-isatty",
		"github.com/mfridman/interpolate",
		"github.com/pressly/goose/v3",
		"github.com/rs/zerolog",
		"github.com/sethvargo/go-retry",
		"github.com/wataki/whatsmeow-pgstore",
		"go.mau.fi/libsignal",
		"go.mau.fi/util",
		"go.mau.fi/whatsmeow",
		"go.uber.org/multierr",
		"golang.org/x/crypto",
		"golang.org/x/sync",
		"golang.org/x/sys",
		"golang.org/x/text",
		"golang.org/x/time",
		"google.golang.org/protobuf",
	}, slices.Compact(modules))

	packages, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	for _, p := range []string{"testing", "go.mau.fi/whatsmeow", "go.mau.fi/whatsmeow/store/sqlstore", "github.com/wataki/whatsmeow-pgstore/internal/pgtest"} {
		require.NotContains(t, strings.Fields(string(packages)), p)
	}
}
