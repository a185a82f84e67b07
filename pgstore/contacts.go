package pgstore

import (
	"context"
	"time"

	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

func contactKey(jid types.JID) cache.Key { return newKey(typeContact, jid.String()) }

// changeContact edits one contact, if edit says that it changes anything. An unchanged contact takes no lock but the reader's.
func (s *deviceStore) changeContact(ctx context.Context, jid types.JID, edit func(*contactValue) bool) (changed bool, err error) {
	k := contactKey(jid)
	stored, ok, err := s.get(ctx, k)
	if err != nil || !edit(copyContact(jid, stored, ok)) {
		return false, err
	}
	err = s.write(ctx, patienceNone, func(v *view) error {
		stored, ok := v.Get(k)
		contact := copyContact(jid, stored, ok)
		if changed = edit(contact); changed {
			v.Put(k, contact)
		}
		return nil
	})
	return changed, err
}

func copyContact(jid types.JID, stored value, ok bool) *contactValue {
	if old, ok := found[*contactValue](stored, ok); ok {
		contact := *old
		return &contact
	}
	return &contactValue{JID: text(jid.String())}
}

// set changes a field and says whether that made a difference.
func set(field *text, to string) bool {
	if string(*field) == to {
		return false
	}
	*field = text(to)
	return true
}

// PutPushName implements [store.ContactStore].
func (s *deviceStore) PutPushName(ctx context.Context, user types.JID, pushName string) (changed bool, previous string, err error) {
	changed, err = s.changeContact(ctx, user, func(c *contactValue) bool {
		previous = string(c.PushName)
		return set(&c.PushName, pushName)
	})
	if !changed || err != nil {
		return false, "", err
	}
	return true, previous, nil
}

// PutBusinessName implements [store.ContactStore]. The key is the exact JID, device included.
func (s *deviceStore) PutBusinessName(ctx context.Context, user types.JID, businessName string) (changed bool, previous string, err error) {
	changed, err = s.changeContact(ctx, user, func(c *contactValue) bool {
		previous = string(c.BusinessName)
		return set(&c.BusinessName, businessName)
	})
	if !changed || err != nil {
		return false, "", err
	}
	return true, previous, nil
}

// PutContactName implements [store.ContactStore]. The interface calls the parameters (fullName, firstName), but its only caller
// passes the first name first, and sqlstore takes them so.
func (s *deviceStore) PutContactName(ctx context.Context, user types.JID, firstName, fullName string) error {
	_, err := s.changeContact(ctx, user, func(c *contactValue) bool {
		first, full := set(&c.FirstName, firstName), set(&c.FullName, fullName)
		return first || full
	})
	return err
}

// PutAllContactNames implements [store.ContactStore]; of duplicates the first wins. Thousands are stored in pieces, not as one group.
func (s *deviceStore) PutAllContactNames(ctx context.Context, contacts []store.ContactEntry) error {
	return changeContacts(ctx, s, contacts, func(e store.ContactEntry) types.JID { return e.JID }, func(e store.ContactEntry, c *contactValue) bool {
		first, full := set(&c.FirstName, e.FirstName), set(&c.FullName, e.FullName)
		return first || full
	})
}

// PutManyRedactedPhones implements [store.ContactStore]; of duplicates the first wins. Thousands are stored in pieces, not as one group.
func (s *deviceStore) PutManyRedactedPhones(ctx context.Context, entries []store.RedactedPhoneEntry) error {
	return changeContacts(ctx, s, entries, func(e store.RedactedPhoneEntry) types.JID { return e.JID }, func(e store.RedactedPhoneEntry, c *contactValue) bool {
		return set(&c.RedactedPhone, e.RedactedPhone)
	})
}

// changeContacts edits many contacts; a contact that is named is there afterwards.
func changeContacts[E any](ctx context.Context, s *deviceStore, entries []E, jid func(E) types.JID, edit func(E, *contactValue) bool) error {
	seen := make(map[types.JID]struct{}, len(entries))
	firsts := make([]E, 0, len(entries))
	for _, e := range entries {
		if _, dup := seen[jid(e)]; !dup {
			seen[jid(e)] = struct{}{}
			firsts = append(firsts, e)
		}
	}
	return writeInPieces(ctx, s, firsts, func(v *view, e E) {
		k := contactKey(jid(e))
		stored, ok := v.Get(k)
		if contact := copyContact(jid(e), stored, ok); edit(e, contact) || !ok {
			v.Put(k, contact)
		}
	})
}

// GetContact implements [store.ContactStore].
func (s *deviceStore) GetContact(ctx context.Context, user types.JID) (types.ContactInfo, error) {
	v, ok, err := s.get(ctx, contactKey(user))
	contact, ok := found[*contactValue](v, ok)
	if err != nil || !ok {
		return types.ContactInfo{}, err
	}
	return contact.export(), nil
}

func (v *contactValue) export() types.ContactInfo {
	return types.ContactInfo{
		Found: true, FirstName: string(v.FirstName), FullName: string(v.FullName), PushName: string(v.PushName),
		BusinessName: string(v.BusinessName), RedactedPhone: string(v.RedactedPhone),
	}
}

// GetAllContacts implements [store.ContactStore].
func (s *deviceStore) GetAllContacts(ctx context.Context) (map[types.JID]types.ContactInfo, error) {
	var all map[types.JID]types.ContactInfo
	err := s.readAll(ctx, typeContact, func(v *view) error {
		ids := v.IDs(typeContact, "")
		all = make(map[types.JID]types.ContactInfo, len(ids))
		for _, id := range ids {
			stored, ok := v.Get(cache.Key{Type: typeContact, ID: id})
			contact, ok := found[*contactValue](stored, ok)
			if !ok {
				continue
			}
			jid, err := types.ParseJID(string(contact.JID))
			if err != nil {
				s.c.cfg.Logger.Warn("pgstore: contact with an unreadable JID left out", "instance", s.id)
				continue
			}
			all[jid] = contact.export()
		}
		return nil
	})
	return all, err
}

func chatKey(chat types.JID) cache.Key { return newKey(typeChatSettings, chat.String()) }

func (s *deviceStore) changeChat(ctx context.Context, chat types.JID, edit func(*chatSettingsValue)) error {
	k := chatKey(chat)
	return s.write(ctx, patienceNone, func(v *view) error {
		var settings chatSettingsValue
		stored, ok := v.Get(k)
		old, ok := found[*chatSettingsValue](stored, ok)
		if ok {
			settings = *old
		}
		edit(&settings)
		if !ok || settings != *old {
			v.Put(k, &settings)
		}
		return nil
	})
}

// PutMutedUntil implements [store.ChatSettingsStore]: -1 stands for ever, 0 for the zero time.
func (s *deviceStore) PutMutedUntil(ctx context.Context, chat types.JID, mutedUntil time.Time) error {
	var seconds int64
	if mutedUntil.Equal(store.MutedForever) {
		seconds = -1
	} else if !mutedUntil.IsZero() {
		seconds = mutedUntil.Unix()
	}
	return s.changeChat(ctx, chat, func(c *chatSettingsValue) { c.MutedUntil = seconds })
}

// PutPinned implements [store.ChatSettingsStore].
func (s *deviceStore) PutPinned(ctx context.Context, chat types.JID, pinned bool) error {
	return s.changeChat(ctx, chat, func(c *chatSettingsValue) { c.Pinned = pinned })
}

// PutArchived implements [store.ChatSettingsStore].
func (s *deviceStore) PutArchived(ctx context.Context, chat types.JID, archived bool) error {
	return s.changeChat(ctx, chat, func(c *chatSettingsValue) { c.Archived = archived })
}

// GetChatSettings implements [store.ChatSettingsStore].
func (s *deviceStore) GetChatSettings(ctx context.Context, chat types.JID) (settings types.LocalChatSettings, err error) {
	v, ok, err := s.get(ctx, chatKey(chat))
	stored, ok := found[*chatSettingsValue](v, ok)
	if err != nil || !ok {
		return settings, err
	}
	settings = types.LocalChatSettings{Found: true, Pinned: stored.Pinned, Archived: stored.Archived}
	if stored.MutedUntil < 0 {
		settings.MutedUntil = store.MutedForever
	} else if stored.MutedUntil > 0 {
		settings.MutedUntil = time.Unix(stored.MutedUntil, 0)
	}
	return settings, nil
}
