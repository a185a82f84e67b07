package main_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/internal/signaltest"
)

// A restore is rehearsed on a copy that pgBackRest makes while production lives, as the README says: the instances of the backup open, and so do those that only the archived WAL has, and
// production does not notice.
func TestDrillOnACopyThatPgBackRestMade(t *testing.T) {
	t.Parallel()
	repository := pgtest.NewPgBackRest(t)
	production := &stage{TB: t, dsn: repository.DSN}
	c := production.open()
	d, peer := production.pair(c, "shop-1")
	repository.Backup()
	production.pair(c, "shop-2")
	repository.Archive()

	drilled := &stage{TB: t, dsn: repository.Copy()}
	drilled.secrets.Note(t, drilled.dsn)
	var r said
	// At first it looks as if the processes of production lived there, since their heartbeats were copied.
	require.Eventually(t, func() bool {
		r = drilled.run("drill", "--json")
		return r.code != 4
	}, time.Minute, time.Second)
	require.Zero(t, r.code, "%s %s", r.out, r.errs)
	var report struct {
		OK        bool
		Audit     struct{ OK bool }
		Instances []struct{ OK, Healed bool }
	}
	require.NoError(t, json.Unmarshal([]byte(r.out), &report))
	t.Log(r.out)
	require.True(t, report.OK)
	require.True(t, report.Audit.OK)
	require.Len(t, report.Instances, 2)
	for _, i := range report.Instances {
		require.True(t, i.OK)
		require.True(t, i.Healed)
	}

	require.Contains(t, production.fails(4, "drill"), "1 processes live")
	signaltest.Say(t, signaltest.NewPeer(d), peer, "production goes on")
	require.NoError(t, c.Flush(ctx))
	require.Zero(t, c.Stats().Healed)
}
