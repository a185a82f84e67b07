package appstate

// One collection: what is set, the hash over it, and how it came about. Mutations of a patch count one after the other:
// what one sets, a later one of the same patch may set anew or remove.

import (
	"cmp"
	"maps"
	"slices"

	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/appstate/lthash"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/proto/waSyncAction"
)

// collection is one collection of settings. All of it is guarded by the lock of its [State].
type collection struct {
	name     client.WAPatchName
	version  uint64
	sum      [128]byte
	settings map[string]setting // by index MAC
	patches  [][]byte           // as they are handed out; the first one led to version 1
	snapshot *snapshot          // nil until one is taken
	corrupt  uint64             // the version that does not verify, or 0
}

// setting is one that is set.
type setting struct {
	order  int // grows with every set
	record *waServerSync.SyncdRecord
	data   *waSyncAction.SyncActionData
}

// snapshot is the state of a collection at some version, as a blob.
type snapshot struct {
	version   uint64
	reference []byte // to the blob, as it is handed out
}

// change is a mutation and its plaintext.
type change struct {
	*waServerSync.SyncdMutation
	data *waSyncAction.SyncActionData
}

func newCollection(name client.WAPatchName) *collection {
	return &collection{name: name, settings: make(map[string]setting)}
}

// after is what a collection is after some changes: its settings and its hash.
func (c *collection) after(changes []change) (map[string]setting, [128]byte) {
	settings := maps.Clone(c.settings)
	order := 0
	for _, s := range settings {
		order = max(order, s.order)
	}
	var added, removed [][]byte
	for _, m := range changes {
		index := string(m.GetRecord().GetIndex().GetBlob())
		if old, ok := settings[index]; ok {
			removed = append(removed, valueMAC(old.record))
			delete(settings, index)
		}
		if m.GetOperation() == waServerSync.SyncdMutation_SET {
			order++
			added = append(added, valueMAC(m.GetRecord()))
			settings[index] = setting{order: order, record: m.GetRecord(), data: m.data}
		}
	}
	return settings, [128]byte(lthash.WAPatchIntegrity.SubtractThenAdd(c.sum[:], removed, added))
}

// inOrder are the settings in the order in which they were set.
func (c *collection) inOrder() []setting {
	return slices.SortedFunc(maps.Values(c.settings), func(a, b setting) int { return cmp.Compare(a.order, b.order) })
}

// withIndex are the settings of an index, one for each key under which it is set, the oldest first.
func (c *collection) withIndex(index []byte) []setting {
	return slices.DeleteFunc(c.inOrder(), func(s setting) bool { return string(s.data.GetIndex()) != string(index) })
}
