package soak

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

// encrypts is a process whose rows are encrypted, beside the limited one.
const encrypts = 1

func newKeys(t testing.TB) pgstore.Encryption {
	t.Helper()
	key, err := encryption.NewKey("soak")
	require.NoError(t, err)
	keys, err := encryption.Parse(key)
	require.NoError(t, err)
	return encryption.New(keys)
}

// rotateKeys gives an instance another data key while it lives. It may be deleted meanwhile.
func rotateKeys(t testing.TB, b *badDays) {
	var id string
	b.query(t, []any{&id}, `SELECT i.id FROM whatsmeow.instances i JOIN whatsmeow.data_keys d ON d.instance_id = i.id WHERE i.owner = $1 ORDER BY random() LIMIT 1`,
		b.processes[encrypts].config.Owner)
	p := b.processes[encrypts]
	p.mu.RLock()
	defer p.mu.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.container.RotateDataKey(ctx, id); !errors.Is(err, pgstore.ErrDeviceDeleted) {
		require.NoError(t, err)
	}
}
