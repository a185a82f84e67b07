package storetest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
)

// Differential makes the same random calls on two stores and compares every answer. Now and then one of them is
// flushed or reopened, which must not be seen. What the stores are known to answer differently ([Differences]) is not drawn.
func Differential(t *testing.T, ours, theirs Backend, seed uint64, steps int) {
	d := &differential{
		rng:  rand.New(rand.NewPCG(seed, 0)), // repeatable on purpose
		both: [2]*twin{{Subject: New(t, ours)}, {Subject: New(t, theirs)}},
	}
	for step := range steps {
		switch d.rng.IntN(1000) {
		case 0:
			for _, s := range d.both {
				s.Reopen(t)
			}
		case 1, 2, 3:
			d.both[0].Settle(t)
		default:
			d.step(t, fmt.Sprintf("seed %d, step %d", seed, step))
		}
	}
}

// twin is one of the two stores. Pre-key ids differ, so they are named by their place in the list of those that exist.
type twin struct {
	*Subject
	preKeys []uint32
}

type differential struct {
	rng   *rand.Rand
	both  [2]*twin
	clock int64 // makes timestamps unique where a tie is undefined
	moved map[types.JID]bool
}

// call is one method with its arguments, drawn once and made on both stores.
type call struct {
	name string
	on   func(ctx context.Context, s *twin) []any
}

var errRollback = errors.New("rolled back")

func (d *differential) step(t *testing.T, where string) {
	calls := []call{d.draw(false)}
	txn, fail := d.rng.IntN(10) == 0, d.rng.IntN(3) == 0
	if txn {
		calls = nil
		for range 1 + d.rng.IntN(5) {
			calls = append(calls, d.draw(true))
		}
	}
	var answers [2][]any
	for i, s := range d.both {
		run := func(ctx context.Context) error {
			for _, c := range calls {
				got := c.on(ctx, s)
				answers[i] = append(answers[i], c.name, normal(got))
				// sqlstore's transaction may be aborted by now, and the client gives up at an error.
				if err, failed := got[len(got)-1].(error); txn && failed && err != nil {
					return errRollback
				}
			}
			if fail {
				return errRollback
			}
			return nil
		}
		if txn {
			before := slices.Clone(s.preKeys)
			err := s.EventBuffer.DoDecryptionTxn(ctx, run)
			if err != nil {
				s.preKeys = before
			}
			answers[i] = append(answers[i], err != nil)
		} else {
			_ = run(ctx)
		}
	}
	require.Equal(t, answers[1], answers[0], where)
}

// normal makes answers comparable: of an error only whether there is one, and whether it says "no rows".
func normal(answer []any) []any {
	out := make([]any, len(answer))
	for i, a := range answer {
		switch v := a.(type) {
		case error:
			out[i] = errors.Is(v, sql.ErrNoRows)
		case *store.BufferedEvent:
			if v != nil {
				out[i] = fmt.Sprint(v.Plaintext == nil, string(v.Plaintext), v.ServerTime.Unix())
			}
		case *store.PrivacyToken:
			if v != nil {
				out[i] = fmt.Sprint(v.User, string(v.Token), v.Timestamp.Unix(), v.SenderTimestamp.Unix())
			}
		case types.LocalChatSettings:
			out[i] = fmt.Sprint(v.Found, v.Pinned, v.Archived, v.MutedUntil.Unix())
		default:
			out[i] = a
		}
	}
	return out
}

func pick[T any](d *differential, from ...T) T { return from[d.rng.IntN(len(from))] }

func (d *differential) address() string {
	return pick(d, "111", "111", "222", "901_1", "902_1") + ":" + strconv.Itoa(d.rng.IntN(3))
}

func (d *differential) user() types.JID {
	jid := pick(d, person("111"), person("222"), person("333"), lid("901"), lid("902"), types.NewJID("g", types.GroupServer))
	if jid.Server != types.GroupServer && d.rng.IntN(3) == 0 {
		jid.Device = 2
	}
	return jid
}

func (d *differential) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(d.rng.Uint32())
	}
	return b
}

func (d *differential) name() string {
	return pick(d, "", "Ada", "Grace", "\U0001F469\u200d\U0001F52C", `back\slash "quote" | bar`, "<&>")
}

// record is none that has a counter: sqlstore lets those go back.
func (d *differential) record() []byte {
	return pick(d, senderKey(d.rng.IntN(100)), d.bytes(1+d.rng.IntN(200)), []byte(`{"no":"record"}`))
}

// pairOf keeps to one LID per phone number where sqlstore's memory of migrations is involved.
func (d *differential) pairOf() (pn, to types.JID) {
	if d.rng.IntN(2) == 0 {
		return person("111"), lid("901")
	}
	return person("222"), lid("902")
}

func (d *differential) draw(inTransaction bool) call {
	kinds := []func() call{d.identities, d.sessions, d.sessions, d.senderKeys, d.preKeys, d.chats, d.secrets, d.tokens, d.buffered}
	if !inTransaction {
		// sqlstore's caches of contacts and migrations keep what a transaction rolled back.
		kinds = append(kinds, d.contacts, d.lids, d.migration, d.appState, d.appStateKeys, d.outgoing, d.device)
	}
	return pick(d, kinds...)()
}

func (d *differential) identities() call {
	address, key := d.address(), [32]byte{byte(d.rng.IntN(3))}
	user := pick(d, "111", "222", "901", "901_1")
	return pick(d,
		call{"PutIdentity", func(ctx context.Context, s *twin) []any { return []any{s.Identities.PutIdentity(ctx, address, key)} }},
		call{"IsTrustedIdentity", func(ctx context.Context, s *twin) []any {
			ok, err := s.Identities.IsTrustedIdentity(ctx, address, key)
			return []any{ok, err}
		}},
		call{"DeleteIdentity", func(ctx context.Context, s *twin) []any { return []any{s.Identities.DeleteIdentity(ctx, address)} }},
		call{"DeleteAllIdentities", func(ctx context.Context, s *twin) []any { return []any{s.Identities.DeleteAllIdentities(ctx, user)} }},
	)
}

func (d *differential) sessions() call {
	address, record := d.address(), d.record()
	user := pick(d, "111", "222", "901", "901_1")
	many := map[string][]byte{address: record, d.address(): d.record(), d.address(): d.record()}
	addresses := []string{address, d.address(), d.address(), "absent:0"}
	return pick(d,
		call{"PutSession", func(ctx context.Context, s *twin) []any {
			return []any{s.Sessions.PutSession(ctx, address, bytes.Clone(record))}
		}},
		call{"GetSession", func(ctx context.Context, s *twin) []any {
			got, err := s.Sessions.GetSession(ctx, address)
			return []any{string(got), got == nil, err}
		}},
		call{"HasSession", func(ctx context.Context, s *twin) []any {
			has, err := s.Sessions.HasSession(ctx, address)
			return []any{has, err}
		}},
		call{"GetManySessions", func(ctx context.Context, s *twin) []any {
			got, err := s.Sessions.GetManySessions(ctx, addresses)
			return []any{got, err}
		}},
		call{"PutManySessions", func(ctx context.Context, s *twin) []any { return []any{s.Sessions.PutManySessions(ctx, many)} }},
		call{"DeleteSession", func(ctx context.Context, s *twin) []any { return []any{s.Sessions.DeleteSession(ctx, address)} }},
		call{"DeleteAllSessions", func(ctx context.Context, s *twin) []any { return []any{s.Sessions.DeleteAllSessions(ctx, user)} }},
	)
}

// migration moves a number once: what is stored for it later stays with sqlstore.
func (d *differential) migration() call {
	pn, to := d.pairOf()
	if d.moved[pn] {
		return d.sessions()
	}
	if d.moved == nil {
		d.moved = make(map[types.JID]bool)
	}
	d.moved[pn] = true
	return call{"MigratePNToLID", func(ctx context.Context, s *twin) []any { return []any{s.Sessions.MigratePNToLID(ctx, pn, to)} }}
}

func (d *differential) senderKeys() call {
	group, user, record := pick(d, "g1", "g2"), d.address(), d.record()
	return pick(d,
		call{"PutSenderKey", func(ctx context.Context, s *twin) []any {
			return []any{s.SenderKeys.PutSenderKey(ctx, group, user, bytes.Clone(record))}
		}},
		call{"GetSenderKey", func(ctx context.Context, s *twin) []any {
			got, err := s.SenderKeys.GetSenderKey(ctx, group, user)
			return []any{string(got), got == nil, err}
		}},
	)
}

func (s *twin) know(id uint32) {
	if i, known := slices.BinarySearch(s.preKeys, id); !known {
		s.preKeys = slices.Insert(s.preKeys, i, id)
	}
}

func (d *differential) preKeys() call {
	place, count := d.rng.Float64(), uint32(1+d.rng.IntN(4))
	at := func(s *twin) int { return int(place * float64(len(s.preKeys))) }
	return pick(d,
		call{"GetOrGenPreKeys", func(ctx context.Context, s *twin) []any {
			got, err := s.PreKeys.GetOrGenPreKeys(ctx, count)
			for _, k := range got {
				s.know(k.KeyID)
			}
			return []any{len(got), len(s.preKeys), err}
		}},
		call{"GenOnePreKey", func(ctx context.Context, s *twin) []any {
			got, err := s.PreKeys.GenOnePreKey(ctx)
			if err == nil {
				s.know(got.KeyID)
			}
			return []any{len(s.preKeys), err}
		}},
		call{"GetPreKey", func(ctx context.Context, s *twin) []any {
			if len(s.preKeys) == 0 {
				return []any{nil}
			}
			got, err := s.PreKeys.GetPreKey(ctx, s.preKeys[at(s)])
			return []any{got != nil, err}
		}},
		call{"RemovePreKey", func(ctx context.Context, s *twin) []any {
			if len(s.preKeys) == 0 {
				return []any{nil}
			}
			i := at(s)
			err := s.PreKeys.RemovePreKey(ctx, s.preKeys[i])
			s.preKeys = slices.Delete(slices.Clone(s.preKeys), i, i+1)
			return []any{err}
		}},
		call{"MarkPreKeysAsUploaded", func(ctx context.Context, s *twin) []any {
			if len(s.preKeys) == 0 {
				return []any{nil}
			}
			return []any{s.PreKeys.MarkPreKeysAsUploaded(ctx, s.preKeys[at(s)])}
		}},
		call{"UploadedPreKeyCount", func(ctx context.Context, s *twin) []any {
			n, err := s.PreKeys.UploadedPreKeyCount(ctx)
			return []any{n, err}
		}},
	)
}

func (d *differential) contacts() call {
	user, a, b := d.user(), d.name(), d.name()
	entries := []store.ContactEntry{{JID: user, FirstName: a, FullName: b}, {JID: d.user(), FirstName: d.name(), FullName: d.name()}, {JID: d.user(), FirstName: d.name()}}
	phones := []store.RedactedPhoneEntry{{JID: user, RedactedPhone: a}, {JID: d.user(), RedactedPhone: b}}
	return pick(d,
		call{"PutPushName", func(ctx context.Context, s *twin) []any {
			changed, previous, err := s.Contacts.PutPushName(ctx, user, a)
			return []any{changed, previous, err}
		}},
		call{"PutBusinessName", func(ctx context.Context, s *twin) []any {
			changed, previous, err := s.Contacts.PutBusinessName(ctx, user, a)
			return []any{changed, previous, err}
		}},
		call{"PutContactName", func(ctx context.Context, s *twin) []any { return []any{s.Contacts.PutContactName(ctx, user, a, b)} }},
		call{"PutAllContactNames", func(ctx context.Context, s *twin) []any {
			return []any{s.Contacts.PutAllContactNames(ctx, slices.Clone(entries))}
		}},
		call{"PutManyRedactedPhones", func(ctx context.Context, s *twin) []any {
			return []any{s.Contacts.PutManyRedactedPhones(ctx, slices.Clone(phones))}
		}},
		call{"GetContact", func(ctx context.Context, s *twin) []any {
			got, err := s.Contacts.GetContact(ctx, user)
			return []any{got, err}
		}},
		call{"GetAllContacts", func(ctx context.Context, s *twin) []any {
			got, err := s.Contacts.GetAllContacts(ctx)
			return []any{got, err}
		}},
	)
}

func (d *differential) chats() call {
	chat, on := d.user(), d.rng.IntN(2) == 0
	until := pick(d, time.Time{}, store.MutedForever, time.Unix(2_000_000_000, 0))
	return pick(d,
		call{"PutMutedUntil", func(ctx context.Context, s *twin) []any { return []any{s.ChatSettings.PutMutedUntil(ctx, chat, until)} }},
		call{"PutPinned", func(ctx context.Context, s *twin) []any { return []any{s.ChatSettings.PutPinned(ctx, chat, on)} }},
		call{"PutArchived", func(ctx context.Context, s *twin) []any { return []any{s.ChatSettings.PutArchived(ctx, chat, on)} }},
		call{"GetChatSettings", func(ctx context.Context, s *twin) []any {
			got, err := s.ChatSettings.GetChatSettings(ctx, chat)
			return []any{got, err}
		}},
	)
}

func (d *differential) secrets() call {
	id, secret := pick(d, "A", "B"), d.bytes(4)
	// Stored under both forms of a user, sqlstore would answer any of the two.
	pn := func() types.JID { return pick(d, person("111"), person("222"), person("333")) }
	chat, sender := pn(), pn()
	askedChat, askedSender := d.user(), d.user()
	inserts := []store.MessageSecretInsert{{Chat: chat, Sender: sender, ID: id, Secret: secret}, {Chat: pn(), Sender: sender, ID: id, Secret: d.bytes(4)}}
	return pick(d,
		call{"PutMessageSecret", func(ctx context.Context, s *twin) []any {
			return []any{s.MsgSecrets.PutMessageSecret(ctx, chat, sender, id, secret)}
		}},
		call{"PutMessageSecrets", func(ctx context.Context, s *twin) []any { return []any{s.MsgSecrets.PutMessageSecrets(ctx, inserts)} }},
		call{"GetMessageSecret", func(ctx context.Context, s *twin) []any {
			got, from, err := s.MsgSecrets.GetMessageSecret(ctx, askedChat, askedSender, id)
			return []any{got, from, err}
		}},
	)
}

func (d *differential) tokens() call {
	d.clock++
	user, at := d.user(), time.Unix(1000+d.clock-int64(d.rng.IntN(2))*d.rng.Int64N(d.clock), 0)
	one := store.PrivacyToken{User: user, Token: d.bytes(4), Timestamp: at, SenderTimestamp: pick(d, time.Time{}, time.Unix(5, 0), time.Unix(0, 0))}
	return pick(d,
		call{"PutPrivacyTokens", func(ctx context.Context, s *twin) []any { return []any{s.PrivacyTokens.PutPrivacyTokens(ctx, one)} }},
		call{"PutPrivacyTokens", func(ctx context.Context, s *twin) []any { return []any{s.PrivacyTokens.PutPrivacyTokens(ctx, one)} }},
		call{"GetPrivacyToken", func(ctx context.Context, s *twin) []any {
			got, err := s.PrivacyTokens.GetPrivacyToken(ctx, user)
			return []any{got, err}
		}},
		call{"DeleteExpiredPrivacyTokens", func(ctx context.Context, s *twin) []any {
			n, err := s.PrivacyTokens.DeleteExpiredPrivacyTokens(ctx, at)
			return []any{n, err}
		}},
		call{"PutNCTSalt", func(ctx context.Context, s *twin) []any { return []any{s.NCTSalt.PutNCTSalt(ctx, one.Token)} }},
		call{"DeleteNCTSalt", func(ctx context.Context, s *twin) []any { return []any{s.NCTSalt.DeleteNCTSalt(ctx)} }},
		call{"GetNCTSalt", func(ctx context.Context, s *twin) []any {
			got, err := s.NCTSalt.GetNCTSalt(ctx)
			return []any{got, err}
		}},
	)
}

func (d *differential) buffered() call {
	hash, plaintext := [32]byte{byte(d.rng.IntN(40))}, pick(d, d.bytes(20), d.bytes(3), nil)
	return pick(d,
		call{"PutBufferedEvent", func(ctx context.Context, s *twin) []any {
			return []any{s.EventBuffer.PutBufferedEvent(ctx, hash, plaintext, time.Unix(1000, 0))}
		}},
		call{"GetBufferedEvent", func(ctx context.Context, s *twin) []any {
			got, err := s.EventBuffer.GetBufferedEvent(ctx, hash)
			return []any{got, err}
		}},
		call{"ClearBufferedEventPlaintext", func(ctx context.Context, s *twin) []any {
			return []any{s.EventBuffer.ClearBufferedEventPlaintext(ctx, hash)}
		}},
		call{"DeleteOldBufferedHashes", func(ctx context.Context, s *twin) []any { return []any{s.EventBuffer.DeleteOldBufferedHashes(ctx)} }},
	)
}

func (d *differential) outgoing() call {
	chat, other, id, plaintext := pick(d, person("111"), person("222")), pick(d, lid("901"), lid("902")), pick(d, "A", "B", "C"), d.bytes(10)
	asked, alternative := pick(d, chat, other), pick(d, other, chat)
	return pick(d,
		call{"AddOutgoingEvent", func(ctx context.Context, s *twin) []any {
			return []any{s.EventBuffer.AddOutgoingEvent(ctx, chat, id, "wa", plaintext)}
		}},
		call{"GetOutgoingEvent", func(ctx context.Context, s *twin) []any {
			format, got, err := s.EventBuffer.GetOutgoingEvent(ctx, asked, alternative, id)
			return []any{format, got, err}
		}},
		call{"DeleteOldOutgoingEvents", func(ctx context.Context, s *twin) []any { return []any{s.EventBuffer.DeleteOldOutgoingEvents(ctx)} }},
	)
}

func (d *differential) lids() call {
	pn, to := pick(d, person("111"), person("222"), person("333")), pick(d, lid("901"), lid("902"), lid("903"))
	pn.Device, to.Device = uint16(d.rng.IntN(2)), uint16(d.rng.IntN(2))
	second := store.LIDMapping{PN: pick(d, person("444"), person("555")), LID: pick(d, lid("904"), lid("905"))}
	return pick(d,
		call{"PutLIDMapping", func(ctx context.Context, s *twin) []any { return []any{s.LIDs.PutLIDMapping(ctx, to, pn)} }},
		call{"PutManyLIDMappings", func(ctx context.Context, s *twin) []any {
			return []any{s.LIDs.PutManyLIDMappings(ctx, []store.LIDMapping{{LID: to, PN: pn}, {LID: pn, PN: to}, second})}
		}},
		call{"GetLIDForPN", func(ctx context.Context, s *twin) []any {
			got, err := s.LIDs.GetLIDForPN(ctx, pn)
			return []any{got, err}
		}},
		call{"GetPNForLID", func(ctx context.Context, s *twin) []any {
			got, err := s.LIDs.GetPNForLID(ctx, to)
			return []any{got, err}
		}},
		call{"GetManyLIDsForPNs", func(ctx context.Context, s *twin) []any {
			got, err := s.LIDs.GetManyLIDsForPNs(ctx, []types.JID{pn, second.PN, to})
			return []any{got, err}
		}},
	)
}

func (d *differential) appState() call {
	d.clock++
	version, name := uint64(d.clock), pick(d, "regular", "critical")
	index := [][]byte{mac(byte(d.rng.IntN(8))), mac(byte(8 + d.rng.IntN(8)))}
	adds := []store.AppStateMutationMAC{{IndexMAC: index[0], ValueMAC: d.bytes(32)}, {IndexMAC: index[1], ValueMAC: d.bytes(32)}}
	get := func(ctx context.Context, s *twin) []any {
		v, hash, err := s.AppState.GetAppStateVersion(ctx, name)
		one, err1 := s.AppState.GetAppStateMutationMAC(ctx, name, index[0])
		two, err2 := s.AppState.GetAppStateMutationMAC(ctx, name, index[1])
		return []any{v, hash, one, two, err, err1, err2}
	}
	return pick(d,
		call{"a patch", func(ctx context.Context, s *twin) []any {
			before := get(ctx, s)
			err := s.AppState.PutAppStateVersion(ctx, name, version, [128]byte{byte(version)})
			between := get(ctx, s)
			err1 := s.AppState.DeleteAppStateMutationMACs(ctx, name, index[:1])
			after := get(ctx, s)
			err2 := s.AppState.PutAppStateMutationMACs(ctx, name, version, adds)
			return []any{before, between, after, err, err1, err2}
		}},
		call{"GetAppState", get},
		call{"DeleteAppStateVersion", func(ctx context.Context, s *twin) []any { return []any{s.AppState.DeleteAppStateVersion(ctx, name)} }},
		call{"DeleteAppStateMutationMACs", func(ctx context.Context, s *twin) []any {
			return []any{s.AppState.DeleteAppStateMutationMACs(ctx, name, index)}
		}},
	)
}

func (d *differential) appStateKeys() call {
	d.clock++
	id, key := []byte{byte(d.rng.IntN(5))}, store.AppStateSyncKey{Data: d.bytes(32), Fingerprint: d.bytes(8), Timestamp: pick(d, d.clock, -d.clock)}
	return pick(d,
		call{"PutAppStateSyncKey", func(ctx context.Context, s *twin) []any {
			return []any{s.AppStateKeys.PutAppStateSyncKey(ctx, id, key)}
		}},
		call{"GetAppStateSyncKey", func(ctx context.Context, s *twin) []any {
			got, err := s.AppStateKeys.GetAppStateSyncKey(ctx, id)
			return []any{got, err}
		}},
		call{"GetLatestAppStateSyncKeyID", func(ctx context.Context, s *twin) []any {
			got, err := s.AppStateKeys.GetLatestAppStateSyncKeyID(ctx)
			return []any{got, err}
		}},
		call{"GetAllAppStateSyncKeys", func(ctx context.Context, s *twin) []any {
			got, err := s.AppStateKeys.GetAllAppStateSyncKeys(ctx)
			return []any{len(got), got, err}
		}},
	)
}

func (d *differential) device() call {
	name, migrated := d.name(), d.rng.Int64N(1000)
	return call{"Save", func(ctx context.Context, s *twin) []any {
		s.PushName, s.BusinessName, s.LIDMigrationTimestamp = name, name, migrated
		err := s.Save(ctx)
		got, err1 := s.Container.GetDevice(ctx, *s.ID)
		if err1 != nil {
			return []any{err, err1}
		}
		return []any{got.PushName, got.BusinessName, got.LIDMigrationTimestamp, err, err1}
	}}
}
