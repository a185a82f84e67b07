// Package life is tests of the whole life of a device: an unmodified whatsmeow client pairs, talks, is killed, comes back, is
// told of other people's new phones, loses its database for a while, and is removed again. The client runs in a process of
// its own, which can be killed, on pgstore or on sqlstore over PostgreSQL; the server is [waserver.Server], and so is everybody to whom
// the client talks.
//
//	go test ./internal/life                                       // the short form
//	go test ./internal/life -life.rounds=100 -life.away=30s -life.handovers=100 -timeout 60m
//	go test ./internal/life -run HandedOver -life.handovers=24 -life.jumps -timeout 30m
//	go test ./internal/life -run KilledWithItsDatabase -life.rounds=200 -timeout 30m
//	go test ./internal/life -parallel 5                           // much of it waits for PostgreSQL to start
//
// What both stores are held against is in the tests. Sqlstore is the reference, with one exception: where it sends and receives
// at once it uses message keys twice, and the contacts cannot read the messages. These are counted and logged.
//
// In some tests the database goes back in time: a cluster of its own ([pgtest.Cluster]) fails over to a standby that lacks what was committed last, is
// restored to a moment, or is put back as a volume is, while the client lives, is dead, or stands still. The server's record of what it was sent
// tells whether a message key came back; with pgstore's mechanism switched off it has to.
//
// The child is this test binary under another environment variable. Under the race detector the client itself races when it connects
// again while sends are on their way, so a child's races do not end it; they are read afterwards, and fail the test where one of the
// two accesses is in this module.
package life
