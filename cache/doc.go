// Package cache keeps the typed keys of many instances in memory.
//
// It knows keys and values, nothing of SQL or of WhatsApp. A [Cache] holds one
// [Instance] per owner of keys; every instance has its own lock, so instances
// never wait for each other, and no lock is held while a value is fetched.
//
// # The algorithm
//
// An instance maps a [Key] to an entry. An entry is in one of these states:
//
//	value      the value is in memory
//	deleted    a tombstone: a deletion that is not yet durable
//	evicted    the key exists, its value must be fetched
//
// and it is dirty from the moment it is written until [Instance.Durable] reports
// that very version. What a missing entry means depends on the [Residency] of the type:
//
//	Resident   there is no such key: all keys were loaded when the instance was opened
//	KeysOnly   the same, but values of clean entries are not kept
//	Scoped     there is no such key if the key's scope is loaded, else unknown
//	OnDemand   unknown: it has to be fetched
//
// Everything happens in a [View]: reads see the view's own writes first, then
// the instance. A view that meets an unknown value notes it; its effects are
// then thrown away, the value is fetched with no lock held, and the view runs
// again. So a function given to [Instance.Read] or [Instance.Update] may run more
// than once and must not keep anything from a run that did not return last; [View.Then] is for what must
// happen with the run that counts.
//
// # Invariants
//
//  1. A write is visible to every later view when Update returns.
//  2. The order in which writes become visible is the order in which Commit is
//     called: both happen under the instance's lock.
//  3. A fetch never hides a newer write: a fetch records the keys that are written
//     while it runs and its answer for those is ignored, even when the write
//     has become durable and was evicted in the meantime.
//  4. Eviction takes clean values only.
package cache
