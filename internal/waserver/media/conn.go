package media

// Where and how media is fetched is told in the chat connection, in answer to an info query:
//
//	<iq xmlns="w:m" type="set"><media_conn/></iq>
//	<iq type="result"><media_conn auth ttl auth_ttl max_buckets><host hostname/></media_conn></iq>

import (
	"strconv"

	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// Namespace is that of the info queries that Handle answers.
const Namespace = "w:m"

// ttl is how many seconds a client may keep what it was told.
const ttl = 3600

// Handle answers an info query of the namespace.
func (s *Store) Handle(iq *waBinary.Node) waBinary.Node {
	answer := waBinary.Node{Tag: "iq", Attrs: waBinary.Attrs{"id": iq.Attrs["id"], "from": types.ServerJID, "type": "result"}}
	if _, ok := iq.GetOptionalChildByTag("media_conn"); !ok {
		answer.Attrs["type"] = "error"
		answer.Content = []waBinary.Node{{Tag: "error", Attrs: waBinary.Attrs{"code": "400", "text": "bad-request"}}}
		return answer
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer.Content = []waBinary.Node{{
		Tag: "media_conn",
		Attrs: waBinary.Attrs{
			"auth": s.mu.auth, "ttl": strconv.Itoa(ttl), "auth_ttl": strconv.Itoa(6 * ttl), "max_buckets": "12",
		},
		Content: []waBinary.Node{{Tag: "host", Attrs: waBinary.Attrs{"hostname": Host}}},
	}}
	return answer
}
