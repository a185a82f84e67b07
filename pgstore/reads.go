package pgstore

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/wataki/whatsmeow-pgstore/cache"
)

// source is what is known of where a Put comes from.
type source struct {
	by      writer
	base    *recordValue // the version that the writer had read, nil if there was none
	known   bool         // whether base is known
	began   time.Time    // when the writer had read, zero if that is not known or nobody has
	reached uint64       // how far the put chain had got where the record was before it was moved
	moved   bool         // by a migration, so that it must not be followed again
}

// undisturbed says whether the writer had read what is stored.
func (from source) undisturbed(stored *recordValue) bool {
	return from.known && from.base != nil && from.base.sameText(stored)
}

// before says whether the writer is known to have read before a moment.
func (from source) before(moment time.Time) bool {
	return !from.began.IsZero() && from.began.Before(moment)
}

// note remembers which version of a session or sender key a transaction was given.
func (tx *transaction) note(k cache.Key, rec *recordValue) {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	if _, known := tx.read[k]; known || tx.ended {
		return // what is read later may be its own
	}
	if tx.read == nil {
		tx.read = make(map[cache.Key]*recordValue)
	}
	tx.read[k] = rec
}

func (tx *transaction) source(k cache.Key) source {
	tx.mu.Lock()
	defer tx.mu.Unlock()
	base, known := tx.read[k]
	return source{by: writerDecrypt, base: base, known: known}
}

// readRecord is a record that a plain GetSession or GetSenderKey was given and that a Put may be made of. The client puts within
// microseconds, so a minute is plenty.
type readRecord struct {
	record *recordValue
	at     time.Time
}

const (
	readAge  = time.Minute
	readMany = 16 // versions of one record
)

// noteRead remembers what a reader was given.
func (in *instance) noteRead(ctx context.Context, k cache.Key, rec *recordValue, began time.Time) {
	if tx := in.transactionOf(ctx); tx != nil {
		tx.note(k, rec)
		return
	}
	if rec == nil {
		return
	}
	old := func(r readRecord) bool { return began.Sub(r.at) > readAge }
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.reads == nil {
		in.mu.reads = make(map[cache.Key][]readRecord)
	}
	if began.Sub(in.mu.swept) > readAge {
		in.mu.swept = began
		maps.DeleteFunc(in.mu.reads, func(_ cache.Key, all []readRecord) bool { return old(all[len(all)-1]) })
	}
	all := append(slices.DeleteFunc(in.mu.reads[k], old), readRecord{rec, began})
	in.mu.reads[k] = all[max(0, len(all)-readMany):]
}

// madeOf finds which of the records that were handed out a plain Put was made of, and so whether it is a send. It takes the record from those
// that are out, so it is asked once for a Put.
func (in *instance) madeOf(k cache.Key, put *recordValue) source {
	in.mu.Lock()
	defer in.mu.Unlock()
	all := in.mu.reads[k]
	if len(all) == 0 {
		return source{}
	}
	found := source{by: writerDecrypt}
	at := sentFrom(all, put)
	if at >= 0 {
		found.by = writerSend
	} else if sameVersion(all) {
		at = 0
		if all[0].record.sameText(put) {
			return source{} // it is put again as it was
		}
	}
	if at >= 0 {
		found.base, found.known, found.began = all[at].record, true, all[at].at
		all = slices.Delete(all, at, at+1)
	}
	if in.mu.reads[k] = all; len(all) == 0 {
		delete(in.mu.reads, k)
	}
	return found
}

// sentFrom finds the record that a send was made of, −1 if there is none.
func sentFrom(all []readRecord, put *recordValue) int {
	now, ok := put.ratchet()
	if !ok {
		return -1
	}
	return slices.IndexFunc(all, func(r readRecord) bool {
		base, ok := r.record.ratchet()
		return ok && now.sentFrom(base)
	})
}

func sameVersion(all []readRecord) bool {
	return !slices.ContainsFunc(all, func(r readRecord) bool { return r.record != all[0].record })
}
