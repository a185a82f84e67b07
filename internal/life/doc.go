// Package life is tests of the whole life of a device: an unmodified whatsmeow client pairs, talks, is killed, comes back, is
// told of other people's new phones, loses its database for a while, and is removed again. The client runs in a process of
// its own, which can be killed, on pgstore or on sqlstore over PostgreSQL; the server is [waserver.Server], and so is everybody to whom
// the client talks.
//
//	go test ./internal/life                                       // the short form
//	go test ./internal/life -life.rounds=100 -life.away=30s -life.handovers=100 -timeout 60m
//
// What both stores are held against is in the tests. Sqlstore is the reference, with one exception: where it sends and receives
// at once it uses message keys twice, and the contacts cannot read the messages. These are counted and logged.
//
// The child is this test binary under another environment variable. Under the race detector the client itself races when it connects
// again while sends are on their way, so a child's races do not end it; they are read afterwards, and fail the test where one of the
// two accesses is in this module.
package life
