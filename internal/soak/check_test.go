package soak

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

// check reads one of everything and compares it with the model.
func (r *resident) check(ctx context.Context) error {
	return r.compare(ctx, r.pick("abcdef")+":1", r.pick("ghi"), r.pick("ABCDEFGHIJKLMNOP"), r.pick("123456789"), r.pick("0123456789"), r.pick("xyz"))
}

// checkAll compares all of it.
func (r *resident) checkAll(ctx context.Context) error {
	for i := range 16 {
		at := func(from string) string { return called(string(from[i%len(from)])) }
		if err := r.compare(ctx, at("abcdef")+":1", at("ghi"), at("ABCDEFGHIJKLMNOP"), at("123456789"), at("0123456789"), at("xyz")); err != nil {
			return err
		}
	}
	for n := 1; n <= r.events; n++ {
		if err := r.compareEvent(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *resident) compare(ctx context.Context, address, group, id, who, index, syncKey string) error {
	d, m := r.device, r.model
	session, err := d.Sessions.GetSession(ctx, address)
	if err = same(m.sessions[address], string(session), err); err != nil {
		return fmt.Errorf("session %.20q: %w", address, err)
	}
	key, err := d.SenderKeys.GetSenderKey(ctx, group, "somebody:0")
	if err = same(m.senderKeys[group], string(key), err); err != nil {
		return fmt.Errorf("sender key of %.20q: %w", group, err)
	}
	secret, _, err := d.MsgSecrets.GetMessageSecret(ctx, *d.ID, *d.ID, id)
	if err = same(m.secrets[id], string(secret), err); err != nil {
		return fmt.Errorf("secret of %.20q: %w", id, err)
	}
	_, plaintext, err := d.EventBuffer.GetOutgoingEvent(ctx, d.ID.ToNonAD(), types.EmptyJID, id)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if err = same(m.outgoing[id], string(plaintext), err); err != nil {
		return fmt.Errorf("outgoing event %.20q: %w", id, err)
	}
	jid := types.NewJID(who, types.DefaultUserServer)
	contact, err := d.Contacts.GetContact(ctx, jid)
	if err = same(m.names[who], contact.PushName, err); err != nil {
		return fmt.Errorf("name of %.20q: %w", who, err)
	}
	token, err := d.PrivacyTokens.GetPrivacyToken(ctx, jid)
	got := ""
	if token != nil {
		got = string(token.Token)
	}
	if err = same(m.tokens[who], got, err); err != nil {
		return fmt.Errorf("token of %.20q: %w", who, err)
	}
	version, _, err := d.AppState.GetAppStateVersion(ctx, "regular")
	if err != nil || version != m.version {
		return fmt.Errorf("version %d, want %d: %w", version, m.version, err)
	}
	mac, err := d.AppState.GetAppStateMutationMAC(ctx, "regular", macIndex(index))
	if err = same(m.macs[index], string(mac), err); err != nil {
		return fmt.Errorf("MAC of %.20q: %w", index, err)
	}
	if err = r.compareAppStateKeys(ctx, syncKey); err != nil {
		return err
	}
	if r.events > 0 {
		if err = r.compareEvent(ctx, 1+r.rng.IntN(r.events)); err != nil {
			return err
		}
	}
	for _, id := range m.preKeys {
		if key, err := d.PreKeys.GetPreKey(ctx, id); err != nil || key == nil {
			return fmt.Errorf("pre-key %d is gone: %w", id, err)
		}
	}
	return nil
}

func (r *resident) compareAppStateKeys(ctx context.Context, id string) error {
	key, err := r.device.AppStateKeys.GetAppStateSyncKey(ctx, []byte(id))
	var got store.AppStateSyncKey
	if key != nil {
		got = *key
	}
	if err = same(r.model.syncKeys[id], string(got.Data), err); err == nil && got.Timestamp != r.model.syncKeyTimes[id] {
		err = fmt.Errorf("timestamp %d, want %d", got.Timestamp, r.model.syncKeyTimes[id])
	}
	if err != nil {
		return fmt.Errorf("sync key %.20q: %w", id, err)
	}
	all, err := r.device.AppStateKeys.GetAllAppStateSyncKeys(ctx)
	if err != nil || len(all) != len(r.model.syncKeys) {
		return fmt.Errorf("%d sync keys, want %d: %w", len(all), len(r.model.syncKeys), err)
	}
	salt, err := r.device.NCTSalt.GetNCTSalt(ctx)
	if err = same(r.model.salt, string(salt), err); err != nil {
		return fmt.Errorf("NCT salt: %w", err)
	}
	return nil
}

func (r *resident) compareEvent(ctx context.Context, n int) error {
	hash := eventHash(n)
	event, err := r.device.EventBuffer.GetBufferedEvent(ctx, hash)
	want, known := r.model.events[string(hash[:])]
	if err != nil || (event != nil) != known {
		return fmt.Errorf("event %d is there: %t, want %t: %w", n, event != nil, known, err)
	}
	if !known {
		return nil
	}
	if err = same(want, string(event.Plaintext), nil); err != nil {
		return fmt.Errorf("event %d: %w", n, err)
	}
	return nil
}
