package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"go.mau.fi/whatsmeow/types"
)

// A send with an Idempotency-Key happens once, however often it is asked for, at whichever process, and whichever process dies over it:
//
//  1. A row takes the key, with a message id that was made up for it. If there is a row already, its id counts, and a request that is not the
//     same as the first one is refused.
//  2. A row that was answered is answered again, and nothing is sent.
//  3. Else the message is sent under the row's id. Only the owner of the instance gets here, and it refuses a second request while the first
//     is under way; so a row without an answer is of a process that died, or of a send that failed. Whether that one has left is not known. If it has,
//     it has the same id, and phones take the two for one message.
//  4. The row notes when it was sent.
type idempotent struct {
	dir           *directory
	instance, key string
	id            types.MessageID // under which it is sent
	sent          *time.Time      // when that was, if it was
}

// begin is steps 1 and 2.
func (d *directory) begin(ctx context.Context, instance, key string, id types.MessageID, fingerprint string) (*idempotent, error) {
	i := &idempotent{dir: d, instance: instance, key: key}
	var first string
	err := pgx.ErrNoRows
	for range 3 { // between the two statements the row may come or go
		err = d.pool.QueryRow(ctx, `WITH mine AS (INSERT INTO gateway.sends (instance, key, fingerprint, message_id) VALUES ($1, $2, $3, $4)
			ON CONFLICT DO NOTHING RETURNING fingerprint, message_id, sent_at)
			SELECT * FROM mine UNION ALL SELECT fingerprint, message_id, sent_at FROM gateway.sends WHERE instance = $1 AND key = $2`,
			instance, key, fingerprint, id).Scan(&first, &i.id, &i.sent)
		if !errors.Is(err, pgx.ErrNoRows) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if first != fingerprint {
		return nil, errReused
	}
	return i, nil
}

// done is step 4. The message has left, so the caller is told so even if he has gone, or the database.
func (i *idempotent) done(ctx context.Context, at time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := i.dir.pool.Exec(ctx, `UPDATE gateway.sends SET sent_at = $3 WHERE instance = $1 AND key = $2`, i.instance, i.key, at)
	return err
}

// maxKey is how long an idempotency key may be.
const maxKey = 255

// fingerprint is what makes two requests the same.
func fingerprint(r *http.Request, body []byte) string {
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Content-Type")} {
		h.Write([]byte(part + "\x00"))
	}
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}
