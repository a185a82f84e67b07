package pgstore_test

import (
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

// What a database that goes back in time does to the lives of a chaos: its rows become those of an earlier moment, on another timeline, or on the
// same where a witness or the owner itself will notice.

// savedTables are what goes back. The sequence that epochs come from does, too.
var savedTables = []string{"instances", "auth_keys"}

// inOneMoment runs statements in one snapshot.
func (x *chaos) inOneMoment(statements ...string) {
	conn, err := pgx.Connect(ctx, x.direct)
	require.NoError(x, err)
	defer func() { require.NoError(x, conn.Close(ctx)) }()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(x, err)
	for _, s := range statements {
		_, err = tx.Exec(ctx, s)
		require.NoError(x, err, s)
	}
	require.NoError(x, tx.Commit(ctx))
}

// remember keeps the rows as they are.
func (x *chaos) remember() {
	statements := []string{
		`DROP SCHEMA IF EXISTS saved CASCADE`, `CREATE SCHEMA saved`,
		`CREATE TABLE saved.epochs AS SELECT last_value FROM whatsmeow.epochs`,
	}
	for _, table := range savedTables {
		statements = append(statements, `CREATE TABLE saved.`+table+` AS TABLE whatsmeow.`+table)
	}
	x.inOneMoment(statements...)
	x.saved, x.savedIn = true, x.lives
}

// goBack puts them back.
func (x *chaos) goBack(promoted bool) {
	statements := []string{`SELECT setval('whatsmeow.epochs', (SELECT last_value FROM saved.epochs))`, `DELETE FROM whatsmeow.instances`}
	for _, table := range savedTables {
		statements = append(statements, `INSERT INTO whatsmeow.`+table+` SELECT * FROM saved.`+table)
	}
	if promoted {
		statements = append(statements, `UPDATE fake.timeline SET n = n + 1`)
	}
	// Nothing is flushed meanwhile: the owner's statements would fail for a conflict that no real restore has.
	x.inOneMoment(append([]string{`LOCK TABLE whatsmeow.instances`}, statements...)...)
	x.wentBack++
	x.backIn = x.lives
}

// betweenLives is what happens to the database while nobody uses it.
func (x *chaos) betweenLives() {
	if x.chance(10) { // rows of somebody who knows of no ceilings
		require.NoError(x, execSQL(x, x.direct, `UPDATE whatsmeow.auth_keys SET data = data - 'ceiling' WHERE key_type IN ('session', 'sender_key') AND random() < 0.5`))
		x.imports++
	}
	switch {
	case !x.saved || !x.chance(12):
	case x.chance(60):
		x.goBack(true)
	case x.witness != nil && x.savedIn < x.lives: // it knows of a later take
		x.goBack(false)
	}
	// Leases run out.
	require.NoError(x, execSQL(x, x.direct, `DELETE FROM whatsmeow.processes`))
}

// under is a database that goes back under its owner.
func (x *chaos) under() {
	promoted := x.chance(50)
	x.goBack(promoted)
	for range x.rng.IntN(4) {
		x.step(x.rng.IntN(len(x.theirs)))
	}
	if promoted {
		return
	}
	// On the same timeline nobody else would see it.
	noticing, cancel := x.patiently()
	defer cancel()
	require.NoError(x, x.device.Identities.PutIdentity(noticing, "noticed:0", [32]byte{byte(x.lives)}))
	require.NoError(x, x.c.Flush(noticing))
}

// witnessed lets half of the runs have a witness.
func (x *chaos) witnessed(cfg *pgstore.Config) {
	if x.witness == nil {
		return
	}
	w, err := filewitness.Open(*x.witness)
	require.NoError(x, err)
	cfg.Witness = w
}

const noticeWait = 20 * time.Second
