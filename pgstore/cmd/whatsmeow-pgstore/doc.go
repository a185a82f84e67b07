// Command whatsmeow-pgstore looks after the databases of package pgstore: it migrates them, shows what is in them and who has it, checks them, and does by hand
// what an operator now and then has to.
//
//	go install github.com/wataki/whatsmeow-pgstore/pgstore/cmd/whatsmeow-pgstore@latest
//	export PGSTORE_DSN=postgres://…
//	whatsmeow-pgstore doctor
//
// The database is named by --dsn or PGSTORE_DSN; other users of a machine can read command lines, so the latter, without a password and with a passfile, is better.
//
// # What it changes
//
// Commands that look take no instance and change nothing. Those that change an instance (heal, release, prune) take it as every process does, so that whoever had it is told
// and stops; from a process that lives they take it only with --force. Nothing that is printed has key material in it, nor the DSN's password.
//
// # JSON
//
// With --json, standard output has one JSON object, or one a line for what goes on (audit tail). Fields have the names that `<command> --help` lists, and keep them; times
// are RFC 3339, durations are seconds, sizes bytes. What goes wrong is told on standard error, as text.
//
// # Exit codes
//
//	0  fine
//	1  it failed
//	2  it was called wrongly
//	3  something was found by doctor, audit verify or drill
//	4  refused, as for an instance that a living process has
//	5  the database is away
package main
