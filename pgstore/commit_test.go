package pgstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// What a flush and a take commit with is what the server says, at least on, or what the configuration says.
func TestP5WhatIsDurableIsCommittedAsConfigured(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ server, config, want string }{
		{"off", "", "on"}, {"remote_apply", "", "remote_apply"}, {"off", "local", "local"}, {"on", "remote_write", "remote_write"},
	} {
		t.Run(fmt.Sprint(c.server, " ", c.config), func(t *testing.T) {
			t.Parallel()
			dsn := pgtest.Open(t)
			require.NoError(t, execSQL(t, dsn,
				`CREATE TABLE public.commits (what text, as_set text)`,
				`CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
					INSERT INTO commits SELECT TG_NAME, current_setting('synchronous_commit'); RETURN NULL;
				END $$`))
			store := reopen(t, withQuery(t, dsn, "synchronous_commit", c.server), func(cfg *pgstore.Config) { cfg.SynchronousCommit = c.config })
			d := pair(t, store.NewDevice())
			// A deferred trigger runs at the commit, when all of the statement has.
			require.NoError(t, execSQL(t, dsn, `CREATE CONSTRAINT TRIGGER updated AFTER UPDATE ON whatsmeow.instances DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note()`))
			trust(t, "1:0", d)
			require.NoError(t, store.Flush(ctx))
			require.NoError(t, store.Close())
			store = reopen(t, withQuery(t, dsn, "synchronous_commit", c.server), func(cfg *pgstore.Config) { cfg.SynchronousCommit = c.config })
			mustDevice(t, store, *d.ID)
			require.GreaterOrEqual(t, scalar[int](t, dsn, `SELECT count(*) FROM commits WHERE as_set = $1`, c.want), 2, "a flush and a take")
		})
	}
}
