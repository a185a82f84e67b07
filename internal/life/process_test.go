package life

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestARaceIsOursIfOneOfItsAccessesIs(t *testing.T) {
	t.Parallel()
	const theirs = `
WARNING: DATA RACE
Write at 0x00c000123450 by goroutine 7:
  go.mau.fi/util/exsync.(*Event).GetChan()
      /go/pkg/mod/go.mau.fi/util@v0.9.8/exsync/event.go:80 +0x44
  github.com/wataki/whatsmeow-pgstore/internal/life.(*bot).keepSaying()
      /src/internal/life/bot.go:60 +0x5a

Previous read at 0x00c000123450 by goroutine 9:
  runtime.mapaccess1()
      /go/src/runtime/map.go:1 +0x0
  go.mau.fi/whatsmeow.(*Client).connect()
      /go/pkg/mod/go.mau.fi/whatsmeow/client.go:500 +0x1

Goroutine 7 (running) created at:
  github.com/wataki/whatsmeow-pgstore/internal/life.(*child).run()
      /src/internal/life/child.go:90 +0x2
`
	const ours = `
WARNING: DATA RACE
Write at 0x00c000123450 by goroutine 7:
  go.mau.fi/whatsmeow/store.(*Device).Delete()
      /go/pkg/mod/go.mau.fi/whatsmeow/store/store.go:200 +0x44

Previous read at 0x00c000123450 by goroutine 9:
  runtime.mapaccess1()
      /go/src/runtime/map.go:1 +0x0
  internal/sync.(*HashTrieMap[go.shape.interface {}]).Load()
      /go/src/internal/sync/hashtriemap.go:1 +0x0
  github.com/wataki/whatsmeow-pgstore/pgstore.(*deviceStore).instance()
      /src/pgstore/devicestore.go:50 +0x1
`
	require.False(t, ourRace(theirs))
	require.True(t, ourRace(ours))
	require.False(t, ourRace(""))
}
