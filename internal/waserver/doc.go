// Package waserver is a stand-in for WhatsApp's servers and for everybody who talks through them: an unmodified whatsmeow
// client connects, pairs, logs in, sends and receives on it. It is a test instrument for what a device store must survive.
//
//	server, err := waserver.New(waserver.Config{})
//	account := server.NewAccount("")                         // a phone without clients
//	friend := server.NewContact(waserver.ContactConfig{})    // somebody with a phone
//	err = server.Attach(client)                              // or server.Endpoint(), in another process
//	err = client.Connect()                                   // shows a QR code
//	device, err := account.Scan(ctx, code)                   // or EnterCode
//	friend.Echo("you said: ")
//	_, err = client.SendMessage(ctx, friend.PN(), message)
//	got, err := friend.WaitReceived(ctx, waserver.Text("hello"))
//	err = account.Apply(ctx, appstate.Contact(friend.PN(), "Ada", "Ada Lovelace"))
//	h, err := account.SendHistory(ctx, device, history.Spec{People: history.People(1, 20), Messages: 500})
//
// A person can watch a client run against it: go run ./internal/waserver/cmd/waserver.
//
// # What it is made of
//
// There is a file for each duty, named after the client's file that it answers; each begins with how that duty works.
// [Server.Inject] puts faults in place, [Server.Stats] counts, and [Server.Record] has every ciphertext that any client sent:
// [Record.Reused] names message keys, counters and pre-keys that were used twice, and sending chains that went back. Contacts do real Signal on stores of
// their own (package contact) and hold against a client what a phone would: they refuse another identity at an address that
// they know, and a counter that they have seen.
//
// A server keeps everything in memory and forgets nothing: messages wait for a device until it acknowledges them, and come
// again on each connection until then. What a client wrote on a connection that a fault has cut is not handled, but it is
// recorded: a key is used when its ciphertext leaves.
//
// # What is not simulated
//
// Further namespaces go into the table in request.go, further HTTP paths to [Server.Handle]. History on demand, messages that
// a client asks its own phone for, and attachments that are gone are not answered. Clients are not told that collections
// are dirty; what changed while they were away is in their mailboxes. Group messages of contacts are not delivered to other contacts. Contacts
// are always online. Presence, chat states and calls are taken and dropped. Clients that belong to different accounts may
// talk to each other; what they derive is not in the record, but what the wire shows is.
//
// # What the client does, learnt by simulating its server
//
// Connections and logins:
//
//   - A node that is read together with the end of the connection may never be handled: the client's handler loop chooses
//     between the two at random. Stream errors, failures and 515 must be followed by a moment of silence before the end.
//   - The client does not close the connection itself after <failure>, after 401 and after <conflict type="replaced">; it waits
//     for the server to do it. It deletes its store while the connection is still open.
//   - A login carries user, device and the static Noise key, nothing else of what was paired. Registration id and identity show
//     only in uploads of pre-keys, in retry receipts and in first messages; that is where this server compares them, and refuses them.
//   - <success> must have t and lid; lid is the device's own JID, with its device number. Another one than is stored makes the
//     client save its device again.
//   - The client dispatches Connected only after the counts of pre-keys, perhaps an upload, and <active>. Nothing is delivered
//     here before <active>.
//   - A frame that comes in two messages of the WebSocket is put together wrongly (FrameSocket counts the three bytes of its
//     length as data), so each frame must go out as one.
//   - FrameSocket's reading goroutine hangs for ever if a frame comes in at the moment of Disconnect. Leak detectors have to
//     know its function frameComplete.
//   - A query or message whose answer has not come when the connection ends is sent again as it is, with the same id, if the
//     client is logged in again within five seconds; else it fails.
//   - Under the race detector the client itself races: exsync.Event.GetChan writes under a read lock, so a send that waits for
//     the connection races with the automatic reconnect and with other sends; and Device.Delete writes fields that handlers of
//     notifications read in goroutines of their own. Tests under -race reconnect by hand where sends are in flight.
//     So do two logins if the first connection ended before its <active>.
//
// Pairing:
//
//   - pair-device and pair-success must come from the bare s.whatsapp.net and be the only child of their iq.
//   - The account's signature key is stored as the identity of the phone at its LID, device 0. It must be the phone's identity in
//     Signal, or the phone's messages are from an untrusted identity.
//   - A client that is killed after it saved its device and before it has answered believes that it is paired. Its login is
//     refused with 401 and it deletes its store.
//   - The link code's ephemeral key pair of the client has the sealed key for its public half: it seals in place.
//
// Pre-keys:
//
//   - Ids travel in three bytes and registration ids in four; others are malformed. A bundle without a one-time pre-key has no
//     <key> at all.
//   - Only a count below five in an encrypt notification makes the client upload, fifty at a time (812 the first time); within ten
//     minutes of the last upload it asks the server for its count first.
//   - Retry receipts publish one-time pre-keys of their own, which never were uploaded.
//   - A client that ends between an upload and its own note of it uploads the same keys again, even if some were handed out.
//   - An upload whose answer is cut off keeps the next login from uploading, and so from being connected, for five seconds.
//
// Messages and receipts:
//
//   - A message that could be read is answered with a receipt and no ack. One that could not is answered with a retry receipt and
//     an ack, in any order without SynchronousAck; one whose handler failed, or whose context was cancelled, with nothing at all.
//   - With SynchronousAck, a message that cannot be read makes the client first ask its own phone for it, and wait for the ack of
//     that request, before the retry receipt leaves.
//   - A second receipt, peer_msg or hist_sync to the client's own bare phone number, follows the one for a peer message.
//   - The first retry receipt carries no keys, unless it was a group message whose sender key is unknown. Answered on the same
//     session it fails again; the second one carries keys.
//   - An ack of a receipt must be matched by its type too; several receipts of one message have the same id.
//   - Direct messages go to the LID always, and to the LIDs of all devices, the client's own phone included. The participant hash
//     is over all of them with the sending device itself. It is not sent; it is compared with the one in the ack, where a
//     difference drops the cached devices of the recipient, but never the client's own.
//   - Every group message has the sender key for every device in it, each time.
//   - The first message to somebody is accompanied by an iq that issues a privacy token.
//   - In a group message the ciphertexts are read in their order, and the first one that fails ends it: the sender key's own
//     ciphertext is then not tried.
//
// Users:
//
//   - usync answers must name a user as he was asked for; the client caches device lists by phone number and by LID apart.
//   - A devices notification is ignored when no list is cached under exactly its from, and its lid does not help. So both are
//     told here.
//   - An identity notification from a LID deletes nothing: sessions of LIDs are stored under user_1:device, and the client asks
//     to delete those of user. The change is noticed by the next first message or bundle, as an untrusted identity.
//   - Sessions move from a phone number to a LID when a message comes in from the number that names the LID (sender_lid), or when a
//     group with number addressing is sent to. A message that comes from the LID moves nothing.
//
// App state:
//
//   - The share of keys is stored, and all collections are fetched, on a goroutine of its own, which goes on after Disconnect;
//     the message itself reaches the handlers like any other (IsFromMe, category peer).
//   - A collection at version 0 is fetched in full, whatever is asked for. No event tells of what is set then, not even of
//     the first change of a collection that was empty, only AppStateSyncComplete; EmitAppStateEventsOnFullSync changes that.
//   - An empty collection stays at version 0 and is fetched anew with every share of keys.
//   - In a full fetch the names of contacts go to the store in one call. If a snapshot and patches after it, or two patches,
//     name the same contact, both names are in it, the older one first.
//   - A patch that cannot be read for want of its key is given up, the key is asked for once in 24 hours, and all collections
//     are fetched when it comes.
//   - The client sets a value under its newest key and does not remove the one under an older key, so an index may be set twice.
//   - The push name from the app state is written into the device without a lock and saved, by whatever goroutine fetches.
//   - After a mismatch the client does not ask for recovery by itself. What it is sent is ignored unless its version is higher
//     than the one stored.
//
// History and media:
//
//   - The receipt hist_sync leaves when a chunk's announcement was put into a queue in memory; the chunk is fetched later, and
//     it is stored on yet another goroutine, which nothing waits for: neither the event HistorySync nor the deletion of the
//     chunk from the server means that it is stored. A client that is killed in between never asks for it again.
//   - A chunk that cannot be fetched is logged and forgotten. The receipt server-error, which asks for it again, is only sent by
//     programs that call for it.
//   - After each chunk the client deletes it from the server, with an empty path if it came inside of its message.
//   - The client races with itself when a history has a nonce: it is written into the device by the goroutine that stores, and
//     read by the deletion of the chunk.
//   - The goroutine that fetches history waits a minute for more, whether or not the client is connected.
package waserver
