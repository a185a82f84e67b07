package pgstore_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

const frozenDSN = "PGSTORE_TEST_FROZEN_DSN"

// TestFrozenProcess is the process that stands still; alone it does nothing. It writes without end, and says what it is told in the end.
func TestFrozenProcess(t *testing.T) {
	dsn := os.Getenv(frozenDSN)
	if dsn == "" {
		return
	}
	c, err := pgstore.NewWithConfig(ctx, pgstore.Config{DSN: dsn, Lease: time.Second})
	require.NoError(t, err)
	d, err := c.Instance(ctx, "shop")
	require.NoError(t, err)
	for n := 0; err == nil; n++ {
		if n == 100 {
			fmt.Println("writing")
		}
		err = d.Identities.PutIdentity(ctx, fmt.Sprintf("former-%d:0", n), [32]byte{1})
		time.Sleep(time.Millisecond)
	}
	fmt.Printf("write: %v; save: %v\n", err, d.Save(ctx))
	_ = c.Close()
	fmt.Println("closed")
	os.Exit(0) // the test's own way out would say more
}

// The same with a process that really stands still, wherever in its flushes it was: a device is deleted and paired again under its name meanwhile.
func TestP9NothingOfAFrozenProcessGetsIntoALaterLife(t *testing.T) {
	t.Parallel()
	for range 5 {
		dsn := pgtest.Open(t)
		c := process(t, dsn)
		first, err := c.Instance(ctx, "shop")
		require.NoError(t, err)
		pair(t, first)
		require.NoError(t, c.Release(ctx, "shop"))

		frozen := exec.Command(os.Args[0], "-test.run=^TestFrozenProcess$", "-test.timeout=2m")
		frozen.Env = append(os.Environ(), frozenDSN+"="+dsn)
		frozen.Stderr = os.Stderr
		out, err := frozen.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, frozen.Start())
		defer func() { _ = frozen.Process.Kill() }()
		said := bufio.NewScanner(out)
		require.True(t, said.Scan())
		require.Equal(t, "writing", said.Text())
		require.NoError(t, frozen.Process.Signal(syscall.SIGSTOP))

		former, err := c.Instance(within(t, 10*time.Second), "shop")
		require.NoError(t, err, "the frozen process holds up its successor")
		require.NoError(t, former.Delete(within(t, 10*time.Second)))
		fresh, err := c.Instance(ctx, "shop")
		require.NoError(t, err)
		pair(t, fresh)
		trust(t, "later:0", fresh)
		require.NoError(t, c.Flush(ctx))

		require.NoError(t, frozen.Process.Signal(syscall.SIGCONT))
		require.True(t, said.Scan())
		t.Log(said.Text())
		require.NotContains(t, said.Text(), "<nil>", "both are refused")
		require.True(t, said.Scan())
		require.NoError(t, frozen.Wait())
		require.Zero(t, scalar[int](t, dsn, `SELECT count(*) FROM whatsmeow.auth_keys WHERE key_id LIKE 'former-%'`))
		require.Equal(t, 1, trusted(t, dsn, "later:0"))
		again := mustDevice(t, reopen(t, dsn), *fresh.ID)
		require.Equal(t, fresh.NoiseKey.Priv, again.NoiseKey.Priv)
	}
}
