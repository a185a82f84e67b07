package media

// The encryption of files, both ways, and what a message has to say of a file for its reader.

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"go.mau.fi/whatsmeow"
)

// macLength is how much of the HMAC is appended to a file.
const macLength = 10

// Reference is what a message says of a file. Its fields are those of the messages that refer to files.
type Reference struct {
	Kind          whatsmeow.MediaType
	URL           string
	DirectPath    string
	Handle        string
	MediaKey      []byte
	FileSHA256    []byte
	FileEncSHA256 []byte
	FileLength    uint64 // of the plaintext
}

// ErrCorrupt says that a file is not the one that a reference describes.
var ErrCorrupt = errors.New("media: file does not match its reference")

// fileKeys are derived from a media key.
type fileKeys struct{ iv, cipher, mac []byte }

func expand(mediaKey []byte, kind whatsmeow.MediaType) (fileKeys, error) {
	const length = aes.BlockSize + 32 + 32
	all, err := hkdf.Key(sha256.New, mediaKey, nil, string(kind), length)
	if err != nil {
		return fileKeys{}, err
	}
	return fileKeys{iv: all[:16], cipher: all[16:48], mac: all[48:80]}, nil
}

func (k fileKeys) sum(ciphertext []byte) []byte {
	h := hmac.New(sha256.New, k.mac)
	h.Write(k.iv)
	h.Write(ciphertext)
	return h.Sum(nil)[:macLength]
}

// seal encrypts a file under a new key. The reference still lacks where the file is.
func seal(plaintext []byte, kind whatsmeow.MediaType) ([]byte, Reference, error) {
	ref := Reference{Kind: kind, MediaKey: make([]byte, 32), FileLength: uint64(len(plaintext))}
	_, _ = rand.Read(ref.MediaKey) // never fails
	k, err := expand(ref.MediaKey, kind)
	if err != nil {
		return nil, ref, err
	}
	block, err := aes.NewCipher(k.cipher)
	if err != nil {
		return nil, ref, err
	}
	padding := aes.BlockSize - len(plaintext)%aes.BlockSize
	file := append(bytes.Clone(plaintext), bytes.Repeat([]byte{byte(padding)}, padding)...)
	cipher.NewCBCEncrypter(block, k.iv).CryptBlocks(file, file)
	file = append(file, k.sum(file)...)
	ref.FileSHA256, ref.FileEncSHA256 = hash(plaintext), hash(file)
	return file, ref, nil
}

// open decrypts a file as its reference says.
func open(file []byte, ref Reference) ([]byte, error) {
	k, err := expand(ref.MediaKey, ref.Kind)
	if err != nil {
		return nil, err
	}
	if len(file) < aes.BlockSize+macLength || (len(file)-macLength)%aes.BlockSize != 0 || !bytes.Equal(hash(file), ref.FileEncSHA256) {
		return nil, ErrCorrupt
	}
	ciphertext, mac := file[:len(file)-macLength], file[len(file)-macLength:]
	if !hmac.Equal(k.sum(ciphertext), mac) {
		return nil, ErrCorrupt
	}
	block, err := aes.NewCipher(k.cipher)
	if err != nil {
		return nil, err
	}
	plaintext := make([]byte, len(ciphertext))
	cipher.NewCBCDecrypter(block, k.iv).CryptBlocks(plaintext, ciphertext)
	padding := int(plaintext[len(plaintext)-1])
	if padding == 0 || padding > aes.BlockSize {
		return nil, ErrCorrupt
	}
	plaintext = plaintext[:len(plaintext)-padding]
	if !bytes.Equal(hash(plaintext), ref.FileSHA256) {
		return nil, ErrCorrupt
	}
	return plaintext, nil
}

func hash(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:]
}
