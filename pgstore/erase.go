package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Erase removes an instance and every trace of it: its keys, what was set aside, its own pair in the LID map, and its audit trail with all key ids and hashes. What stays
// is one entry of the trail, which says that an instance of that name was erased, and the last hash before it, so that the trail goes on. It is one transaction.
// Nobody can be found by what is left but by the name; if that is a JID, it is a phone number.
//
// Disconnect its client first. The device stays linked on the phone: log the client out instead, which deletes the device, and erase then what remains of its
// trail with the same call. An instance that was deleted before is erased as well; one of which nothing is known is [ErrNoInstance].
//
// Not reached are pairs of other people in the LID map, which belong to no instance; backups, the WAL and standbys that lag; logs; and what this process and others
// have in memory until they end.
//
// The trail can only be erased by who owns it: the role that migrates, or one that may execute audit_erase. For any other one it is [ErrRefused], and nothing is gone.
func (c *Container) Erase(ctx context.Context, id string) error {
	if c.closed() {
		return ErrClosed
	}
	if err := c.Release(ctx, id); err != nil {
		return err
	}
	t, err := c.takeWhenFree(ctx, id, whoeverWaits)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("pgstore: taking the instance to erase: %w", err)
	}
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error { return c.erase(ctx, tx, id, t.epoch) })
	})
	if err != nil {
		err = fmt.Errorf("pgstore: erasing instance %s: %w", id, err)
		if t.epoch != 0 {
			err = errors.Join(err, c.putBack(ctx, id, t.epoch))
		}
		return err
	}
	c.dataKeys.forget(id)
	if c.cfg.Witness != nil {
		if err = c.cfg.Witness.Save(ctx, map[string]Mark{id: {}}); err != nil {
			return fmt.Errorf("pgstore: telling the witness that instance %s was erased: %w", id, err)
		}
	}
	return nil
}

func (c *Container) erase(ctx context.Context, tx pgx.Tx, id string, epoch int64) error {
	var jid, lid string
	err := tx.QueryRow(ctx, c.sql(`DELETE FROM {schema}.instances WHERE id = $1 AND epoch = $2 RETURNING jid, lid, `+byLibrary), pgx.QueryExecModeExec, id, epoch).Scan(&jid, &lid, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		var there, known bool
		err = tx.QueryRow(ctx, c.sql(`SELECT EXISTS (SELECT FROM {schema}.instances WHERE id = $1), EXISTS (SELECT FROM {schema}.audit_heads WHERE instance_id = $1)`),
			pgx.QueryExecModeExec, id).Scan(&there, &known)
		switch {
		case err != nil:
			return err
		case there:
			return ErrOwnershipLost
		case !known:
			return ErrNoInstance
		}
	} else if err != nil {
		return err
	}
	own := deviceJSON{JID: text(unescapeID(jid)), LID: text(unescapeID(lid))}
	for pn, lid := range own.ownPair() {
		if _, err = tx.Exec(ctx, c.sql(`DELETE FROM {schema}.lid_map WHERE lid = $1 AND pn = $2`), pgx.QueryExecModeExec, keyID(lid), keyID(pn)); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, c.sql(`SELECT {schema}.audit_erase($1), `+durably), pgx.QueryExecModeExec, id)
	return err
}
