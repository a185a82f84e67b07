package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What strangers send is stored as it is, whatever it is; what only a caller gets wrong is refused by the call that got it, and changes nothing.

// strange is what a stranger may call himself, his group or his message.
var strange = map[string]string{
	"b": "b\x00|\\", "c": "c\xff\xfe", "d": strings.Repeat("d", 1500),
	"h": "h\x00\xff|h",
	"B": "B\x00", "C": strings.Repeat("C", 2000), "D": "D\xff|\\p",
	"2": "2\x00\xff", "3": strings.Repeat("3", 1200), "4": "4|\\0",
	"y": "y\x00\xff",
}

// called is the name behind a letter.
func called(letter string) string {
	if name, ok := strange[letter]; ok {
		return name
	}
	return letter
}

// ordinary says whether the table holds a name, or an address, as it is.
func ordinary(name string) bool {
	return !slices.Contains(slices.Collect(maps.Values(strange)), strings.TrimSuffix(name, ":1"))
}

// endings of texts: most have none.
var endings = []string{
	"\x00", "\xff\xfe", "\\u0000", "\\", "'\"", `{"record":"x"}`, `{"b64":"AA=="}`, "|", "\U0001F469\u200d\U0001F52C", "<&>\u2028", strings.Repeat("ä\x00", 1000),
}

// text is new each time.
func (r *resident) text() string {
	text := fmt.Sprint(r.rng.Uint64())
	if n := r.rng.IntN(4 * len(endings)); n < len(endings) {
		text += endings[n]
	}
	return text
}

func (r *resident) pick(from string) string { return called(string(from[r.rng.IntN(len(from))])) }

func same(want, got string, err error) error {
	if err == nil && want != got {
		err = fmt.Errorf("want %d bytes %.50q, got %d bytes %.50q", len(want), want, len(got), got)
	}
	return err
}

// megabyte is a name of that length, which becomes a shorter one again.
func megabyte(ctx context.Context, _ *pgstore.Container, r *resident) error {
	if r.rng.IntN(20) > 0 {
		return nil
	}
	who := types.NewJID(r.pick("123456789"), types.DefaultUserServer)
	want := strings.Repeat("n\x00\xff", 1<<20/3)
	_, previous, err := r.device.Contacts.PutPushName(ctx, who, want)
	if err = same(r.model.names[who.User], previous, err); err != nil {
		return err
	}
	got, err := r.device.Contacts.GetContact(ctx, who)
	if err = same(want, got.PushName, err); err != nil {
		return err
	}
	r.model.names[who.User] = r.text()
	_, previous, err = r.device.Contacts.PutPushName(ctx, who, r.model.names[who.User])
	return same(want, previous, err)
}

// mistakes are calls that only a caller gets wrong.
var mistakes = []step{
	{"PutDevice of nil", func(ctx context.Context, c *pgstore.Container, _ *resident) error { return c.PutDevice(ctx, nil) }},
	{"DeleteDevice of nil", func(ctx context.Context, c *pgstore.Container, _ *resident) error { return c.DeleteDevice(ctx, nil) }},
	{"Take of nil", func(ctx context.Context, c *pgstore.Container, _ *resident) error { return c.Take(ctx, nil) }},
	{"Instance of no name", func(ctx context.Context, c *pgstore.Container, _ *resident) error {
		_, err := c.Instance(ctx, "nul\x00")
		return err
	}},
	{"Save of a new device with a key of the wrong length", func(ctx context.Context, c *pgstore.Container, r *resident) error {
		d := c.NewDevice()
		signaltest.FillPairing(d)
		d.Account.AccountSignatureKey = make([]byte, 31+2*r.rng.IntN(2))
		return d.Save(ctx)
	}},
	{"Save with an id from 2^24 on", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		d, key := *r.device, *r.device.SignedPreKey
		key.KeyID = 1<<24 + r.rng.Uint32N(1<<24)
		d.SignedPreKey, d.PushName = &key, "not saved"
		return d.Save(ctx)
	}},
	{"no session", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.Sessions.PutSession(ctx, r.pick("abcdef")+":1", nil)
	}},
	{"one session of two", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.Sessions.PutManySessions(ctx, map[string][]byte{"a:1": []byte("not stored"), called("b") + ":1": {}})
	}},
	{"no sender key", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.SenderKeys.PutSenderKey(ctx, r.pick("ghi"), "somebody:0", nil)
	}},
	{"a sync key without data", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.AppStateKeys.PutAppStateSyncKey(ctx, []byte(r.pick("xyz")), store.AppStateSyncKey{Fingerprint: []byte{1}, Timestamp: 1 << 40})
	}},
	{"one MAC of two", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		mac := bytes.Repeat([]byte("0"), 32)
		return r.device.AppState.PutAppStateMutationMACs(ctx, "regular", r.model.version, []store.AppStateMutationMAC{
			{IndexMAC: mac, ValueMAC: mac}, {IndexMAC: mac, ValueMAC: mac[:31]},
		})
	}},
	{"one secret of two", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		us := *r.device.ID
		return r.device.MsgSecrets.PutMessageSecrets(ctx, []store.MessageSecretInsert{
			{Chat: us, Sender: us, ID: r.pick("ABCDEFGHIJKLMNOP"), Secret: []byte("not stored")}, {Chat: us, Sender: us, ID: "A"},
		})
	}},
	{"one token of two", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.PrivacyTokens.PutPrivacyTokens(ctx,
			store.PrivacyToken{User: types.NewJID("1", types.DefaultUserServer), Token: []byte("not stored")},
			store.PrivacyToken{User: types.NewJID(called("2"), types.DefaultUserServer)})
	}},
	{"no salt", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.NCTSalt.PutNCTSalt(ctx, nil)
	}},
	{"no plaintext", func(ctx context.Context, _ *pgstore.Container, r *resident) error {
		return r.device.EventBuffer.AddOutgoingEvent(ctx, r.device.ID.ToNonAD(), r.pick("ABCDEFGHIJKLMNOP"), "wa", nil)
	}},
	{"a LID that is none", func(ctx context.Context, c *pgstore.Container, r *resident) error {
		return c.LIDMap.PutLIDMapping(ctx, *r.device.ID, *r.device.ID)
	}},
}

// mistake makes one of them; afterwards all is as it was. An id that no pre-key can have is the id of none.
func mistake(ctx context.Context, c *pgstore.Container, r *resident) error {
	m := mistakes[r.rng.IntN(len(mistakes))]
	if err := m.do(ctx, c, r); !errors.Is(err, pgstore.ErrInvalidInput) {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	id := 1<<24 + r.rng.Uint32()>>1
	if key, err := r.device.PreKeys.GetPreKey(ctx, id); key != nil || err != nil {
		return fmt.Errorf("pre-key %d: %w", id, err)
	}
	if err := r.device.PreKeys.RemovePreKey(ctx, id); err != nil {
		return err
	}
	return r.checkAll(ctx)
}
