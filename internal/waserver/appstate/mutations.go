package appstate

// What a phone changes, as the client reads it.

import (
	"time"

	client "go.mau.fi/whatsmeow/appstate"
	"go.mau.fi/whatsmeow/proto/waSyncAction"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"
)

// Mutation is a change of one setting.
type Mutation struct {
	Collection client.WAPatchName
	Index      []string
	Version    int32                         // of the kind of setting
	Value      *waSyncAction.SyncActionValue // nil removes the setting
}

// Contact names a contact.
func Contact(jid types.JID, firstName, fullName string) Mutation {
	return Mutation{
		Collection: client.WAPatchCriticalUnblockLow, Index: []string{client.IndexContact, jid.String()}, Version: 2,
		Value: &waSyncAction.SyncActionValue{ContactAction: &waSyncAction.ContactAction{FirstName: &firstName, FullName: &fullName}},
	}
}

// Mute mutes a chat until some time; the zero time unmutes it, and a time before 1970 mutes it for ever.
func Mute(chat types.JID, until time.Time) Mutation {
	action := &waSyncAction.MuteAction{Muted: proto.Bool(!until.IsZero())}
	if !until.IsZero() {
		action.MuteEndTimestamp = proto.Int64(max(until.UnixMilli(), -1))
	}
	return Mutation{
		Collection: client.WAPatchRegularHigh, Index: []string{client.IndexMute, chat.String()}, Version: 2,
		Value: &waSyncAction.SyncActionValue{MuteAction: action},
	}
}

// Archive archives a chat or takes it out of the archive.
func Archive(chat types.JID, archived bool) Mutation {
	return Mutation{
		Collection: client.WAPatchRegularLow, Index: []string{client.IndexArchive, chat.String()}, Version: 3,
		Value: &waSyncAction.SyncActionValue{ArchiveChatAction: &waSyncAction.ArchiveChatAction{Archived: &archived}},
	}
}

// Pin pins a chat or unpins it.
func Pin(chat types.JID, pinned bool) Mutation {
	return Mutation{
		Collection: client.WAPatchRegularLow, Index: []string{client.IndexPin, chat.String()}, Version: 5,
		Value: &waSyncAction.SyncActionValue{PinAction: &waSyncAction.PinAction{Pinned: &pinned}},
	}
}

// PushName is the user's own name.
func PushName(name string) Mutation {
	return Mutation{
		Collection: client.WAPatchCriticalBlock, Index: []string{client.IndexSettingPushName}, Version: 1,
		Value: &waSyncAction.SyncActionValue{PushNameSetting: &waSyncAction.PushNameSetting{Name: &name}},
	}
}

// NCTSalt is the salt from which tokens for new chats are made.
func NCTSalt(salt []byte) Mutation {
	return Mutation{
		Collection: client.WAPatchRegularHigh, Index: []string{client.IndexNCTSaltSync}, Version: 1,
		Value: &waSyncAction.SyncActionValue{NctSaltSyncAction: &waSyncAction.NctSaltSyncAction{Salt: salt}},
	}
}

// Remove is the mutation that removes what another one sets.
func Remove(m Mutation) Mutation {
	m.Value = nil
	return m
}
