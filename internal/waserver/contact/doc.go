// Package contact simulates the devices of other people: they do real Signal (X3DH, double ratchet, sender keys) with
// libsignal, on maps of their own that owe nothing to the store under test nor to the client's store package.
//
// A device is deliberately stricter and more careful than the client. It keeps to the identity it first saw at an
// address until it is told to forget it, so that a client which comes back with another identity is noticed; an
// attempt to decrypt that failed leaves no trace in its sessions; and a distribution message that it has heard before
// does not rewind a sender key. What a contact cannot read is then the sender's doing.
package contact

import (
	"errors"

	"go.mau.fi/libsignal/logger"
	"go.mau.fi/libsignal/signalerror"
)

// What a device answers when it cannot encrypt or decrypt. Other errors are libsignal's own, or say that a message is
// malformed.
var (
	// ErrDuplicate says that the counter of the message was used before.
	ErrDuplicate = signalerror.ErrOldCounter
	// ErrNoSession says that there is no session with the other device.
	ErrNoSession = signalerror.ErrNoSessionForUser
	// ErrNoSenderKey says that the sender's key for the group is not known, or not the one of this message.
	ErrNoSenderKey = signalerror.ErrNoSenderKeyForUser
	// ErrNoPreKey says that the one-time pre-key that the message names was consumed or never made.
	ErrNoPreKey = signalerror.ErrNoOneTimeKeyFound
	// ErrUntrusted says that the other device has another identity than the one first seen.
	ErrUntrusted = signalerror.ErrUntrustedIdentity
	// ErrMalformed says that bytes which came in are no message at all.
	ErrMalformed = errors.New("malformed message")
)

// silent drops what libsignal logs. Its default logger, made at the first use and without a lock, prints every message
// that cannot be read at once; here an error says so.
type silent struct{}

// Debug implements [logger.Loggable].
func (silent) Debug(string, string) {}

// Info implements [logger.Loggable].
func (silent) Info(string, string) {}

// Warning implements [logger.Loggable].
func (silent) Warning(string, string) {}

// Error implements [logger.Loggable].
func (silent) Error(string, string) {}

// Configure implements [logger.Loggable].
func (silent) Configure(string) {}

func init() {
	var quiet logger.Loggable = silent{}
	logger.Setup(&quiet)
}
