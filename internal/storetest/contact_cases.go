package storetest

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

func person(user string) types.JID { return types.NewJID(user, types.DefaultUserServer) }

func checkContact(t *testing.T, s *Subject, jid types.JID, want types.ContactInfo) {
	t.Helper()
	got, err := s.Contacts.GetContact(ctx, jid)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

var contactCases = []testCase{
	{
		name: "no contacts",
		check: func(t *testing.T, s *Subject) {
			checkContact(t, s, person("1"), types.ContactInfo{})
			require.NoError(t, s.Contacts.PutAllContactNames(ctx, nil))
			require.NoError(t, s.Contacts.PutManyRedactedPhones(ctx, nil))
		},
	},
	{
		name: "names",
		do: func(t *testing.T, s *Subject) {
			changed, previous, err := s.Contacts.PutPushName(ctx, person("1"), "Ada")
			require.NoError(t, err)
			require.True(t, changed)
			require.Empty(t, previous)
			changed, previous, err = s.Contacts.PutPushName(ctx, person("1"), "Ada L.")
			require.NoError(t, err)
			require.True(t, changed)
			require.Equal(t, "Ada", previous)
			changed, previous, err = s.Contacts.PutPushName(ctx, person("1"), "Ada L.")
			require.NoError(t, err)
			require.False(t, changed)
			require.Empty(t, previous)
			withDevice := types.JID{User: "1", Device: 3, Server: types.DefaultUserServer}
			changed, previous, err = s.Contacts.PutBusinessName(ctx, withDevice, "Engines")
			require.NoError(t, err)
			require.True(t, changed)
			require.Empty(t, previous)
			changed, _, err = s.Contacts.PutBusinessName(ctx, withDevice, "Engines")
			require.NoError(t, err)
			require.False(t, changed)
			// The client passes the first name first, whatever the interface calls it.
			require.NoError(t, s.Contacts.PutContactName(ctx, person("1"), "Ada", "Ada Lovelace"))
			require.NoError(t, s.Contacts.PutContactName(ctx, person("1"), "Augusta", "Ada Lovelace"))
		},
		check: func(t *testing.T, s *Subject) {
			checkContact(t, s, person("1"), types.ContactInfo{Found: true, PushName: "Ada L.", FirstName: "Augusta", FullName: "Ada Lovelace"})
			checkContact(t, s, types.JID{User: "1", Device: 3, Server: types.DefaultUserServer}, types.ContactInfo{Found: true, BusinessName: "Engines"})
		},
	},
	{
		name: "many contacts: of duplicates the first wins",
		do: func(t *testing.T, s *Subject) {
			_, _, err := s.Contacts.PutPushName(ctx, person("1"), "pushed")
			require.NoError(t, err)
			entries := []store.ContactEntry{{JID: person("1"), FirstName: "a", FullName: "A"}, {JID: person("2"), FirstName: "b", FullName: "B"}, {JID: person("1"), FirstName: "c", FullName: "C"}}
			for i := range 2000 {
				entries = append(entries, store.ContactEntry{JID: person(strconv.Itoa(1000 + i)), FirstName: "n"})
			}
			require.NoError(t, s.Contacts.PutAllContactNames(ctx, entries))
			require.NoError(t, s.Contacts.PutManyRedactedPhones(ctx, []store.RedactedPhoneEntry{
				{JID: person("1"), RedactedPhone: "+1••1"}, {JID: person("3"), RedactedPhone: "+3••3"}, {JID: person("3"), RedactedPhone: "+4••4"},
			}))
		},
		check: func(t *testing.T, s *Subject) {
			checkContact(t, s, person("1"), types.ContactInfo{Found: true, PushName: "pushed", FirstName: "a", FullName: "A", RedactedPhone: "+1••1"})
			checkContact(t, s, person("2"), types.ContactInfo{Found: true, FirstName: "b", FullName: "B"})
			checkContact(t, s, person("3"), types.ContactInfo{Found: true, RedactedPhone: "+3••3"})
			all, err := s.Contacts.GetAllContacts(ctx)
			require.NoError(t, err)
			require.True(t, len(all) == 2003, "%d contacts", len(all)) //nolint:testifylint // Len would print them all
			require.Equal(t, "B", all[person("2")].FullName)
		},
	},
	{
		name: "an empty JID",
		do: func(t *testing.T, s *Subject) {
			if s.Differs("empty JID") {
				require.NoError(t, s.Contacts.PutContactName(ctx, types.EmptyJID, "a", "A"))
				require.NoError(t, s.ChatSettings.PutPinned(ctx, types.EmptyJID, true))
			}
		},
		check: func(t *testing.T, s *Subject) {
			if !s.Differs("empty JID") {
				return
			}
			checkContact(t, s, types.EmptyJID, types.ContactInfo{Found: true, FirstName: "a", FullName: "A"})
			settings, err := s.ChatSettings.GetChatSettings(ctx, types.EmptyJID)
			require.NoError(t, err)
			require.True(t, settings.Pinned)
		},
	},
	{
		name: "what a stranger may send as a name",
		check: func(t *testing.T, s *Subject) {
			for _, name := range []string{"NUL \x00", "broken \xff\xfe", "\U0001F469\u200d\U0001F52C", strings.Repeat("long ", 200_000)} {
				jid := person("5")
				_, _, err := s.Contacts.PutPushName(ctx, jid, "before")
				require.NoError(t, err)
				_, _, err = s.Contacts.PutPushName(ctx, jid, name)
				if s.Differs("NUL and broken UTF-8") {
					require.NoError(t, err)
					checkContact(t, s, jid, types.ContactInfo{Found: true, PushName: name})
				}
			}
		},
	},
	{
		name: "chat settings",
		do: func(t *testing.T, s *Subject) {
			require.NoError(t, s.ChatSettings.PutPinned(ctx, person("1"), true))
			require.NoError(t, s.ChatSettings.PutArchived(ctx, person("1"), true))
			require.NoError(t, s.ChatSettings.PutArchived(ctx, person("1"), false))
			require.NoError(t, s.ChatSettings.PutMutedUntil(ctx, person("1"), time.Unix(2_000_000_000, 5)))
			require.NoError(t, s.ChatSettings.PutMutedUntil(ctx, person("2"), store.MutedForever))
			require.NoError(t, s.ChatSettings.PutMutedUntil(ctx, person("3"), store.MutedForever))
			require.NoError(t, s.ChatSettings.PutMutedUntil(ctx, person("3"), time.Time{}))
		},
		check: func(t *testing.T, s *Subject) {
			get := func(user string) types.LocalChatSettings {
				settings, err := s.ChatSettings.GetChatSettings(ctx, person(user))
				require.NoError(t, err)
				return settings
			}
			one := get("1")
			require.True(t, one.MutedUntil.Equal(time.Unix(2_000_000_000, 0)), "whole seconds")
			one.MutedUntil = time.Time{}
			require.Equal(t, types.LocalChatSettings{Found: true, Pinned: true}, one)
			require.Equal(t, store.MutedForever, get("2").MutedUntil)
			require.True(t, get("3").Found)
			require.True(t, get("3").MutedUntil.IsZero())
			require.Equal(t, types.LocalChatSettings{}, get("4"))
		},
	},
}
