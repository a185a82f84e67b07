package cache

// Held says what memory knows of a key.
type Held uint8

const (
	// HeldClean keys have their durable value in memory.
	HeldClean Held = iota
	// HeldDirty keys have a value, or are deleted, and that is not durable yet.
	HeldDirty
	// HeldNot keys exist, but their value is not in memory.
	HeldNot
	// HeldUnknown keys are not in memory at all: of a type that is held whole they do not exist.
	HeldUnknown
)

// Rewrite goes through all keys in memory, and through others that are not, at one moment: nothing is read, written or evicted meanwhile. decide
// says what to write, if anything; the value it gets is the zero value where there is none. What was fetched before counts no more, so that it is
// asked for again. commit is as in [Instance.Update]. Its writes become visible as those of an update do.
func (inst *Instance[V]) Rewrite(others []Key, commit Commit[V], decide func(k Key, held Held, value V) (Write[V], bool)) error {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	if inst.mu.gone != nil {
		return inst.mu.gone
	}
	for f := range inst.mu.fetches {
		f.stale = true
	}
	var writes []Write[V]
	ask := func(k Key, held Held, value V) {
		if w, ok := decide(k, held, value); ok {
			writes = append(writes, w)
		}
	}
	for t, byID := range inst.mu.entries {
		for id, e := range byID {
			held := HeldClean
			switch {
			case e.dirty:
				held = HeldDirty
			case e.state == evicted:
				held = HeldNot
			}
			ask(Key{t, id}, held, e.value)
		}
	}
	for _, k := range others {
		if inst.mu.entries[k.Type][k.ID] == nil {
			var none V
			ask(k, HeldUnknown, none)
		}
	}
	if len(writes) == 0 {
		return commit(nil)
	}
	return inst.applyLocked(writes, commit)
}
