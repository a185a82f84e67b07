package life

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// Patroni fails over under traffic, the old primary joins the new one, and Patroni switches back, while the client keeps one DSN that names both.
func TestP4PatroniFailsOverAndBack(t *testing.T) {
	t.Parallel()
	p := pgtest.NewPatroni(t)
	r := newRewoundOn(t, p.DSN)
	for i, change := range []func(){p.FailOver, p.SwitchOver} {
		r.while(change)
		require.EqualValues(t, i+1, r.replayed(), "the owner notices each new timeline")
	}
	r.goOn()
}
