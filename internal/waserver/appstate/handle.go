package appstate

// What a companion asks for, several collections at a time:
//
//	<iq xmlns="w:sync:app:state"><sync><collection name version return_snapshot>[<patch/>]</collection></sync></iq>
//
// Without a patch it is a fetch: the answer holds the snapshot, if one was asked for and there is one, and the patches
// after the snapshot or after the version that the client has, a page of them. With a patch it is an upload on top of that
// version: it is taken in if that is the present version and everything verifies. If the client is behind, the answer is
// error 409 and the patches that it lacks.

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	client "go.mau.fi/whatsmeow/appstate"
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/proto/waServerSync"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"
)

// Namespace is that of the info queries that Handle answers.
const Namespace = "w:sync:app:state"

// Handle answers an info query of the namespace. It returns the collections that an upload changed, of which the other
// companions have to be notified.
func (s *State) Handle(iq *waBinary.Node) (waBinary.Node, []client.WAPatchName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var answers []waBinary.Node
	var changed []client.WAPatchName
	sync := iq.GetChildByTag("sync")
	for _, asked := range sync.GetChildrenByTag("collection") {
		name := client.WAPatchName(asked.AttrGetter().OptionalString("name"))
		c := s.mu.collections[name]
		switch patch, isUpload := asked.GetOptionalChildByTag("patch"); {
		case c == nil:
			s.problemLocked("a client asked for collection %q", name)
			answers = append(answers, failure(string(name), 404, "item-not-found"))
		case isUpload:
			answer, ok := s.uploadLocked(c, &asked, &patch)
			if ok {
				changed = append(changed, name)
			}
			answers = append(answers, answer)
		default:
			answers = append(answers, s.fetchLocked(c, &asked))
		}
	}
	return waBinary.Node{
		Tag:     "iq",
		Attrs:   waBinary.Attrs{"id": iq.Attrs["id"], "from": types.ServerJID, "type": "result"},
		Content: []waBinary.Node{{Tag: "sync", Content: answers}},
	}, changed
}

// Notification tells a companion that collections changed.
func (s *State) Notification(id string, changed ...client.WAPatchName) waBinary.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	var collections []waBinary.Node
	for _, name := range changed {
		version := strconv.FormatUint(s.mu.collections[name].version, 10)
		collections = append(collections, waBinary.Node{Tag: "collection", Attrs: waBinary.Attrs{"name": string(name), "version": version}})
	}
	return waBinary.Node{
		Tag: "notification",
		Attrs: waBinary.Attrs{
			"id": id, "from": types.ServerJID, "type": "server_sync", "t": strconv.FormatInt(time.Now().Unix(), 10),
		},
		Content: collections,
	}
}

func (s *State) fetchLocked(c *collection, asked *waBinary.Node) waBinary.Node {
	attrs := asked.AttrGetter()
	from, snapshot := uint64(0), []waBinary.Node(nil)
	if attrs.OptionalBool("return_snapshot") {
		if c.snapshot != nil {
			from, snapshot = c.snapshot.version, []waBinary.Node{{Tag: "snapshot", Content: c.snapshot.reference}}
		}
	} else {
		from, _ = attrs.GetUint64("version", false)
	}
	if from > c.version {
		s.problemLocked("a client is at version %d of %s, which is at %d", from, c.name, c.version)
		from = c.version
	}
	patches := c.patches[from:min(from+uint64(s.cfg.PageSize), c.version)]
	answer := c.node()
	answer.Attrs["has_more_patches"] = strconv.FormatBool(from+uint64(len(patches)) < c.version)
	answer.Content = slices.Concat(snapshot, patchNodes(patches))
	return answer
}

// uploadLocked reports true if the patch was taken in.
func (s *State) uploadLocked(c *collection, asked, uploaded *waBinary.Node) (waBinary.Node, bool) {
	base, _ := asked.AttrGetter().GetUint64("version", true)
	if base != c.version {
		answer := failure(string(c.name), 409, "conflict")
		if base > c.version {
			s.problemLocked("a client uploads on top of version %d of %s, which is at %d", base, c.name, c.version)
			return answer, false
		}
		answer.Attrs["version"] = strconv.FormatUint(c.version, 10)
		answer.Content = append(answer.GetChildren(), patchNodes(c.patches[base:])...)
		return answer, false
	}
	patch, changes, err := s.verifyLocked(c, uploaded)
	if err == nil {
		err = s.commitLocked(c, patch, changes)
	}
	if err != nil {
		s.problemLocked("a client's patch on top of version %d of %s: %v", base, c.name, err)
		return failure(string(c.name), 400, "bad-request"), false
	}
	return c.node(), true
}

// verifyLocked checks every MAC of a patch that a client made.
func (s *State) verifyLocked(c *collection, uploaded *waBinary.Node) (*waServerSync.SyncdPatch, []change, error) {
	raw, ok := uploaded.Content.([]byte)
	if !ok {
		return nil, nil, errors.New("no content")
	}
	patch := &waServerSync.SyncdPatch{}
	if err := proto.Unmarshal(raw, patch); err != nil {
		return nil, nil, err
	}
	k := s.keyLocked(patch.GetKeyID().GetID())
	if k == nil {
		return nil, nil, fmt.Errorf("unknown key %x", patch.GetKeyID().GetID())
	}
	var changes []change
	for i, m := range patch.GetMutations() {
		of := s.keyLocked(m.GetRecord().GetKeyID().GetID())
		if of == nil {
			return nil, nil, fmt.Errorf("mutation %d: unknown key %x", i, m.GetRecord().GetKeyID().GetID())
		}
		data, err := of.open(m)
		if err != nil {
			return nil, nil, fmt.Errorf("mutation %d: %w", i, err)
		}
		changes = append(changes, change{m, data})
	}
	version := c.version + 1
	_, sum := c.after(changes)
	if !hmac.Equal(patch.GetSnapshotMAC(), k.macOfSnapshot(c.name, version, sum)) {
		return nil, nil, errors.New("snapshot MAC does not match: the client's hash is another")
	}
	if !hmac.Equal(patch.GetPatchMAC(), k.macOfPatch(c.name, version, patch.GetSnapshotMAC(), patch.GetMutations())) {
		return nil, nil, errors.New("patch MAC does not match")
	}
	return patch, changes, nil
}

func patchNodes(patches [][]byte) []waBinary.Node {
	if len(patches) == 0 {
		return nil
	}
	nodes := make([]waBinary.Node, len(patches))
	for i, patch := range patches {
		nodes[i] = waBinary.Node{Tag: "patch", Content: patch}
	}
	return []waBinary.Node{{Tag: "patches", Content: nodes}}
}

// node is an answer about a collection, without content.
func (c *collection) node() waBinary.Node {
	return waBinary.Node{Tag: "collection", Attrs: waBinary.Attrs{"name": string(c.name), "version": strconv.FormatUint(c.version, 10)}}
}

func failure(name string, code int, text string) waBinary.Node {
	return waBinary.Node{
		Tag:     "collection",
		Attrs:   waBinary.Attrs{"name": name, "type": "error"},
		Content: []waBinary.Node{{Tag: "error", Attrs: waBinary.Attrs{"code": strconv.Itoa(code), "text": text}}},
	}
}
