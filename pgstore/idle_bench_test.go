package pgstore_test

import (
	"cmp"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mau.fi/whatsmeow/store"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// BenchmarkIdleInstances opens 500 instances and reports how much memory each holds, also in parts of the bytes of its rows: as pairing leaves them,
// and with the 812 pre-keys that a client uploads first.
func BenchmarkIdleInstances(b *testing.B) {
	const instances = 500
	for name, preKeys := range map[string]uint32{"paired": 0, "812 pre-keys": 812} {
		b.Run(name, func(b *testing.B) {
			dsn := pgtest.Open(b)
			insertDevices(b, dsn, instances-1)
			givePreKeys(b, dsn, preKeys)
			rows := scalar[float64](b, dsn, `SELECT sum(octet_length(key_id) + octet_length(data::text))::float8 FROM whatsmeow.auth_keys`) / instances
			var held []float64
			var took []time.Duration
			for b.Loop() {
				c := reopen(b, dsn)
				infos, err := c.Instances(ctx)
				require.NoError(b, err)
				require.Len(b, infos, instances)
				devices := make([]*store.Device, instances)
				before, start := heap(), time.Now()
				for i, info := range infos {
					devices[i], err = c.Instance(ctx, info.ID)
					require.NoError(b, err)
				}
				took = append(took, time.Since(start)/instances)
				held = append(held, float64(heap()-before)/instances)
				runtime.KeepAlive(devices)
				require.NoError(b, c.Close())
			}
			least := slices.MinFunc(held, cmp.Compare[float64])
			b.ReportMetric(least, "B/instance")
			b.ReportMetric(least/rows, "held/rows")
			b.ReportMetric(median(took)/1e6, "ms/instance")
		})
	}
}

// givePreKeys lets one instance upload pre-keys, and copies them to all others.
func givePreKeys(b *testing.B, dsn string, n uint32) {
	if n == 0 {
		return
	}
	c, err := pgstore.New(ctx, dsn, nil)
	require.NoError(b, err)
	d, err := c.GetFirstDevice(ctx)
	require.NoError(b, err)
	made, err := d.PreKeys.GetOrGenPreKeys(ctx, n)
	require.NoError(b, err)
	require.NoError(b, d.PreKeys.MarkPreKeysAsUploaded(ctx, made[n-1].KeyID))
	require.NoError(b, c.Close())
	require.NoError(b, execSQL(b, dsn, `INSERT INTO whatsmeow.auth_keys (instance_id, key_type, key_id, data, seq)
		SELECT i.id, k.key_type, k.key_id, k.data, 0 FROM whatsmeow.auth_keys k, whatsmeow.instances i
		WHERE k.instance_id = '`+d.ID.String()+`' AND i.id <> k.instance_id AND NOT (k.key_type = 'creds' AND k.key_id = 'device')`))
}
