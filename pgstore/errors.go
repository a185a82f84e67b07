package pgstore

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"go.mau.fi/whatsmeow/store"
)

// refusal is a sentinel that also matches [context.Canceled]. The client acknowledges
// a message whose decryption failed, unless the error matches context.Canceled: then the
// server delivers it again. So everything that the store refuses although the message is good must match it.
type refusal struct{ text string }

// Error implements error.
func (e *refusal) Error() string { return e.text }

// Is makes every refusal match context.Canceled.
func (e *refusal) Is(target error) bool { return target == context.Canceled }

// Errors to be tested with [errors.Is].
var (
	// ErrClosed is returned by every call after Close or Shutdown. It matches context.Canceled.
	ErrClosed error = &refusal{"pgstore: closed"}
	// ErrOwnershipLost is returned by the stores of an instance that another process, or a
	// later call in this one, has taken. It matches context.Canceled.
	ErrOwnershipLost error = &refusal{"pgstore: instance was taken by another owner"}
	// ErrDatabaseRewound is returned by the stores of an instance whose rows in the database are older
	// than what this process saved, as after a failover that lost writes, if that is found out while the container is being closed; and of one that has
	// no row any more in a database that went back, because it was paired afterwards, or deleted. A patch of an app-state collection gets it whose
	// version was dropped meanwhile, since the database had gone back: the client fetches the collection anew. It matches context.Canceled.
	ErrDatabaseRewound error = &refusal{"pgstore: database lost writes that were durable"}
	// ErrReleased is returned by the stores of an instance that this process has let go of with Release. It matches context.Canceled.
	ErrReleased error = &refusal{"pgstore: instance was released"}
	// ErrLeased says that an owner that lives had the instance until the context ended: with Takes [RespectLease] its lease held, else TakeWait was not over. It
	// comes with ErrUnavailable, and matches context.Canceled.
	ErrLeased error = &refusal{"pgstore: instance is leased to another process"}
	// ErrRefused is returned by the stores of an instance that stopped because the database refuses
	// its writes for good (rights, a missing table, a CHECK), and by any call whose own statement the database
	// refuses so, a read too. It matches context.Canceled.
	ErrRefused error = &refusal{"pgstore: database refuses for good"}
	// ErrUnavailable says that the database could not be asked before the context ended. It matches context.Canceled.
	ErrUnavailable error = &refusal{"pgstore: database unavailable"}
	// ErrCorrupt is returned when a stored row cannot be read and its absence would be wrong: of the credentials above all. It matches
	// context.Canceled, as a message is good whatever became of our row.
	ErrCorrupt error = &refusal{"pgstore: stored row cannot be read"}

	// ErrDataKey says that encrypted rows cannot be read: no [Config].Encryption, or one whose wrapping key is not the one with which the instance's data
	// key was wrapped, or the data key is not in the database. It is returned by New where a wrapping key is wrong, and by every call that would have
	// to read such an instance; none is taken. It matches context.Canceled.
	ErrDataKey error = &refusal{"pgstore: no key for what is encrypted"}
	// ErrNotEncrypted is returned with [Encrypted] for an instance that has a plain row. It matches context.Canceled.
	ErrNotEncrypted error = &refusal{"pgstore: stored row is not encrypted"}

	// ErrMessageKeyUsed is returned by PutSession, PutManySessions and PutSenderKey when the message key of a send was used by
	// another send that had read the same record; also when it held the record over so many steps of the ratchet that its recipient could not
	// read the message, and when two make our sender key of a group at once. Nothing is stored, and the ciphertext does not
	// leave: SendMessage returns the error, and its caller sends again. SendPeerMessage, to our own phone, returns no more than its text,
	// since the client does not wrap it. A retry answer is dropped with a log line; since the error matches context.Canceled, a client
	// with SynchronousAck does not acknowledge the retry receipt, so that it comes again with the next connection; without, the receipt is
	// acknowledged, and whoever cannot read the message asks once more. A decrypt never gets it.
	ErrMessageKeyUsed error = &refusal{"pgstore: message key was used by another message, send again"}

	// ErrDeviceDeleted is whatsmeow's own error for the stores of a deleted device.
	ErrDeviceDeleted = store.ErrDeviceDeleted
	// ErrDeviceIDMustBeSet is returned by PutDevice and DeleteDevice for a device without a JID.
	ErrDeviceIDMustBeSet = errors.New("device JID must be known before accessing database")
	// ErrDeviceConflict is returned by PutDevice when the instance already belongs to a device with other keys,
	// and when the device's JID already belongs to another instance.
	ErrDeviceConflict = errors.New("pgstore: device conflicts with one that is stored")
	// ErrInvalidInput is returned by the call that was given what cannot be stored; the text names the field.
	ErrInvalidInput = errors.New("pgstore: invalid input")
	// ErrSchemaTooNew is returned by New when the schema in the database may not be used by this version.
	ErrSchemaTooNew = errors.New("pgstore: database schema is too new for this version of the library")
	// ErrSchemaMissing is returned by New when the schema is not up to date and migrating is switched off.
	ErrSchemaMissing = errors.New("pgstore: database schema is not up to date")
	// ErrRealm is returned by New when the database belongs to another installation than the configuration says.
	ErrRealm = errors.New("pgstore: wrong realm")
	// ErrUnsupported is returned by store methods that this version of the library does not know.
	ErrUnsupported = errors.New("pgstore: not supported by this version of pgstore")
	// ErrPreKeysExhausted is returned when all 2^24-2 pre-key ids are in use.
	ErrPreKeysExhausted = errors.New("pgstore: no free pre-key id")
)

// statementError is a databaseError of a statement that is no flush.
type statementError struct{ *databaseError }

// Error implements error.
func (e *statementError) Error() string {
	return "pgstore: " + strings.TrimPrefix(e.databaseError.Error(), "pgstore: flush: ")
}

// withoutRows keeps what a server says about values out of an error: Detail and Where may quote a row with its keys. An error for
// good matches [ErrRefused] then. Every other error stays as it is.
func withoutRows(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return &statementError{&databaseError{code: pgErr.Code, message: pgErr.Message}}
	}
	return err
}
