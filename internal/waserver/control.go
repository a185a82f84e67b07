package waserver

// What tests ask the server and make it do.

import (
	"cmp"
	"context"
	"fmt"
	"maps"
)

// Stats counts what happened on a server since it was started.
type Stats struct {
	Connections       int // connections that were begun
	RefusedHandshakes int // handshakes that did not come to an end
	Logins            int // logins of paired devices
	RefusedLogins     int // logins, or uploads of keys, that did not fit what was paired
	Replaced          int // connections that a later one of the same device ended
	Unread            int // connections on which clients may have sent something that was not read, and so is not in the record
	KeepAlives        int // pings of clients
	Redelivered       int // stanzas that were sent again since they were not acknowledged
	Duplicated        int // stanzas that a fault sent twice
	Unlinked          int // devices that were removed, from either side

	QRCodes         int // connections on which QR codes were shown
	QRScans         int // QR codes that a phone scanned
	LinkCodes       int // link codes that were shown
	CodesEntered    int // link codes that were typed into a phone
	Pairings        int // pairings that came to their end
	RefusedPairings int // pairings that did not

	PreKeysUploaded  int // one-time pre-keys in uploads
	PreKeysRepeated  int // of these, such with an id that was there before
	PreKeysHandedOut int // one-time pre-keys of clients that somebody got

	Messages        int            // messages of clients
	Resent          int            // of these, such that were sent again as they were, after a connection was lost
	Ciphertexts     int            // ciphertexts in messages of clients
	Receipts        int            // receipts of clients
	RetryReceipts   int            // of these, such that ask for a message again
	RetryAnswers    int            // messages of clients that answer a retry receipt
	Acks            int            // acknowledgements of clients
	Nacks           int            // of these, such with an error
	PHashMismatches int            // messages of clients whose participant hash or list was not the server's
	BadIdentities   int            // first messages and retry receipts of clients with a missing or wrong identity, all refused
	Undeliverable   int            // ciphertexts of clients for devices that do not exist
	UnknownIQs      map[string]int // queries that nothing answers, by namespace
	UnknownNodes    map[string]int // nodes that nothing handles, by tag
}

// Stats is what happened so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.mu.stats
	stats.UnknownIQs = maps.Clone(stats.UnknownIQs)
	stats.UnknownNodes = maps.Clone(stats.UnknownNodes)
	return stats
}

// Wait blocks until check is true. Check is called each time something happened; it may ask the server.
func (s *Server) Wait(ctx context.Context, check func() bool) error {
	for {
		s.mu.Lock()
		activity := s.mu.activity
		s.mu.Unlock()
		if check() {
			return nil
		}
		select {
		case <-activity:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errClosed
		}
	}
}

// WaitConnected waits until the device's client is logged in and takes messages.
func (d *Device) WaitConnected(ctx context.Context) error {
	return d.user.server.Wait(ctx, d.Connected)
}

// WaitIdle waits until every mailbox is empty, also that of a client that is away, and no simulated phone has anything to do. Its
// error says what was still waited for.
func (s *Server) WaitIdle(ctx context.Context) error {
	return s.waitFor(ctx, func() string { return cmp.Or(s.waitingLocked(), s.busyLocked()) })
}

// WaitPhones waits until no simulated phone has anything to do, whatever waits for clients. Its error says what was still waited for.
func (s *Server) WaitPhones(ctx context.Context) error {
	return s.waitFor(ctx, s.busyLocked)
}

// waitFor waits until nothing is in the way any more.
func (s *Server) waitFor(ctx context.Context, inTheWayLocked func() string) error {
	var inTheWay string
	err := s.wait(ctx, func() bool {
		inTheWay = inTheWayLocked()
		return inTheWay == ""
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, inTheWay)
	}
	return nil
}

// waitingLocked says what waits for a client, or nothing.
func (s *Server) waitingLocked() string {
	for _, user := range s.mu.users {
		for _, d := range user.devices {
			switch {
			case len(d.box) > 0 && d.conn == nil:
				return fmt.Sprintf("%d stanzas for %s, which is not connected", len(d.box), d.LID())
			case len(d.box) > 0:
				return fmt.Sprintf("%d stanzas that %s has not acknowledged", len(d.box), d.LID())
			}
		}
	}
	return ""
}

// busyLocked says which phone has something to do, or nothing.
func (s *Server) busyLocked() string {
	for _, user := range s.mu.users {
		for _, d := range user.devices {
			if d.greeting || d.phone != nil && d.phone.busy() {
				return "the phone " + user.lid.String()
			}
		}
	}
	return ""
}

// FailLogins lets the next logins fail with these reasons, one each: 503 for example, which a client tries again.
func (s *Server) FailLogins(reasons ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.failures = append(s.mu.failures, reasons...)
}

// RejectConnections turns the next connections away with these HTTP states, one each, before there is a WebSocket.
func (s *Server) RejectConnections(states ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.rejections = append(s.mu.rejections, states...)
}

// CutAll breaks all connections at once.
func (s *Server) CutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.mu.conns {
		c.cutLocked()
	}
}
