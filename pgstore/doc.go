// Package pgstore keeps everything that a whatsmeow client must not lose in PostgreSQL: credentials, Signal sessions,
// pre-keys, sender keys, app state, contacts. A bot replaces sqlstore.New by [New] and does not scan a QR code again after a
// restart.
//
// # How it works
//
// Every key of a device is a row of one typed table, auth_keys. When a device is opened, its instance is taken (no other
// process can write it from then on) and its keys are loaded into memory. A read is answered from there. A write is
// visible when the method returns, and is saved behind its back: writes of all instances are gathered for a few
// milliseconds, those of one key become one, and a single statement makes them durable. So encrypting and decrypting send
// no statement of their own. Package cache holds the keys, package batcher saves them; both say how in their own comments.
//
// # What is waited for
//
// Some writes return only when they are durable: credentials and generated pre-keys, which others rely on;
// deletions of a device; sends on chains that the database does not know yet, or else as [Config].Sends says; and what the server sends only once (a new sender key of somebody
// else, an app-state sync key, the NCT salt), this only for [Config].OutageWait.
//
// With [Config].DurableAcks and EnableDecryptedEventBuffer on the client, no message whose handler returned is lost.
// Except: what the client stores from goroutines of its own (key shares, history syncs), and messages whose receipts are
// sent as peer_msg or hist_sync, may be acknowledged before they are stored. Notifications and receipts need
// SynchronousAck on the client.
//
// # What happens at once
//
// Sends and decrypts of one session may overlap, as they do in a bot that answers from goroutines. A Put never takes a
// sending chain back: it is merged with what was stored meanwhile. Two sends that encrypted with one message key cannot be merged, and the
// later gets [ErrMessageKeyUsed]: its message does not leave, send it again.
//
// # After a crash
//
// Sends are written behind, so what the database holds of a sending chain is behind what has left. Every row of a chain therefore reserves counters
// ahead, and a send that stays below them waits for nothing ([Reserved]); after an unclean end the chain is moved past them before it is
// used, so that no message key encrypts twice and the peer sees a gap, which it bridges. ceilings.go states the whole scheme.
//
// # A database that goes back
//
// After a failover that lost writes or the restore of a backup the rows are older than what has left. Their sending chains are abandoned, and what
// else was published is made anew, by who takes an instance and by who has it; replay.go says how, [Heal] and [Trust] when. A snapshot of a
// volume or a virtual machine is noticed by a living owner and by a [Witness] alone.
//
// # Moving in and out
//
// A device that is paired elsewhere begins here with [Container.Import], and leaves with [Container.Export], which fences what stays behind; both are all or nothing.
// Package migrate reads and writes sqlstore, Baileys' folders and encrypted archives with them. [Container.Erase] leaves nothing of an instance.
//
// # When the database is away
//
// Encrypting and decrypting go on from memory, writes wait in memory up to [Config].PendingLimit and [Config].PendingBytes, and then
// writers block until their context ends. Reads of what is not held in memory (message secrets, outgoing events, app-state MACs,
// old buffered events) wait until their context ends. Nothing is dropped, and nothing absent is made up.
//
// # Errors
//
// Errors carry the operation and the type of a key, never key material. What the store refuses although the message is
// good ([ErrClosed], [ErrOwnershipLost], [ErrDatabaseRewound], [ErrRefused], [ErrUnavailable], [ErrCorrupt] of credentials) also matches context.Canceled: then the
// client sends neither an acknowledgement nor a retry receipt, and the server delivers the message again. So does
// [ErrMessageKeyUsed], which only sends get; test for these before context.Canceled.
//
// # Seeing inside
//
// [Container.Stats] has the counters, [Container.Observe] tells of what has a length or a kind, [Container.Health] of what is not as it should be. Packages
// metrics, health and tracing beside this one show them to Prometheus, to probes and to OpenTelemetry; who does not import these compiles nothing of
// them.
//
// # Encryption at rest
//
// With [Config].Encryption values are encrypted before they leave the process, under a data key for each instance that is wrapped by a key outside of the database. Package
// encryption does it; encryption.go says what a row is bound to, and how far it is noticed that an older one was put back.
//
// # What is open and who closes it
//
// [New] opens a pool of its own, which [Container.Close] closes; a pool in [Config].Pool is closed by whoever made it,
// after the container. Disconnect the clients first, then close the container.
package pgstore
