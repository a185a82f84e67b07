package pgstore

import (
	"bytes"
	"context"
	"time"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// alternatives are a JID without its device and, if the mapping knows one, its other form.
func (s *deviceStore) alternatives(ctx context.Context, jid types.JID) ([]types.JID, error) {
	jid = jid.ToNonAD()
	var alt types.JID
	var err error
	switch jid.Server {
	case types.DefaultUserServer:
		alt, err = s.c.LIDMap.GetLIDForPN(ctx, jid)
	case types.HiddenUserServer:
		alt, err = s.c.LIDMap.GetPNForLID(ctx, jid)
	}
	if err != nil || alt.IsEmpty() {
		return []types.JID{jid}, err
	}
	return []types.JID{jid, alt}, nil
}

func secretKey(chat, sender types.JID, id types.MessageID) cache.Key {
	return newKey(typeMessageSecret, chat.String(), sender.String(), id)
}

// PutMessageSecrets implements [store.MsgSecretStore]. The first secret that was stored for a message stays. Thousands are stored
// in pieces, not as one group.
func (s *deviceStore) PutMessageSecrets(ctx context.Context, inserts []store.MessageSecretInsert) error {
	for _, insert := range inserts {
		if insert.Secret == nil {
			return invalid("message secret is nil")
		}
	}
	return writeInPieces(ctx, s, inserts, func(v *view, insert store.MessageSecretInsert) {
		sender := insert.Sender.ToNonAD()
		v.PutIfAbsent(secretKey(insert.Chat.ToNonAD(), sender, insert.ID),
			&messageSecretValue{Sender: text(sender.String()), Secret: bytes.Clone(insert.Secret)})
	})
}

// PutMessageSecret implements [store.MsgSecretStore].
func (s *deviceStore) PutMessageSecret(ctx context.Context, chat, sender types.JID, id types.MessageID, secret []byte) error {
	return s.PutMessageSecrets(ctx, []store.MessageSecretInsert{{Chat: chat, Sender: sender, ID: id, Secret: secret}})
}

// GetMessageSecret implements [store.MsgSecretStore]: also under the other form of chat and sender.
func (s *deviceStore) GetMessageSecret(ctx context.Context, chat, sender types.JID, id types.MessageID) (secret []byte, realSender types.JID, err error) {
	chats, err := s.alternatives(ctx, chat)
	if err != nil {
		return nil, types.EmptyJID, err
	}
	senders, err := s.alternatives(ctx, sender)
	if err != nil {
		return nil, types.EmptyJID, err
	}
	err = s.readSome(ctx, typeMessageSecret, func(v *view) error {
		secret, realSender = nil, types.EmptyJID
		for _, c := range chats {
			for _, from := range senders {
				stored, ok := v.Get(secretKey(c, from, id))
				if m, ok := found[*messageSecretValue](stored, ok); ok && secret == nil {
					secret, realSender = bytes.Clone(m.Secret), from
				}
			}
		}
		return nil
	})
	return secret, realSender, err
}

func tokenKey(user types.JID) cache.Key { return newKey(typePrivacyToken, user.String()) }

// PutPrivacyTokens implements [store.PrivacyTokenStore]. A token replaces one that is not newer; no sender timestamp keeps the old one. Thousands
// are stored in pieces, not as one group.
func (s *deviceStore) PutPrivacyTokens(ctx context.Context, tokens ...store.PrivacyToken) error {
	for _, t := range tokens {
		if t.Token == nil {
			return invalid("privacy token is nil")
		}
	}
	return writeInPieces(ctx, s, tokens, func(v *view, t store.PrivacyToken) {
		k := tokenKey(t.User.ToNonAD())
		next := &privacyTokenValue{Token: bytes.Clone(t.Token), Timestamp: t.Timestamp.Unix()}
		if !t.SenderTimestamp.IsZero() {
			seconds := t.SenderTimestamp.Unix()
			next.SenderTimestamp = &seconds
		}
		stored, ok := v.Get(k)
		old, ok := found[*privacyTokenValue](stored, ok)
		if ok && next.Timestamp < old.Timestamp {
			return
		}
		if ok && next.SenderTimestamp == nil {
			next.SenderTimestamp = old.SenderTimestamp
		}
		v.Put(k, next)
	})
}

// GetPrivacyToken implements [store.PrivacyTokenStore]: the newest under both forms of the JID; of two
// with one timestamp the one with the newer sender timestamp.
func (s *deviceStore) GetPrivacyToken(ctx context.Context, user types.JID) (*store.PrivacyToken, error) {
	forms, err := s.alternatives(ctx, user)
	if err != nil {
		return nil, err
	}
	var best *privacyTokenValue
	err = s.readSome(ctx, typePrivacyToken, func(v *view) error {
		best = nil
		for _, form := range forms {
			stored, ok := v.Get(tokenKey(form))
			if t, ok := found[*privacyTokenValue](stored, ok); ok && (best == nil || t.newerThan(best)) {
				best = t
			}
		}
		return nil
	})
	if err != nil || best == nil {
		return nil, err
	}
	token := &store.PrivacyToken{User: user.ToNonAD(), Token: bytes.Clone(best.Token), Timestamp: time.Unix(best.Timestamp, 0)}
	if best.SenderTimestamp != nil {
		token.SenderTimestamp = time.Unix(*best.SenderTimestamp, 0)
	}
	return token, nil
}

func (v *privacyTokenValue) newerThan(o *privacyTokenValue) bool {
	if v.Timestamp != o.Timestamp {
		return v.Timestamp > o.Timestamp
	}
	return v.SenderTimestamp != nil && (o.SenderTimestamp == nil || *v.SenderTimestamp > *o.SenderTimestamp)
}

// DeleteExpiredPrivacyTokens implements [store.PrivacyTokenStore].
func (s *deviceStore) DeleteExpiredPrivacyTokens(ctx context.Context, cutoff time.Time) (deleted int64, err error) {
	err = s.write(ctx, patienceNone, func(v *view) error {
		deleted = 0
		for _, id := range v.IDs(typePrivacyToken, "") {
			k := cache.Key{Type: typePrivacyToken, ID: id}
			stored, ok := v.Get(k)
			if t, ok := found[*privacyTokenValue](stored, ok); ok && t.Timestamp < cutoff.Unix() {
				v.Delete(k)
				deleted++
			}
		}
		return nil
	})
	return deleted, err
}

var saltKey = newKey(typeNCTSalt, "salt")

// PutNCTSalt implements [store.NCTSaltStore]. Durable when it returns, since it is sent once.
func (s *deviceStore) PutNCTSalt(ctx context.Context, salt []byte) error {
	if salt == nil {
		return invalid("NCT salt is nil")
	}
	return s.put(ctx, patienceOutage, saltKey, &bytesValue{Value: append([]byte{}, salt...)})
}

// GetNCTSalt implements [store.NCTSaltStore].
func (s *deviceStore) GetNCTSalt(ctx context.Context) ([]byte, error) {
	v, ok, err := s.get(ctx, saltKey)
	salt, ok := found[*bytesValue](v, ok)
	if err != nil || !ok {
		return nil, err
	}
	return append([]byte{}, salt.Value...), nil
}

// DeleteNCTSalt implements [store.NCTSaltStore].
func (s *deviceStore) DeleteNCTSalt(ctx context.Context) error {
	return s.remove(ctx, typeNCTSalt, one(saltKey.ID))
}
