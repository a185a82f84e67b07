package history

// How the phone announces a history, and a migration to LIDs, to a companion.

import (
	"bytes"
	"compress/zlib"
	"strconv"
	"time"

	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/proto/waHistorySync"
	"go.mau.fi/whatsmeow/proto/waLidMigrationSyncPayload"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver/media"
)

// Media is where chunks are put for the companion to fetch.
type Media interface {
	Put(plaintext []byte, kind whatsmeow.MediaType) (media.Reference, error)
}

// Messages puts the chunks of a history where the companion can fetch them, and returns the messages that announce them.
func (h *History) Messages(files Media) ([]*waE2E.Message, error) {
	messages := make([]*waE2E.Message, len(h.Chunks))
	for i := range h.Chunks {
		var err error
		if messages[i], err = h.Message(files, i); err != nil {
			return nil, err
		}
	}
	return messages, nil
}

// Message puts one chunk of a history where the companion can fetch it, and returns the message that announces it.
func (h *History) Message(files Media, i int) (*waE2E.Message, error) {
	chunk := h.Chunks[i]
	blob, err := compress(chunk)
	if err != nil {
		return nil, err
	}
	notification := &waE2E.HistorySyncNotification{
		SyncType:   waE2E.HistorySyncType(chunk.GetSyncType()).Enum(), // the numbers are the same
		ChunkOrder: chunk.ChunkOrder, Progress: chunk.Progress,
	}
	if h.inline && i == 0 {
		notification.InitialHistBootstrapInlinePayload = blob
	} else {
		ref, err := files.Put(blob, whatsmeow.MediaHistory)
		if err != nil {
			return nil, err
		}
		notification.FileSHA256, notification.FileEncSHA256, notification.FileLength = ref.FileSHA256, ref.FileEncSHA256, &ref.FileLength
		notification.MediaKey, notification.DirectPath, notification.EncHandle = ref.MediaKey, &ref.DirectPath, &ref.Handle
	}
	return &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type:                    waE2E.ProtocolMessage_HISTORY_SYNC_NOTIFICATION.Enum(),
		HistorySyncNotification: notification,
	}}, nil
}

func compress(chunk *waHistorySync.HistorySync) ([]byte, error) {
	encoded, err := proto.Marshal(chunk)
	if err != nil {
		return nil, err
	}
	var blob bytes.Buffer
	w := zlib.NewWriter(&blob)
	if _, err = w.Write(encoded); err != nil {
		return nil, err
	}
	err = w.Close() // writes the end of the blob
	return blob.Bytes(), err
}

// Migration is the message with which the phone tells a companion that its chats are moved to LIDs, and whose is whose.
func Migration(people []Person, at time.Time) (*waE2E.Message, error) {
	payload := &waLidMigrationSyncPayload.LIDMigrationMappingSyncPayload{ChatDbMigrationTimestamp: seconds(at)}
	for _, p := range people {
		pn, err := strconv.ParseUint(p.PN.User, 10, 64)
		if err != nil {
			return nil, err
		}
		lid, err := strconv.ParseUint(p.LID.User, 10, 64)
		if err != nil {
			return nil, err
		}
		payload.PnToLidMappings = append(payload.PnToLidMappings, &waLidMigrationSyncPayload.LIDMigrationMapping{
			Pn: &pn, AssignedLid: &lid, LatestLid: &lid,
		})
	}
	encoded, err := proto.Marshal(payload)
	if err != nil {
		return nil, err
	}
	return &waE2E.Message{ProtocolMessage: &waE2E.ProtocolMessage{
		Type:                           waE2E.ProtocolMessage_LID_MIGRATION_MAPPING_SYNC.Enum(),
		LidMigrationMappingSyncMessage: &waE2E.LIDMigrationMappingSyncMessage{EncodedMappingPayload: encoded},
	}}, nil
}
