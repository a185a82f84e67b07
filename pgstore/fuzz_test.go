package pgstore_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// textMethod is a method that takes text or bytes: it puts what it is given, and gets it again.
type textMethod struct {
	name string
	put  func(c *pgstore.Container, d *store.Device, a, b string, raw []byte) error
	get  func(c *pgstore.Container, d *store.Device, a, b string, raw []byte) (got any, err error)
	want func(a, b string, raw []byte) any
}

func raw32(raw []byte) [32]byte { return sha256.Sum256(raw) }

func wantRaw(_, _ string, raw []byte) any { return string(raw) }

func wantB(_, b string, _ []byte) any { return b }

func wantTrue(string, string, []byte) any { return true }

func jidOf(user, server string) types.JID { return types.JID{User: user, Server: server} }

var textMethods = []textMethod{
	{
		"PutSession",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			return d.Sessions.PutSession(ctx, a, raw)
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			got, err := d.Sessions.GetSession(ctx, a)
			return string(got), err
		}, wantRaw,
	},
	{
		"PutManySessions",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.Sessions.PutManySessions(ctx, map[string][]byte{a: raw, b: raw})
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.Sessions.GetManySessions(ctx, []string{a, b})
			return string(got[b]), errors.Join(err, sameBytes(got[a], got[b]))
		}, wantRaw,
	},
	{
		"PutIdentity",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			return d.Identities.PutIdentity(ctx, a, raw32(raw))
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			wrong, err := d.Identities.IsTrustedIdentity(ctx, a, raw32(append(bytes.Clone(raw), 1)))
			if err != nil || wrong {
				return false, err
			}
			return d.Identities.IsTrustedIdentity(ctx, a, raw32(raw))
		}, wantTrue,
	},
	{
		"PutSenderKey",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.SenderKeys.PutSenderKey(ctx, a, b, raw)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.SenderKeys.GetSenderKey(ctx, a, b)
			return string(got), err
		}, wantRaw,
	},
	{
		"PutAppStateSyncKey",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.AppStateKeys.PutAppStateSyncKey(ctx, []byte(a), store.AppStateSyncKey{Data: raw, Fingerprint: []byte(b), Timestamp: time.Now().UnixNano()})
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.AppStateKeys.GetAppStateSyncKey(ctx, []byte(a))
			if err != nil || got == nil {
				return nil, err
			}
			return string(got.Data), sameBytes(got.Fingerprint, []byte(b))
		}, wantRaw,
	},
	{
		"PutAppStateMutationMACs",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			index, value := raw32(raw), raw32([]byte(a))
			if err := d.AppState.PutAppStateVersion(ctx, a, 1, [128]byte{1}); err != nil {
				return err
			}
			return d.AppState.PutAppStateMutationMACs(ctx, a, 1, []store.AppStateMutationMAC{{IndexMAC: index[:], ValueMAC: value[:]}})
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			index, value := raw32(raw), raw32([]byte(a))
			got, err := d.AppState.GetAppStateMutationMAC(ctx, a, index[:])
			return bytes.Equal(got, value[:]), err
		}, wantTrue,
	},
	{
		"PutAppStateMutationMACs with any index",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.AppState.PutAppStateMutationMACs(ctx, a, 1, []store.AppStateMutationMAC{{IndexMAC: []byte(b), ValueMAC: raw}})
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.AppState.GetAppStateMutationMAC(ctx, a, []byte(b))
			return string(got), err
		}, wantRaw,
	},
	{
		"PutPushName",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			_, _, err := d.Contacts.PutPushName(ctx, jidOf(a, types.DefaultUserServer), b)
			return err
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			got, err := d.Contacts.GetContact(ctx, jidOf(a, types.DefaultUserServer))
			return got.PushName, err
		}, wantB,
	},
	{
		"PutAllContactNames",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.Contacts.PutAllContactNames(ctx, []store.ContactEntry{{JID: jidOf(a, string(raw)), FirstName: b, FullName: b}})
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			got, err := d.Contacts.GetContact(ctx, jidOf(a, string(raw)))
			return got.FullName, err
		}, wantB,
	},
	{
		"PutPinned",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			return d.ChatSettings.PutPinned(ctx, jidOf(a, b), true)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.ChatSettings.GetChatSettings(ctx, jidOf(a, b))
			return got.Pinned, err
		}, wantTrue,
	},
	{
		"PutMessageSecret",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.MsgSecrets.PutMessageSecret(ctx, jidOf(a, types.GroupServer), jidOf("s", types.DefaultUserServer), b+string(raw), raw)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) (any, error) {
			got, _, err := d.MsgSecrets.GetMessageSecret(ctx, jidOf(a, types.GroupServer), jidOf("s", types.DefaultUserServer), b+string(raw))
			return string(got), err
		}, wantRaw,
	},
	{
		"PutPrivacyTokens",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			return d.PrivacyTokens.PutPrivacyTokens(ctx, store.PrivacyToken{User: jidOf(a, types.GroupServer), Token: raw, Timestamp: time.Now()})
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			got, err := d.PrivacyTokens.GetPrivacyToken(ctx, jidOf(a, types.GroupServer))
			if err != nil || got == nil {
				return nil, err
			}
			return string(got.Token), nil
		}, wantRaw,
	},
	{
		"PutNCTSalt",
		func(_ *pgstore.Container, d *store.Device, _, _ string, raw []byte) error {
			return d.NCTSalt.PutNCTSalt(ctx, raw)
		},
		func(_ *pgstore.Container, d *store.Device, _, _ string, _ []byte) (any, error) {
			got, err := d.NCTSalt.GetNCTSalt(ctx)
			return string(got), err
		}, wantRaw,
	},
	{
		"PutBufferedEvent",
		func(_ *pgstore.Container, d *store.Device, _, _ string, raw []byte) error {
			if event, err := d.EventBuffer.GetBufferedEvent(ctx, raw32(raw)); err != nil || event != nil {
				return err // the fuzzer has sent it before
			}
			return d.EventBuffer.PutBufferedEvent(ctx, raw32(raw), raw, time.Now())
		},
		func(_ *pgstore.Container, d *store.Device, _, _ string, raw []byte) (any, error) {
			got, err := d.EventBuffer.GetBufferedEvent(ctx, raw32(raw))
			if err != nil || got == nil {
				return nil, err
			}
			return string(got.Plaintext), nil
		}, wantRaw,
	},
	{
		"AddOutgoingEvent",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.EventBuffer.AddOutgoingEvent(ctx, jidOf("c", types.DefaultUserServer), a, b, raw)
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			format, got, err := d.EventBuffer.GetOutgoingEvent(ctx, jidOf("c", types.DefaultUserServer), types.EmptyJID, a)
			return format, errors.Join(err, sameBytes(got, raw))
		}, wantB,
	},
	{
		"PutLIDMapping",
		func(c *pgstore.Container, _ *store.Device, a, b string, _ []byte) error {
			return c.LIDMap.PutLIDMapping(ctx, jidOf(a, types.HiddenUserServer), jidOf(b, types.DefaultUserServer))
		},
		func(c *pgstore.Container, _ *store.Device, a, _ string, _ []byte) (any, error) {
			got, err := c.LIDMap.GetPNForLID(ctx, jidOf(a, types.HiddenUserServer))
			return got.User, err
		}, func(a, b string, _ []byte) any {
			if a == "" {
				return "" // nobody: stored nowhere
			}
			return b
		},
	},
	{
		"GetManyLIDsForPNs",
		func(c *pgstore.Container, _ *store.Device, a, b string, _ []byte) error {
			return c.LIDMap.PutLIDMapping(ctx, jidOf(a, types.HiddenUserServer), jidOf(b, types.DefaultUserServer))
		},
		func(c *pgstore.Container, _ *store.Device, a, b string, raw []byte) (any, error) {
			pn := jidOf(b, types.DefaultUserServer)
			one, err1 := c.LIDMap.GetLIDForPN(ctx, pn)
			many, err2 := c.LIDMap.GetManyLIDsForPNs(ctx, []types.JID{pn, jidOf(string(raw), types.DefaultUserServer), jidOf(a, b)})
			return one.User, errors.Join(err1, err2, sameBytes([]byte(one.User), []byte(many[pn].User)))
		}, func(a, b string, _ []byte) any {
			if b == "" {
				return "" // nobody: stored nowhere
			}
			return a
		},
	},
	{
		"PutContactName",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.Contacts.PutContactName(ctx, jidOf(a, types.HiddenUserServer), string(raw), b)
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			got, err := d.Contacts.GetContact(ctx, jidOf(a, types.HiddenUserServer))
			return got.FullName, errors.Join(err, sameBytes([]byte(got.FirstName), raw))
		}, wantB,
	},
	{
		"PutBusinessName",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			_, _, err := d.Contacts.PutBusinessName(ctx, jidOf(a, b), b)
			return err
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.Contacts.GetContact(ctx, jidOf(a, b))
			return got.BusinessName, err
		}, wantB,
	},
	{
		"PutManyRedactedPhones",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.Contacts.PutManyRedactedPhones(ctx, []store.RedactedPhoneEntry{{JID: jidOf(a, string(raw)), RedactedPhone: b}})
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			got, err := d.Contacts.GetContact(ctx, jidOf(a, string(raw)))
			return got.RedactedPhone, err
		}, wantB,
	},
	{
		"PutMutedUntil",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			return d.ChatSettings.PutMutedUntil(ctx, jidOf(a, b), store.MutedForever)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.ChatSettings.GetChatSettings(ctx, jidOf(a, b))
			return got.MutedUntil.Equal(store.MutedForever), err
		}, wantTrue,
	},
	{
		"PutArchived",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			return d.ChatSettings.PutArchived(ctx, jidOf(a, b), true)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			got, err := d.ChatSettings.GetChatSettings(ctx, jidOf(a, b))
			return got.Archived, err
		}, wantTrue,
	},
	{
		"PutMessageSecrets",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			return d.MsgSecrets.PutMessageSecrets(ctx, []store.MessageSecretInsert{{Chat: jidOf("c", a), Sender: jidOf(b, a), ID: string(raw), Secret: raw}})
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) (any, error) {
			got, _, err := d.MsgSecrets.GetMessageSecret(ctx, jidOf("c", a), jidOf(b, a), string(raw))
			return string(got), err
		}, wantRaw,
	},
	{
		"PutManyLIDMappings",
		func(c *pgstore.Container, _ *store.Device, a, b string, _ []byte) error {
			return c.LIDMap.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: jidOf(a, types.HiddenUserServer), PN: jidOf(b, types.DefaultUserServer)}})
		},
		func(c *pgstore.Container, _ *store.Device, a, _ string, _ []byte) (any, error) {
			got, err := c.LIDMap.GetPNForLID(ctx, jidOf(a, types.HiddenUserServer))
			return got.User, err
		}, func(a, b string, _ []byte) any {
			if a == "" || len(a) > 1000 || len(b) > 1000 {
				return "" // skipped
			}
			return b
		},
	},
	{
		"DeleteSession",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			if err := d.Sessions.PutSession(ctx, a, raw); err != nil {
				return err
			}
			return d.Sessions.DeleteSession(ctx, a)
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			has, err := d.Sessions.HasSession(ctx, a)
			return !has, err
		}, wantTrue,
	},
	{
		"DeleteAllSessions",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			if err := d.Sessions.PutManySessions(ctx, map[string][]byte{user(a) + ":0": raw, user(a) + "_1:0": raw}); err != nil {
				return err
			}
			return d.Sessions.DeleteAllSessions(ctx, user(a))
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			gone, err1 := d.Sessions.HasSession(ctx, user(a)+":0")
			other, err2 := d.Sessions.HasSession(ctx, user(a)+"_1:0")
			return !gone && other, errors.Join(err1, err2)
		}, wantTrue,
	},
	{
		"DeleteIdentity",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			if err := d.Identities.PutIdentity(ctx, a, raw32(raw)); err != nil {
				return err
			}
			return d.Identities.DeleteIdentity(ctx, a)
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			return d.Identities.IsTrustedIdentity(ctx, a, [32]byte{})
		}, wantTrue,
	},
	{
		"DeleteAllIdentities",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			if err := d.Identities.PutIdentity(ctx, user(a)+":0", raw32(raw)); err != nil {
				return err
			}
			return d.Identities.DeleteAllIdentities(ctx, user(a))
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			return d.Identities.IsTrustedIdentity(ctx, user(a)+":0", [32]byte{})
		}, wantTrue,
	},
	{
		"DeleteAppStateVersion",
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) error {
			mac := raw32(raw)
			return errors.Join(
				d.AppState.PutAppStateVersion(ctx, "x"+a, 1, [128]byte{1}),
				d.AppState.PutAppStateMutationMACs(ctx, "x"+a, 1, []store.AppStateMutationMAC{{IndexMAC: mac[:], ValueMAC: mac[:]}}),
				d.AppState.DeleteAppStateVersion(ctx, "x"+a))
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, _ []byte) (any, error) {
			version, _, err := d.AppState.GetAppStateVersion(ctx, "x"+a)
			return version == 0, err
		}, wantTrue,
	},
	{
		"DeleteAppStateMutationMACs",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			mac := raw32(raw)
			return errors.Join(
				d.AppState.PutAppStateMutationMACs(ctx, "y"+a, 1, []store.AppStateMutationMAC{{IndexMAC: mac[:], ValueMAC: mac[:]}}),
				d.AppState.DeleteAppStateMutationMACs(ctx, "y"+a, [][]byte{mac[:], []byte(b), raw}))
		},
		func(_ *pgstore.Container, d *store.Device, a, _ string, raw []byte) (any, error) {
			mac := raw32(raw)
			got, err := d.AppState.GetAppStateMutationMAC(ctx, "y"+a, mac[:])
			return got == nil, err
		}, wantTrue,
	},
	{
		"MigratePNToLID",
		func(_ *pgstore.Container, d *store.Device, a, b string, raw []byte) error {
			migrations++ // it runs once for each phone number
			from, to := migration(a, b)
			if err := d.Sessions.PutSession(ctx, from.SignalAddress().String(), raw); err != nil {
				return err
			}
			return d.Sessions.MigratePNToLID(ctx, from, to)
		},
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) (any, error) {
			from, to := migration(a, b)
			left, err1 := d.Sessions.HasSession(ctx, from.SignalAddress().String())
			got, err2 := d.Sessions.GetSession(ctx, to.SignalAddress().String())
			return string(got), errors.Join(err1, err2, sameBytes(fmt.Append(nil, left), []byte("false")))
		}, wantRaw,
	},
	{
		"Instance",
		func(c *pgstore.Container, _ *store.Device, a, _ string, _ []byte) error {
			d, err := c.Instance(ctx, a)
			if err != nil || d.ID != nil {
				return err
			}
			signaltest.FillPairing(d)
			return d.Save(ctx)
		},
		func(c *pgstore.Container, _ *store.Device, a, _ string, _ []byte) (any, error) {
			infos, err := c.Instances(ctx)
			return slices.ContainsFunc(infos, func(info pgstore.InstanceInfo) bool { return info.ID == a }), err
		}, wantTrue,
	},
	{
		"GetDevice",
		func(c *pgstore.Container, _ *store.Device, a, b string, _ []byte) error {
			_, err := c.GetDevice(ctx, jidOf(a, b))
			return err
		},
		func(c *pgstore.Container, _ *store.Device, a, b string, _ []byte) (any, error) {
			d, err := c.GetDevice(ctx, jidOf(a, b))
			return d == nil, err
		}, wantTrue,
	},
	{
		"Save",
		func(_ *pgstore.Container, d *store.Device, a, b string, _ []byte) error {
			d.PushName, d.BusinessName, d.Platform = b, a, b
			return d.Save(ctx)
		},
		func(c *pgstore.Container, d *store.Device, _, _ string, _ []byte) (any, error) {
			got, err := c.GetDevice(ctx, *d.ID)
			if err != nil {
				return nil, err
			}
			return got.PushName, nil
		}, wantB,
	},
}

// user is a user whose addresses can be found by it: of a longer one only the beginning would be in the key.
func user(a string) string { return a[:min(len(a), 100)] }

var migrations int

func migration(a, b string) (from, to types.JID) {
	return jidOf(fmt.Sprint(user(a), migrations), types.DefaultUserServer), jidOf(fmt.Sprint(user(b), migrations), types.HiddenUserServer)
}

func sameBytes(a, b []byte) error {
	if !bytes.Equal(a, b) {
		return fmt.Errorf("%q is not %q", a, b)
	}
	return nil
}

// Whatever is put is refused by that very call, or comes out of the database as it went in; the instance goes on.
func FuzzP10WhatIsPutIsRefusedOrComesOutAsItWentIn(f *testing.F) {
	c, _ := open(f, func(cfg *pgstore.Config) { cfg.MemoryBudget = 1 }) // what was put has to be fetched
	d := pair(f, c.NewDevice())
	long := strings.Repeat("n\x00", 1<<19)
	for m := range textMethods {
		f.Add(uint8(m), "a", "b", []byte("c"))
		f.Add(uint8(m), "", "", []byte{})
		f.Add(uint8(m), "a\x00|\\\xff", "b\x00|\\\xff", []byte("c\x00\xff"))
		f.Add(uint8(m), "\U0001F469\u200d\U0001F52C", `{"b64":"AA=="}`, []byte(`{"SenderKeyStates":[{"KeyID":1}]}`))
		f.Add(uint8(m), long, long+"b", []byte(long))
		f.Add(uint8(m), "looks like a record", "b", []byte(`{"SenderKeyStates":[{"KeyID":}`))
		f.Add(uint8(m), "1_2:3", "4:5", bytes.Repeat([]byte{7}, 32))
	}
	f.Fuzz(func(t *testing.T, method uint8, a, b string, raw []byte) {
		m := textMethods[int(method)%len(textMethods)]
		if err := m.put(c, d, a, b, raw); err != nil {
			require.ErrorIs(t, err, pgstore.ErrInvalidInput, m.name)
			return
		}
		check := func(c *pgstore.Container, d *store.Device) {
			t.Helper()
			got, err := m.get(c, d, a, b, raw)
			require.NoError(t, err, m.name)
			if want := m.want(a, b, raw); want != "" { // an empty text may as well be absent
				require.Equal(t, want, got, m.name)
			}
		}
		check(c, d)
		require.NoError(t, c.Flush(ctx), m.name)
		check(c, d)
	})
}

// kept is all that the store keeps of a device.
func kept(d *store.Device) []any {
	return []any{
		*d.ID, d.LID, *d.NoiseKey, *d.IdentityKey, *d.SignedPreKey, d.RegistrationID, d.AdvSecretKey,
		d.Account.Details, d.Account.AccountSignature, d.Account.AccountSignatureKey, d.Account.DeviceSignature,
		d.Platform, d.BusinessName, d.PushName, d.LIDMigrationTimestamp, d.CompanionMetaNonce, d.FacebookUUID,
	}
}

// Whatever a device holds when it is saved, and when it is saved again, is refused by that call, or another container reads it as it was.
func FuzzP10ASavedDeviceIsReadAsItWas(f *testing.F) {
	c, dsn := open(f)
	other := reopen(f, dsn)
	long := strings.Repeat("n", 1001)
	for _, s := range []string{"1", "", "1.x", "1:x", "1.2", "1:2", "a@b", "1.2:3", "1.2.3", "nul\x00", "broken\xff", long} {
		f.Add(s, types.DefaultUserServer, "2", "text", []byte("raw"), uint32(7), false)
		f.Add("1", types.DefaultUserServer, s, s, []byte(s), uint32(1<<24-1), true)
		f.Add("1", s, "2", s, []byte{}, uint32(1<<16|7), true)
	}
	f.Add("1", types.DefaultUserServer, "2", "text", []byte("raw"), uint32(1<<24|7), false)
	f.Fuzz(func(t *testing.T, user, server, lid, text string, raw []byte, n uint32, named bool) {
		d := c.NewDevice()
		if named {
			var err error
			d, err = c.Instance(ctx, "named")
			require.NoError(t, err)
		}
		signaltest.FillPairing(d)
		key, signature := raw32(raw), sha512.Sum512(raw)
		d.ID = &types.JID{User: user, Device: uint16(n), RawAgent: uint8(n >> 16), Integrator: uint16(n >> 24), Server: server}
		d.LID = types.JID{User: lid, Device: uint16(n >> 8), Server: types.HiddenUserServer}
		d.NoiseKey, d.IdentityKey = keys.NewKeyPairFromPrivateKey(key), keys.NewKeyPairFromPrivateKey(raw32([]byte(text)))
		d.SignedPreKey = &keys.PreKey{KeyPair: *d.IdentityKey, KeyID: n, Signature: &signature}
		d.RegistrationID, d.LIDMigrationTimestamp, d.AdvSecretKey = n, -int64(n)<<31, raw
		d.Account = &waAdv.ADVSignedDeviceIdentity{Details: raw, AccountSignature: signature[:], AccountSignatureKey: key[:], DeviceSignature: signature[:]}
		d.Platform, d.BusinessName, d.PushName, d.CompanionMetaNonce = text, user, lid, server
		if named {
			d.FacebookUUID = uuid.UUID(key[:16])
		}
		if err := d.Save(ctx); err != nil {
			require.ErrorIs(t, err, pgstore.ErrInvalidInput)
			return
		}
		got, err := other.GetDevice(ctx, *d.ID)
		require.NoError(t, err)
		require.NotNil(t, got)
		require.Equal(t, kept(d), kept(got))
		infos, err := other.Instances(ctx)
		require.NoError(t, err)
		require.Len(t, infos, 1)
		require.Equal(t, []string{d.ID.String(), d.LID.String()}, []string{infos[0].JID, infos[0].LID})

		got.LID = types.JID{User: text, Device: uint16(n), Server: server}
		got.Platform, got.BusinessName, got.PushName, got.CompanionMetaNonce = lid, server, text, user
		if err = got.Save(ctx); err == nil {
			d, err = c.GetDevice(ctx, *got.ID)
			require.NoError(t, err)
			require.NotNil(t, d)
			require.Equal(t, kept(got), kept(d))
			require.NoError(t, d.Delete(ctx))
			require.NoError(t, got.Delete(ctx))
			return
		}
		require.ErrorIs(t, err, pgstore.ErrInvalidInput)
		require.NoError(t, got.Delete(ctx))
		require.NoError(t, d.Delete(ctx))
	})
}
