package storetest

import "sync"

// Differences lists where pgstore answers otherwise than sqlstore, and why.
var Differences = map[string]string{
	"MAC twice in one call":                   "sqlstore fails after it has stored the version; a patch may hold an index twice, the last one counts",
	"pre-key ids":                             "sqlstore takes the highest surviving id + 1, so an id comes back after its removal; ours come from a persistent counter",
	"no privacy tokens":                       "sqlstore sends an empty VALUES list, which is a syntax error; ours does nothing",
	"privacy token twice in one call":         "sqlstore's upsert fails whole on PostgreSQL; of ours the newest wins",
	"privacy tokens of equal age":             "sqlstore takes any; ours the one with the newer sender timestamp",
	"privacy tokens after deletion":           "sqlstore's table has no foreign key, so tokens outlive their device; ours leaves nothing",
	"wildcard in an address":                  "sqlstore uses LIKE, where _ matches any character; ours matches exactly",
	"NUL and broken UTF-8":                    "PostgreSQL refuses them in text, SQLite does not; ours stores them losslessly everywhere",
	"old stores of a deleted device":          "sqlstore answers from empty tables and fails on foreign keys; ours answers ErrDeviceDeleted",
	"migration to another LID":                "sqlstore remembers that a phone number was migrated, whatever the LID; ours migrates again when the LID changed",
	"other keys under a JID":                  "sqlstore keeps the old keys in silence; ours says ErrDeviceConflict",
	"old hashes of other devices":             "sqlstore prunes those of all devices in the database; ours of the instances that the container has taken, as nobody else may write them",
	"empty JID":                               "sqlstore writes NULL, which PostgreSQL refuses and SQLite never finds again; the client passes empty JIDs, ours are a key like another",
	"empty plaintext":                         "SQLite reads it back as nil, which stands for an event that was processed; ours is what it was",
	"empty records":                           "sqlstore stores an empty session, which then cannot be parsed; ours refuses it",
	"contacts after a decryption that failed": "sqlstore's cache of contacts keeps what was rolled back; ours answers what is stored",
	"migration after one that failed":         "sqlstore remembers a migration before it succeeds, so one that was rolled back is never made; ours is",
	"migration of what came later":            "sqlstore moves a number once; ours moves what is stored for it later, when it is asked again: the session of a first message that left while the LID became known",
	"a context that ended":                    "sqlstore stores nothing; ours keeps what was put, since the ratchet has moved on in the caller's hands",
	"app state key without data":              "SQLite and PostgreSQL store empty data, which the client would expand to a key; ours refuses it",
}

// exercised notes which differences a case has looked up.
var exercised sync.Map

// Differs says whether the subject is one that answers otherwise, as [Differences] says under name.
func (s *Subject) Differs(name string) bool {
	if _, known := Differences[name]; !known {
		panic("storetest: no such difference: " + name)
	}
	exercised.Store(name, true)
	return s.Backend.Ours
}

// Unexercised lists the differences that no case has looked up.
func Unexercised() (names []string) {
	for name := range Differences {
		if _, ok := exercised.Load(name); !ok {
			names = append(names, name)
		}
	}
	return names
}
