// Package migrate moves devices in and out: from whatsmeow's sqlstore and back, from the folders of Baileys, and between databases of this library.
// No QR code is scanned again.
//
//	db, err := sql.Open("sqlite", "file:bot.db?_pragma=foreign_keys(1)")
//	results, err := migrate.FromSqlstore(ctx, container, migrate.Sqlstore{DB: db, Dialect: "sqlite3"}, migrate.Options{Exact: true})
//
// # The one thing to get right
//
// A device has one life. While a client uses the source, or after one has used it again, what was moved is old, and a message key could encrypt twice. So:
// stop the client, move, and start it on the other store; never start the old one again. Exact is your word for that. Without it no harm is done: every sending
// chain is abandoned, and the next message to each device begins a new session.
package migrate
