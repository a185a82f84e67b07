package cache_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// Whatever instances, keys and scopes are called, what was put is found by its name and by every prefix of it, and nothing else is; evicted or not,
// and after the instance was opened anew.
func FuzzP1KeysOfAnyNameAreFound(f *testing.F) {
	everything := []byte{0, 16, 32, 48, 64, 4, 20, 36, 52, 68, 8, 24, 40, 56, 72, 12, 28, 44, 60, 76, 2, 1, 21, 41, 61, 3, 19, 9, 2, 8, 24}
	for _, s := range []string{"", "a", "a|b", "\x00", "\xff\xfe", "ä", strings.Repeat("n", 2000)} {
		f.Add(s, s, s+"b", "a", everything)
		f.Add("i", "a", s, s, everything)
	}
	f.Fuzz(func(t *testing.T, name, a, b, prefix string, ops []byte) {
		d := &disk{rows: make(map[cache.Key]string)}
		c := newCache(int64(len(ops)%2) * 10) // in every other run it evicts
		inst := openNamed(t, c, d, name)
		model := make(map[cache.Key]string)
		ids := []string{a, b, a + b, prefix + a, ""}
		for n, op := range ops {
			k := key(cache.Type(op>>2%4), ids[int(op>>4)%len(ids)])
			switch op % 4 {
			case 0:
				v := strings.Repeat("v", n)
				put(t, inst, d, k, v)
				model[k] = v
			case 1:
				require.NoError(t, inst.Update(ctx, nil, d.commit, func(w *cache.View[string]) error {
					w.Delete(k)
					return nil
				}))
				delete(model, k)
			case 2:
				d.flush(inst)
			case 3:
				inst.DropScope(scoped, scopeOf(k))
			}
		}
		requireHolds(t, inst, model, ids, []string{prefix, a, b, ""})
		d.flush(inst)
		c.Forget(inst, errors.New("closed"))
		require.Nil(t, c.Lookup(name))
		inst = openNamed(t, c, d, name)
		require.Same(t, inst, c.Lookup(name))
		requireHolds(t, inst, model, ids, []string{prefix, a, b, ""})
	})
}

// requireHolds compares the keys with these ids, and all that begin with these prefixes, with a model.
func requireHolds(t *testing.T, inst *cache.Instance[string], model map[cache.Key]string, ids, prefixes []string) {
	t.Helper()
	for _, kind := range []cache.Type{resident, keysOnly, scoped, onDemand} {
		for _, id := range ids {
			k := key(kind, id)
			got, found, err := inst.Get(ctx, nil, k)
			require.NoError(t, err)
			want, there := model[k]
			require.Equal(t, there, found, k)
			require.Equal(t, want, got, k)
		}
	}
	for _, kind := range []cache.Type{resident, keysOnly} { // all keys of these are in memory
		for _, prefix := range prefixes {
			var got []string
			require.NoError(t, inst.Read(ctx, nil, func(v *cache.View[string]) error {
				got = v.IDs(kind, prefix)
				return nil
			}))
			var want []string
			for k := range maps.Keys(model) {
				if k.Type == kind && strings.HasPrefix(k.ID, prefix) {
					want = append(want, k.ID)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			require.Equal(t, want, got, "%v %q", kind, prefix)
		}
	}
}
