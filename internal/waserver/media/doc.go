// Package media is the part of the stand-in server that keeps encrypted files: what clients upload, and what the server
// and simulated phones put there for clients to fetch (app-state snapshots, history, attachments).
//
// A file is encrypted with AES-256-CBC. Its IV, cipher key and MAC key are derived with HKDF-SHA256 from a random media
// key and the kind of media; ten bytes of HMAC-SHA256 over IV and ciphertext are appended. The server knows a file only
// by the SHA-256 of the whole; the key travels in the message that refers to it.
package media

import "go.mau.fi/whatsmeow"

// kindNames are the names of the kinds of media in URLs.
var kindNames = map[whatsmeow.MediaType]string{
	whatsmeow.MediaImage:         "image",
	whatsmeow.MediaVideo:         "video",
	whatsmeow.MediaAudio:         "audio",
	whatsmeow.MediaDocument:      "document",
	whatsmeow.MediaHistory:       "md-msg-hist",
	whatsmeow.MediaAppState:      "md-app-state",
	whatsmeow.MediaStickerPack:   "sticker-pack",
	whatsmeow.MediaLinkThumbnail: "thumbnail-link",
}

// Host is the name that clients are told to fetch media from. It does not exist: a client's transport leads to the
// server whatever the name.
const Host = "media.waserver.invalid"
