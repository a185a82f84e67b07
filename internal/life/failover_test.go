package life

import (
	"testing"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

// fate is what becomes of the client over a failover that loses the tail of what it wrote.
type fate struct {
	name string
	tail func(*rewound, *pgtest.Standby) // writes it
	over func(*rewound, func())          // and goes on after the failover
}

var fates = []fate{
	{
		name: "alive",
		tail: func(r *rewound, _ *pgtest.Standby) { r.talkAbout("the tail") },
		over: func(r *rewound, failOver func()) { r.while(failOver) },
	},
	{
		name: "dead",
		tail: func(r *rewound, _ *pgtest.Standby) {
			r.talkAbout("the tail")
			r.save()
			r.kill()
		},
		over: func(r *rewound, failOver func()) {
			failOver()
			r.start()
			r.await(ofKind(saidConnected))
		},
	},
}

func TestP4AFailoverThatLosesATailBringsNoKeyBack(t *testing.T) {
	t.Parallel()
	for _, f := range fates {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			r := newRewound(t)
			r.overFailover(f)
			r.goOn()
		})
	}
}

func (r *rewound) overFailover(f fate) {
	r.t.Helper()
	standby := r.cluster.Standby(pgtest.Asynchronous)
	standby.Cut()
	f.tail(r, standby)
	f.over(r, func() { r.cluster.FailOver(standby) })
}

func TestWithoutTheMechanismAFailoverBringsKeysBack(t *testing.T) {
	t.Parallel()
	for _, f := range fates[1:] {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			r := newRewound(t, func(s *settings) { s.Off = true })
			r.overFailover(f)
			r.fires()
		})
	}
}
