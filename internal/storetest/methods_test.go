package storetest

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
)

// A method that a newer whatsmeow adds has to be added here, or no case would call it.
func TestEveryMethodIsCalled(t *testing.T) {
	t.Parallel()
	var listed, existing []string
	for _, m := range slices.Concat(puts, removals, reads) {
		listed = append(listed, m.name)
	}
	for m := range reflect.TypeFor[store.AllSessionSpecificStores]().Methods() {
		existing = append(existing, m.Name)
	}
	require.ElementsMatch(t, existing, listed)
}
