package migrate

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strconv"
	"strings"

	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"
	"google.golang.org/protobuf/proto"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// Baileys keeps a device as a folder of JSON files (Utils/use-multi-file-auth-state), one per key: type-id.json, where "/" in an id is written as "__" and ":" as "-".
//
//	creds.json                    credentials, and how far pre-keys have got      carried
//	pre-key-N.json                a one-time pre-key                              carried; uploaded if N < firstUnuploadedPreKeyId
//	app-state-sync-key-ID.json    ID in base64                                    carried
//	identity-key-USER.DEVICE.json the identity of a remote device                 carried
//	lid-mapping-PN.json           the LID of a phone number                       carried; lid-mapping-LID_reverse.json says the same
//	tctoken-JID.json              a privacy token                                 carried
//	session-*, sender-key-*       as its own libsignal writes them                left: begun anew
//	app-state-sync-version-*      without the contacts that came with it          left: fetched anew at their next change, with the contacts
//	device-list-*, sender-key-memory-*  what it remembers of devices              left: asked for anew
//
// What peers send on sessions that were left heals through retry receipts.

// ErrBaileys says that a folder is none of Baileys, or that its credentials are not those of a paired device.
var ErrBaileys = errors.New("migrate: not the folder of a paired Baileys device")

// BaileysOptions say how a folder is imported.
type BaileysOptions struct {
	// Instance is the name of the instance. Defaults to the device's JID.
	Instance string

	// Exact is your word that the bot which used the folder is stopped, and that it is not an older copy. There are no sending chains in what is carried, so all
	// that depends on it are the pre-keys: without it fresh ones are uploaded, under ids far ahead.
	Exact bool

	// Replace: see [pgstore.ImportConfig].
	Replace bool
}

// FromBaileys imports the device in a folder, os.DirFS("auth_info_baileys") for example, as [pgstore.Container.Import] does. What could not be carried is in the
// result's Skipped, by the type that its file's name says. Nothing must be connected with the device.
func FromBaileys(ctx context.Context, c *pgstore.Container, folder fs.FS, opts BaileysOptions) (*pgstore.ImportResult, error) {
	r := &baileysReader{folder: folder}
	creds, err := r.credentials()
	if err != nil {
		return nil, err
	}
	result, err := c.Import(ctx, opts.Instance, r.entries(creds), pgstore.ImportConfig{Source: "Baileys", Exact: opts.Exact, Replace: opts.Replace})
	if err != nil {
		return nil, err
	}
	result.Skipped = append(r.skipped, result.Skipped...)
	return result, nil
}

// baileysFile is the most that is read of a file: all that are read are small.
const baileysFile = 1 << 20

type baileysReader struct {
	folder     fs.FS
	unuploaded uint32 // the first pre-key id that was not uploaded
	nextPreKey uint32
	skipped    []pgstore.Skipped
}

// octets are bytes as Baileys writes them: as {"type":"Buffer","data":…} with base64, or as a list, or as base64 alone.
type octets []byte

// UnmarshalJSON implements [json.Unmarshaler].
func (o *octets) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	if len(b) > 0 && b[0] == '{' {
		var boxed struct {
			Type string          `json:"type"`
			Data json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(b, &boxed); err != nil {
			return err
		}
		b = boxed.Data
	}
	if len(b) > 0 && b[0] == '[' {
		var list []uint8
		var numbers []uint16
		if err := json.Unmarshal(b, &numbers); err != nil {
			return err
		}
		for _, n := range numbers {
			if n > 255 {
				return errors.New("not a byte")
			}
			list = append(list, uint8(n))
		}
		*o = list
		return nil
	}
	return json.Unmarshal(b, (*[]byte)(o))
}

// number is an integer that may be written as a string.
type number int64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	parsed, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	*n = number(parsed)
	return err
}

type baileysPair struct {
	Private octets `json:"private"`
}

// baileysCreds is what is read of creds.json.
type baileysCreds struct {
	NoiseKey          baileysPair `json:"noiseKey"`
	SignedIdentityKey baileysPair `json:"signedIdentityKey"`
	SignedPreKey      struct {
		KeyPair   baileysPair `json:"keyPair"`
		Signature octets      `json:"signature"`
		KeyID     uint32      `json:"keyId"`
	} `json:"signedPreKey"`
	RegistrationID uint32 `json:"registrationId"`
	AdvSecretKey   []byte `json:"advSecretKey"`
	Me             struct {
		ID   string        `json:"id"`
		LID  string        `json:"lid"`
		Name portable.Text `json:"name"`
	} `json:"me"`
	Account struct {
		Details             octets `json:"details"`
		AccountSignatureKey octets `json:"accountSignatureKey"`
		AccountSignature    octets `json:"accountSignature"`
		DeviceSignature     octets `json:"deviceSignature"`
	} `json:"account"`
	SignalIdentities []struct {
		IdentifierKey octets `json:"identifierKey"`
	} `json:"signalIdentities"`
	Platform                portable.Text `json:"platform"`
	NextPreKeyID            uint32        `json:"nextPreKeyId"`
	FirstUnuploadedPreKeyID uint32        `json:"firstUnuploadedPreKeyId"`
}

// parse reads a file. An error of JSON may quote a key, so it is not told.
func (r *baileysReader) parse(name string, into any) error {
	f, err := r.folder.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, baileysFile))
	if err != nil {
		return err
	}
	if json.Unmarshal(data, into) != nil {
		return fmt.Errorf("%w: %s is malformed", ErrBaileys, name)
	}
	return nil
}

func (r *baileysReader) credentials() (*portable.Credentials, error) {
	var c baileysCreds
	if err := r.parse("creds.json", &c); err != nil {
		if errors.Is(err, ErrBaileys) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrBaileys, err)
	}
	r.unuploaded, r.nextPreKey = c.FirstUnuploadedPreKeyID, c.NextPreKeyID
	jid, err := types.ParseJID(c.Me.ID)
	if err != nil || jid.User == "" || jid.Server != types.DefaultUserServer {
		return nil, fmt.Errorf("%w: creds.json has no JID: it was not paired", ErrBaileys)
	}
	accountKey := withoutType(c.Account.AccountSignatureKey)
	if len(accountKey) == 0 && len(c.SignalIdentities) > 0 { // as written by versions that did not keep it there
		accountKey = withoutType(c.SignalIdentities[0].IdentifierKey)
	}
	e := &portable.Credentials{
		JID: portable.Text(jid.String()), RegistrationID: c.RegistrationID,
		NoiseKey: c.NoiseKey.Private, IdentityKey: c.SignedIdentityKey.Private,
		SignedPreKey: c.SignedPreKey.KeyPair.Private, SignedPreKeyID: c.SignedPreKey.KeyID, SignedPreKeySignature: c.SignedPreKey.Signature,
		AdvKey: c.AdvSecretKey, AdvDetails: c.Account.Details, AdvAccountSig: c.Account.AccountSignature, AdvAccountSigKey: accountKey, AdvDeviceSig: c.Account.DeviceSignature,
		Platform: c.Platform, PushName: c.Me.Name,
	}
	if lid, err := types.ParseJID(c.Me.LID); err == nil && lid.Server == types.HiddenUserServer && lid.User != "" {
		lid.Device = jid.Device // some versions leave it out
		e.LID = portable.Text(lid.String())
	}
	return e, nil
}

// withoutType is a public key without the byte that says of which curve it is.
func withoutType(key []byte) []byte {
	if len(key) == 33 && key[0] == 5 {
		return key[1:]
	}
	return key
}

// baileysTypes are the types of files, each with what becomes of it: it is read, or left for a reason.
var baileysTypes = []struct {
	prefix, left string
	read         func(r *baileysReader, file, id string) (portable.Entry, error)
}{
	{"app-state-sync-key-", "", (*baileysReader).appStateKey},
	{"app-state-sync-version-", "at its next change the collection is fetched anew, with the contacts in it", nil},
	{"sender-key-memory-", "who has which sender key is found out anew", nil},
	{"sender-key-", "its format is another one, it is begun anew", nil},
	{"session-", "its format is another one, it is begun anew", nil},
	{"device-list-", "it is asked for anew", nil},
	{"pre-key-", "", (*baileysReader).preKey},
	{"identity-key-", "", (*baileysReader).identity},
	{"lid-mapping-", "", (*baileysReader).lidPair},
	{"tctoken-", "", (*baileysReader).token},
}

// entries reads the folder. Of a file that cannot be read it is told; that does not keep the others.
func (r *baileysReader) entries(creds *portable.Credentials) iter.Seq2[portable.Entry, error] {
	return func(yield func(portable.Entry, error) bool) {
		r.skipped = nil
		if !yield(creds, nil) {
			return
		}
		files, err := fs.ReadDir(r.folder, ".")
		if err != nil {
			yield(nil, err)
			return
		}
		for _, f := range files {
			e := r.entry(f)
			if e != nil && !yield(e, nil) {
				return
			}
		}
		if r.nextPreKey > 0 {
			yield(&portable.PreKeyCounter{Next: r.nextPreKey}, nil)
		}
	}
}

// entry is that of a file, nil for none.
func (r *baileysReader) entry(f fs.DirEntry) portable.Entry {
	name, isJSON := strings.CutSuffix(f.Name(), ".json")
	if f.Name() == "creds.json" {
		return nil
	}
	skip := func(kind, id, reason string) portable.Entry {
		r.skipped = append(r.skipped, pgstore.Skipped{Kind: kind, Name: id, Reason: reason})
		return nil
	}
	if !isJSON || f.IsDir() {
		return skip("file", f.Name(), "it is not known")
	}
	for _, t := range baileysTypes {
		id, ok := strings.CutPrefix(name, t.prefix)
		if !ok {
			continue
		}
		kind := strings.TrimSuffix(t.prefix, "-")
		if t.read == nil {
			return skip(kind, id, t.left)
		}
		e, err := t.read(r, f.Name(), id)
		if err != nil {
			return skip(kind, id, "it cannot be read")
		}
		return e
	}
	return skip("file", f.Name(), "it is not known")
}

func (r *baileysReader) preKey(file, id string) (portable.Entry, error) {
	var pair baileysPair
	if err := r.parse(file, &pair); err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(id, 10, 24)
	if err != nil || strconv.FormatUint(n, 10) != id {
		return nil, ErrBaileys
	}
	return &portable.PreKey{ID: uint32(n), Private: pair.Private, Uploaded: uint32(n) < r.unuploaded}, nil
}

func (r *baileysReader) appStateKey(file, id string) (portable.Entry, error) {
	var key struct {
		KeyData     octets `json:"keyData"`
		Timestamp   number `json:"timestamp"`
		Fingerprint struct {
			RawID         uint32   `json:"rawId"`
			CurrentIndex  uint32   `json:"currentIndex"`
			DeviceIndexes []uint32 `json:"deviceIndexes"`
		} `json:"fingerprint"`
	}
	if err := r.parse(file, &key); err != nil {
		return nil, err
	}
	keyID, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(id, "__", "/"))
	if err != nil {
		return nil, err
	}
	fingerprint, err := proto.MarshalOptions{Deterministic: true}.Marshal(&waE2E.AppStateSyncKeyFingerprint{
		RawID: &key.Fingerprint.RawID, CurrentIndex: &key.Fingerprint.CurrentIndex, DeviceIndexes: key.Fingerprint.DeviceIndexes,
	})
	return &portable.AppStateKey{ID: keyID, Data: key.KeyData, Fingerprint: fingerprint, Timestamp: int64(key.Timestamp)}, err
}

func (r *baileysReader) identity(file, id string) (portable.Entry, error) {
	var key octets
	if err := r.parse(file, &key); err != nil {
		return nil, err
	}
	user, device, ok := strings.Cut(id, ".")
	if _, err := strconv.ParseUint(device, 10, 16); !ok || user == "" || err != nil || len(key) != 33 {
		return nil, ErrBaileys
	}
	return &portable.Identity{Address: portable.Text(user + ":" + device), Key: withoutType(key)}, nil
}

func (r *baileysReader) lidPair(file, id string) (portable.Entry, error) {
	if strings.HasSuffix(id, "_reverse") {
		return nil, nil
	}
	var lid string
	if err := r.parse(file, &lid); err != nil {
		return nil, err
	}
	if !digits(id) || !digits(lid) {
		return nil, ErrBaileys
	}
	return &portable.LIDPair{LID: portable.Text(lid), PN: portable.Text(id)}, nil
}

func digits(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, "0123456789") == ""
}

func (r *baileysReader) token(file, id string) (portable.Entry, error) {
	var token struct {
		Token           octets  `json:"token"`
		Timestamp       number  `json:"timestamp"`
		SenderTimestamp *number `json:"senderTimestamp"`
	}
	if err := r.parse(file, &token); err != nil {
		return nil, err
	}
	jid, err := types.ParseJID(id)
	if err != nil || jid.User == "" || len(token.Token) == 0 {
		return nil, ErrBaileys
	}
	e := &portable.PrivacyToken{JID: portable.Text(jid.ToNonAD().String()), Token: bytes.Clone(token.Token), Timestamp: int64(token.Timestamp)}
	if token.SenderTimestamp != nil {
		sent := int64(*token.SenderTimestamp)
		e.SenderTimestamp = &sent
	}
	return e, nil
}
