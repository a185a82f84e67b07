package waserver

// Media: clients ask in the chat connection where it is, and are told of a host that does not exist; their transport leads
// to this server, which tells by the host's name what is for the media store.

import (
	waBinary "go.mau.fi/whatsmeow/binary"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

// Media are the server's files: attachments, snapshots of app state, history.
func (s *Server) Media() *media.Store { return s.media }

// mediaConn answers where media is.
func (s *Server) mediaConn(q *query) ([]waBinary.Node, *iqError) {
	answer := s.media.Handle(q.node)
	if attrString(&answer, "type") == "error" {
		return nil, errBadRequest
	}
	return answer.GetChildren(), nil
}
