// Package history is the history that a phone sends to a companion which has just been paired: chats with their messages
// and message secrets, privacy tokens, push names, and which phone number has which LID. It is made up, of the size that
// a test asks for, and comes with what a client should know once it has read it.
//
// It travels in chunks, each a protobuf compressed with zlib and put into the media store, and each announced by a message
// of its own from the phone: first the chats with the mappings and settings (INITIAL_BOOTSTRAP), then the push names
// (PUSH_NAME), then the rest of the messages (RECENT, as many chunks as it takes).
package history

import (
	"fmt"
	"math/rand/v2"
	"time"

	"go.mau.fi/whatsmeow/proto/waCommon"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/proto/waHistorySync"
	"go.mau.fi/whatsmeow/proto/waWeb"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"
)

// PerChunkDefault is how many messages a chunk holds unless a Spec says otherwise.
const PerChunkDefault = 5000

// Person is somebody whom the account has a chat with.
type Person struct {
	PN, LID types.JID
	Name    string
}

// People makes up some people. Different numbers from are different people.
func People(from, n int) []Person {
	people := make([]Person, n)
	for i := range people {
		id := from + i
		people[i] = Person{
			PN:   types.NewJID(fmt.Sprintf("49153%08d", id), types.DefaultUserServer),
			LID:  types.NewJID(fmt.Sprintf("2%014d", id), types.HiddenUserServer),
			Name: fmt.Sprintf("Person %d", id),
		}
	}
	return people
}

// Spec is what a history is made of.
type Spec struct {
	Own      types.JID   // the account, by phone number and without a device
	People   []Person    // each has a chat, by phone number and by LID in turns, and a privacy token
	Groups   []types.JID // all people take part in all of them
	Messages int         // over all chats in turns, each with a secret
	PerChunk int         // messages; PerChunkDefault if zero
	Seed     uint64      // for secrets, tokens and the salt
	Inline   bool        // the first chunk travels in its message instead of in the media store
	NoNonce  bool        // there is no nonce in it; the client races with itself when it stores one, unless told to fetch by hand
}

// Secret is a message secret that the client should know.
type Secret struct {
	Chat, Sender types.JID
	ID           types.MessageID
	Secret       []byte
}

// Token is a privacy token that the client should know.
type Token struct {
	Person    Person
	Token     []byte
	Timestamp time.Time
}

// History is a made-up history and what a client should know once it has read it.
type History struct {
	Chunks    []*waHistorySync.HistorySync // in the order in which they are sent
	People    []Person
	Secrets   []Secret
	Tokens    []Token
	NCTSalt   []byte
	MetaNonce string    // empty if there is none
	Migrated  time.Time // when the phone's chats were moved to LIDs

	inline bool
}

// maker makes a history up.
type maker struct {
	*History
	spec  Spec
	rng   *rand.ChaCha8
	chats []*waHistorySync.Conversation
	start time.Time // of the first message
}

// Make makes a history up. The same specification gives the same history, but for its times.
func Make(spec Spec) *History {
	if spec.PerChunk == 0 {
		spec.PerChunk = PerChunkDefault
	}
	var seed [32]byte
	for i := range 8 {
		seed[i] = byte(spec.Seed >> (8 * i))
	}
	now := time.Now().Truncate(time.Second)
	m := &maker{
		History: &History{People: spec.People, Migrated: now.Add(-time.Hour), inline: spec.Inline},
		spec:    spec, rng: rand.NewChaCha8(seed), start: now.Add(-time.Duration(spec.Messages+1) * time.Second),
	}
	m.NCTSalt, m.MetaNonce = m.random(32), fmt.Sprintf("nonce-%x", m.random(8))
	if spec.NoNonce {
		m.MetaNonce = ""
	}
	m.bootstrap()
	m.pushNames()
	m.messages()
	for i, chunk := range m.Chunks {
		chunk.ChunkOrder = proto.Uint32(uint32(i + 1))
		chunk.Progress = proto.Uint32(uint32(100 * (i + 1) / len(m.Chunks)))
	}
	return m.History
}

func (m *maker) random(n int) []byte {
	b := make([]byte, n)
	_, _ = m.rng.Read(b) // never fails
	return b
}

// bootstrap is the chunk with the chats, the mappings and the settings.
func (m *maker) bootstrap() {
	first := &waHistorySync.HistorySync{
		SyncType:           waHistorySync.HistorySync_INITIAL_BOOTSTRAP.Enum(),
		NctSalt:            m.NCTSalt,
		CompanionMetaNonce: &m.MetaNonce,
		GlobalSettings:     &waHistorySync.GlobalSettings{ChatDbLidMigrationTimestamp: proto.Int64(m.Migrated.Unix())},
	}
	for i, p := range m.spec.People {
		chat := p.PN
		if i%2 == 1 {
			chat = p.LID
		}
		token := Token{Person: p, Token: m.random(24), Timestamp: m.start.Add(time.Duration(i) * time.Second)}
		m.Tokens = append(m.Tokens, token)
		first.Conversations = append(first.Conversations, &waHistorySync.Conversation{
			ID: proto.String(chat.String()), Name: &p.Name, PnJID: proto.String(p.PN.String()), LidJID: proto.String(p.LID.String()),
			TcToken: token.Token, TcTokenTimestamp: seconds(token.Timestamp), TcTokenSenderTimestamp: seconds(token.Timestamp),
		})
		first.PhoneNumberToLidMappings = append(first.PhoneNumberToLidMappings, &waHistorySync.PhoneNumberToLIDMapping{
			PnJID: proto.String(p.PN.String()), LidJID: proto.String(p.LID.String()),
		})
	}
	for i, group := range m.spec.Groups {
		chat := &waHistorySync.Conversation{ID: proto.String(group.String()), Name: proto.String(fmt.Sprintf("Group %d", i))}
		for _, p := range m.spec.People {
			chat.Participant = append(chat.Participant, &waHistorySync.GroupParticipant{UserJID: proto.String(p.LID.String())})
		}
		first.Conversations = append(first.Conversations, chat)
	}
	m.chats = first.Conversations
	m.Chunks = append(m.Chunks, first)
}

func (m *maker) pushNames() {
	names := &waHistorySync.HistorySync{SyncType: waHistorySync.HistorySync_PUSH_NAME.Enum()}
	for _, p := range m.spec.People {
		names.Pushnames = append(names.Pushnames, &waHistorySync.Pushname{ID: proto.String(p.PN.String()), Pushname: &p.Name})
	}
	m.Chunks = append(m.Chunks, names)
}

// messages are the chunks with all messages.
func (m *maker) messages() {
	if len(m.chats) == 0 {
		return
	}
	for from := 0; from < m.spec.Messages; from += m.spec.PerChunk {
		chunk := &waHistorySync.HistorySync{SyncType: waHistorySync.HistorySync_RECENT.Enum()}
		open := make(map[int]*waHistorySync.Conversation) // in this chunk
		for i := from; i < min(from+m.spec.PerChunk, m.spec.Messages); i++ {
			n := i % len(m.chats)
			if open[n] == nil {
				open[n] = &waHistorySync.Conversation{ID: m.chats[n].ID}
				chunk.Conversations = append(chunk.Conversations, open[n])
			}
			open[n].Messages = append(open[n].Messages, m.message(i, n))
		}
		m.Chunks = append(m.Chunks, chunk)
	}
}

// message is the message i of a history, in chat n. Every third one is the account's own, or all if there is nobody else.
func (m *maker) message(i, n int) *waHistorySync.HistorySyncMsg {
	jid, _ := types.ParseJID(m.chats[n].GetID()) // one of ours
	secret := Secret{Chat: jid, Sender: jid, ID: fmt.Sprintf("3EB0%016X", i), Secret: m.random(32)}
	key := &waCommon.MessageKey{RemoteJID: m.chats[n].ID, FromMe: proto.Bool(i%3 == 0 || len(m.spec.People) == 0), ID: &secret.ID}
	switch inGroup := n >= len(m.spec.People); {
	case key.GetFromMe():
		secret.Sender = m.spec.Own
	case inGroup:
		secret.Sender = m.spec.People[i%len(m.spec.People)].LID
		key.Participant = proto.String(secret.Sender.String())
	}
	m.Secrets = append(m.Secrets, secret)
	return &waHistorySync.HistorySyncMsg{
		MsgOrderID: proto.Uint64(uint64(i + 1)),
		Message: &waWeb.WebMessageInfo{
			Key: key, MessageTimestamp: seconds(m.start.Add(time.Duration(i) * time.Second)), MessageSecret: secret.Secret,
			Message: &waE2E.Message{Conversation: proto.String(fmt.Sprintf("message %d", i))},
		},
	}
}

func seconds(t time.Time) *uint64 { return proto.Uint64(uint64(t.Unix())) }
