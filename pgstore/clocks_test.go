package pgstore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// wallClock are the methods of time.Time that answer by the wall clock, or whose answer has no other one.
var wallClock = []string{
	"Unix", "UnixMilli", "UnixMicro", "UnixNano", "UTC", "Local", "In", "AddDate", "Format", "AppendFormat", "Date", "Clock", "Round", "Truncate",
	"MarshalJSON", "MarshalText", "MarshalBinary",
}

// Two readings of time.Now are compared by the monotonic clock, unless one of them was stripped of it. So a wall clock that jumps changes nothing of leases, takes, flushes
// and retries as long as none of these methods is used there: the processes agree by the database's clock alone. What is dated by the wall clock is dated so in sqlstore, too: how
// long a chat is mute, when events were buffered and privacy tokens were issued, which are kept for days. (internal/life, -life.jumps, lets the clocks of real processes jump.)
func TestP6NoWallClockDecidesWhoOwnsWhat(t *testing.T) {
	t.Parallel()
	var files []string
	for _, dir := range []string{".", "../batcher", "../cache"} {
		sources, err := filepath.Glob(dir + "/*.go")
		require.NoError(t, err)
		for _, source := range sources {
			if strings.HasSuffix(source, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
			require.NoError(t, err)
			ast.Inspect(parsed, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				of, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || !slices.Contains(wallClock, of.Sel.Name) {
					return true
				}
				if pkg, ok := of.X.(*ast.Ident); ok && pkg.Name == "time" { // a constructor
					return true
				}
				files = append(files, filepath.ToSlash(source))
				return true
			})
		}
	}
	slices.Sort(files)
	require.Equal(t, []string{"contacts.go", "eventbuffer.go", "secrets.go"}, slices.Compact(files))
}
