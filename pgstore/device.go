package pgstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mathRand "math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.mau.fi/util/random"
	"go.mau.fi/whatsmeow/proto/waAdv"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/types"
	"go.mau.fi/whatsmeow/util/keys"

	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// deviceKey is the key of a device's credentials, counterKey that of its pre-key counter.
var (
	deviceKey  = newKey(typeCreds, "device")
	counterKey = newKey(typeCreds, "pre_keys")
)

// deviceJSON is the device's part of the creds type: as credentials are handed out and taken in, key pairs as their private keys in base64.
type deviceJSON portable.Credentials

const (
	keyLength       = 32
	signatureLength = 64
	preKeyIDLimit   = 1 << 24
)

// checkDevice refuses what the schema of a device does not allow, naming the field.
func checkDevice(d *store.Device) error {
	if err := checkStored(d); err != nil {
		return err
	}
	fault := func(what string) error { return fmt.Errorf("%w: device: %s", ErrInvalidInput, what) }
	switch {
	case !storableUser(d.ID.String()) || !storableUser(d.LID.String()):
		return fault("ID or LID is too long")
	case !survivesParsing(*d.ID):
		return fault("ID is not what its text is read back as")
	case !survivesParsing(d.LID):
		return fault("LID is not what its text is read back as")
	case d.NoiseKey == nil || d.NoiseKey.Priv == nil:
		return fault("NoiseKey is missing")
	case d.IdentityKey == nil || d.IdentityKey.Priv == nil:
		return fault("IdentityKey is missing")
	case d.SignedPreKey == nil || d.SignedPreKey.Priv == nil || d.SignedPreKey.Signature == nil:
		return fault("SignedPreKey is missing or not signed")
	case d.SignedPreKey.KeyID >= preKeyIDLimit:
		return fault("SignedPreKey.KeyID is not below 2^24")
	case d.Account == nil:
		return fault("Account is missing")
	case len(d.Account.AccountSignature) != signatureLength:
		return fault("Account.AccountSignature must have 64 bytes")
	case len(d.Account.AccountSignatureKey) != keyLength:
		return fault("Account.AccountSignatureKey must have 32 bytes")
	case len(d.Account.DeviceSignature) != signatureLength:
		return fault("Account.DeviceSignature must have 64 bytes")
	case d.AdvSecretKey == nil:
		return fault("AdvSecretKey is missing")
	case d.Account.Details == nil:
		return fault("Account.Details is missing")
	}
	return nil
}

// survivesParsing says whether a JID's text, which is what is stored, is read back as that JID: a user with a dot, a colon or an @ is not.
func survivesParsing(jid types.JID) bool {
	parsed, err := types.ParseJID(jid.String())
	return err == nil && parsed == jid
}

func deviceToJSON(d *store.Device) *deviceJSON {
	j := &deviceJSON{
		JID: text(d.ID.String()), LID: text(d.LID.String()), RegistrationID: d.RegistrationID,
		NoiseKey: bytes.Clone(d.NoiseKey.Priv[:]), IdentityKey: bytes.Clone(d.IdentityKey.Priv[:]),
		SignedPreKey: bytes.Clone(d.SignedPreKey.Priv[:]), SignedPreKeyID: d.SignedPreKey.KeyID,
		SignedPreKeySignature: bytes.Clone(d.SignedPreKey.Signature[:]),
		AdvKey:                bytes.Clone(d.AdvSecretKey), AdvDetails: bytes.Clone(d.Account.Details),
		AdvAccountSig: bytes.Clone(d.Account.AccountSignature), AdvAccountSigKey: bytes.Clone(d.Account.AccountSignatureKey),
		AdvDeviceSig: bytes.Clone(d.Account.DeviceSignature),
		Platform:     text(d.Platform), BusinessName: text(d.BusinessName), PushName: text(d.PushName),
		LIDMigrationTimestamp: d.LIDMigrationTimestamp, CompanionMetaNonce: text(d.CompanionMetaNonce),
	}
	if d.FacebookUUID != uuid.Nil {
		id := d.FacebookUUID
		j.FacebookUUID = &id
	}
	return j
}

// update takes over what a Save may change; the keys of a saved device never do.
func (j *deviceJSON) update(from *deviceJSON) *deviceJSON {
	next := *j
	next.LID, next.Platform, next.BusinessName, next.PushName = from.LID, from.Platform, from.BusinessName, from.PushName
	next.LIDMigrationTimestamp, next.CompanionMetaNonce = from.LIDMigrationTimestamp, from.CompanionMetaNonce
	return &next
}

func (j *deviceJSON) sameKeys(o *deviceJSON) bool {
	return j.JID == o.JID && bytes.Equal(j.NoiseKey, o.NoiseKey) && bytes.Equal(j.IdentityKey, o.IdentityKey)
}

// isOf says whether these are a device's credentials. One that has no keys is named by its JID alone.
func (j *deviceJSON) isOf(d *store.Device) bool {
	same := func(stored []byte, key *keys.KeyPair) bool {
		return key == nil || key.Priv == nil || bytes.Equal(stored, key.Priv[:])
	}
	return string(j.JID) == d.ID.String() && same(j.NoiseKey, d.NoiseKey) && same(j.IdentityKey, d.IdentityKey)
}

// whole says whether the keys are there.
func (j *deviceJSON) whole() bool {
	return j != nil && len(j.NoiseKey) == keyLength && len(j.IdentityKey) == keyLength &&
		len(j.SignedPreKey) == keyLength && len(j.SignedPreKeySignature) == signatureLength
}

// device makes a *store.Device of stored credentials; nothing of it is shared.
func (c *Container) device(id string, j *deviceJSON) (*store.Device, error) {
	if !j.whole() {
		return nil, fmt.Errorf("%w: creds: a key has the wrong length", ErrCorrupt)
	}
	jid, err := types.ParseJID(string(j.JID))
	if err != nil {
		return nil, fmt.Errorf("%w: creds: jid", ErrCorrupt)
	}
	var lid types.JID
	if j.LID != "" {
		if lid, err = types.ParseJID(string(j.LID)); err != nil {
			return nil, fmt.Errorf("%w: creds: lid", ErrCorrupt)
		}
	}
	d := &store.Device{
		Log:            c.cfg.Log,
		NoiseKey:       keys.NewKeyPairFromPrivateKey([32]byte(j.NoiseKey)),
		IdentityKey:    keys.NewKeyPairFromPrivateKey([32]byte(j.IdentityKey)),
		RegistrationID: j.RegistrationID,
		AdvSecretKey:   bytes.Clone(j.AdvKey),
		ID:             &jid, LID: lid,
		Account: &waAdv.ADVSignedDeviceIdentity{
			Details: bytes.Clone(j.AdvDetails), AccountSignature: bytes.Clone(j.AdvAccountSig),
			AccountSignatureKey: bytes.Clone(j.AdvAccountSigKey), DeviceSignature: bytes.Clone(j.AdvDeviceSig),
		},
		Platform: string(j.Platform), BusinessName: string(j.BusinessName), PushName: string(j.PushName),
		LIDMigrationTimestamp: j.LIDMigrationTimestamp, CompanionMetaNonce: string(j.CompanionMetaNonce),
	}
	signature := [64]byte(j.SignedPreKeySignature)
	d.SignedPreKey = &keys.PreKey{KeyPair: *keys.NewKeyPairFromPrivateKey([32]byte(j.SignedPreKey)), KeyID: j.SignedPreKeyID, Signature: &signature}
	if j.FacebookUUID != nil {
		d.FacebookUUID = *j.FacebookUUID
	}
	c.wire(d, id)
	return d, nil
}

// binding is the Container of a device that belongs to a named instance.
type binding struct {
	*Container
	id string
}

// PutDevice implements [store.DeviceContainer].
func (b *binding) PutDevice(ctx context.Context, d *store.Device) error {
	return b.putDevice(ctx, d, b.id)
}

// DeleteDevice implements [store.DeviceContainer].
func (b *binding) DeleteDevice(ctx context.Context, d *store.Device) error {
	return b.deleteDevice(ctx, d, b.id)
}

// wire gives a saved device its stores. It may run any number of times.
func (c *Container) wire(d *store.Device, id string) {
	if d.Initialized {
		return
	}
	d.SetAllStores(c.newDeviceStore(id, d))
	d.LIDs = c.LIDMap
	d.Container = &binding{Container: c, id: id}
	d.Initialized = true
}

// idOf is the instance that a device is bound to; without a name of the user's own it is the JID.
func idOf(d *store.Device) string {
	if b, ok := d.Container.(*binding); ok {
		return b.id
	}
	return d.ID.String()
}

// NewDevice makes a device with new keys that is not stored anywhere. Pairing saves it.
func (c *Container) NewDevice() *store.Device {
	d := &store.Device{
		Log: c.cfg.Log, Container: c,
		NoiseKey: keys.NewKeyPair(), IdentityKey: keys.NewKeyPair(),
		RegistrationID: mathRand.Uint32(), //nolint:gosec // registration ids are not secret
		AdvSecretKey:   random.Bytes(keyLength),
	}
	d.SignedPreKey = d.IdentityKey.CreateSignedPreKey(1)
	return d
}

// Instance returns the device of the instance with the user's own name id and takes the instance. If there
// is none yet, it returns a fresh device that is bound to id when it pairs. An id is 1 to 1,000 bytes of UTF-8 without NUL, else
// [ErrInvalidInput]. A device that was saved without a name has its JID for one; to find a device by its JID
// whatever its name, use [Container.GetDevice]. It waits for a database that is away until the context ends.
func (c *Container) Instance(ctx context.Context, id string) (*store.Device, error) {
	if err := checkInstanceID(id); err != nil {
		return nil, err
	}
	d, err := c.takeDevice(ctx, id)
	if d == nil && err == nil {
		d = c.NewDevice()
		d.Container = &binding{Container: c, id: id}
	}
	return d, err
}

func checkInstanceID(id string) error {
	if id == "" || len(id) > maxIDBytes || !text(id).Storable() {
		return fmt.Errorf("%w: instance id must be UTF-8 of 1 to %d bytes without NUL", ErrInvalidInput, maxIDBytes)
	}
	return nil
}

// takeDevice takes an instance and returns its device, nil if there is none.
func (c *Container) takeDevice(ctx context.Context, id string) (*store.Device, error) {
	if err := c.recheck(ctx, id); err != nil {
		return nil, err
	}
	in, err := c.instance(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) || errors.Is(err, ErrDeviceDeleted) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	v, found, err := in.get(ctx, deviceKey)
	if err != nil {
		return nil, err
	}
	var d *store.Device
	if found {
		d, err = c.device(id, v.(*credsValue).Device)
	} else {
		err = fmt.Errorf("%w: creds are missing", ErrCorrupt)
	}
	if err != nil { // nobody can use it here, and another process may have a library that can read it
		return nil, errors.Join(err, c.release(ctx, in))
	}
	c.keepTo(d, in)
	return d, nil
}

// keepTo lets the stores of a device keep to the instance that was taken for it. If they only did so at their first use, they would take it
// back there from a process that has taken it meanwhile.
func (c *Container) keepTo(d *store.Device, in *instance) {
	if s, ok := d.Sessions.(*deviceStore); ok && s.c == c {
		s.in.CompareAndSwap(nil, in)
	}
}

// recheck finds out whether an instance that this container took was taken by somebody else since, who may have gone
// again: then what memory holds of it is old.
func (c *Container) recheck(ctx context.Context, id string) error {
	c.mu.Lock()
	in := c.mu.instances[id]
	c.mu.Unlock()
	if in == nil || !in.usable() {
		return nil
	}
	var epoch int64
	err := c.read(ctx, `SELECT epoch FROM {schema}.instances WHERE id = $1`, []any{id}, func() { epoch = 0 }, func(rows pgx.Rows) error {
		return rows.Scan(&epoch)
	})
	switch {
	case err != nil:
		return err
	case epoch == 0:
		in.stop(ErrDeviceDeleted)
	case in.takenFrom(epoch):
		in.lose(ErrOwnershipLost)
	}
	return nil
}

// GetDevice returns the device with the given JID (usually an AD-JID) and takes its instance, or nil if there is none.
func (c *Container) GetDevice(ctx context.Context, jid types.JID) (*store.Device, error) {
	var id string
	err := c.read(ctx, `SELECT id FROM {schema}.instances WHERE jid = $1`, []any{keyID(jid.String())}, func() { id = "" }, func(rows pgx.Rows) error {
		return rows.Scan(&id)
	})
	if err != nil || id == "" {
		return nil, err
	}
	return c.takeDevice(ctx, id)
}

// GetFirstDevice returns the device that was stored first and takes its instance, or a fresh device if there is none.
func (c *Container) GetFirstDevice(ctx context.Context) (*store.Device, error) {
	infos, err := c.Instances(ctx)
	if err != nil {
		return nil, err
	}
	for _, info := range infos {
		if d, err := c.takeDevice(ctx, info.ID); d != nil || err != nil {
			return d, err
		}
	}
	return c.NewDevice(), nil
}

// GetAllDevices returns all devices and takes none of them: an instance is taken at the first
// use of its device's stores.
func (c *Container) GetAllDevices(ctx context.Context) ([]*store.Device, error) {
	stored, err := c.storedCreds(ctx, `true`)
	if err != nil {
		return nil, err
	}
	var devices []*store.Device
	for _, s := range stored {
		var d *store.Device
		if s.err == nil {
			d, s.err = c.device(s.instance, s.device)
		}
		if s.err != nil {
			c.cfg.Logger.Error("pgstore: credentials cannot be read, device left out", "instance", s.instance, "error", s.err)
		} else {
			devices = append(devices, d)
		}
	}
	return devices, nil
}

// storedCreds are the credentials of an instance that need not be taken.
type storedCreds struct {
	instance string
	data     []byte
	seq      int64
	device   *deviceJSON
	err      error // why they cannot be read
}

// storedCreds reads credentials, those of the oldest instance first. That there is no key for one of them is an error of the whole.
func (c *Container) storedCreds(ctx context.Context, where string, args ...any) (stored []storedCreds, err error) {
	for again := false; ; again = true {
		err = c.read(ctx, `SELECT i.id, k.data::text, k.seq FROM {schema}.instances i
			JOIN {schema}.auth_keys k ON k.instance_id = i.id AND k.key_type = 'creds' AND k.key_id = 'device'
			WHERE `+where+` ORDER BY i.created_at, i.id`, args, func() { stored = nil }, func(rows pgx.Rows) error {
			var s storedCreds
			err := rows.Scan(&s.instance, &s.data, &s.seq)
			stored = append(stored, s)
			return err
		})
		if err != nil {
			return nil, err
		}
		rings, err := c.keyrings(ctx, sealedOf(stored))
		if err != nil {
			return nil, err
		}
		for i, s := range stored {
			if stored[i].device, err = c.credsOf(s, rings[s.instance]); errors.Is(err, ErrDataKey) || errors.Is(err, ErrNotEncrypted) {
				break
			}
			stored[i].err, err = err, nil
		}
		if err == nil || again { // between the two reads the owner may have made a new data key, and deleted the old one
			return stored, err
		}
	}
}

// credsOf decrypts and decodes credentials.
func (c *Container) credsOf(s storedCreds, ring *keyring) (*deviceJSON, error) {
	plain, err := c.unseal(ring, s.instance, deviceKey, s.seq, s.data)
	if errors.Is(err, errForeignKey) {
		return nil, corruptRow{err: err}.ofCreds(s.instance)
	} else if err != nil {
		return nil, err
	}
	v, err := decodeKey(deviceKey, plain)
	if err != nil {
		return nil, err
	}
	return v.(*credsValue).Device, nil
}

// InstanceInfo is what [Container.Instances] tells of an instance.
type InstanceInfo struct {
	ID    string // the user's own name, or the JID
	JID   string
	LID   string
	Owner string // who took it last
	Epoch int64  // which ownership this is
	Seq   int64  // grows with every flush
}

// Instances lists the instances, oldest first, and takes none of them.
func (c *Container) Instances(ctx context.Context) ([]InstanceInfo, error) {
	var infos []InstanceInfo
	err := c.read(ctx, `SELECT id, jid, lid, owner, epoch, seq FROM {schema}.instances ORDER BY created_at, id`, nil, func() { infos = nil }, func(rows pgx.Rows) error {
		var info InstanceInfo
		err := rows.Scan(&info.ID, &info.JID, &info.LID, &info.Owner, &info.Epoch, &info.Seq)
		info.JID, info.LID = unescapeID(info.JID), unescapeID(info.LID)
		infos = append(infos, info)
		return err
	})
	return infos, err
}

// read runs a query, and waits for a database that is away until the context ends. The
// begin is called before each attempt: forget the rows of the last one.
func (c *Container) read(ctx context.Context, statement string, args []any, begin func(), each func(pgx.Rows) error) error {
	if c.closed() {
		return ErrClosed
	}
	return c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		begin()
		rows, err := c.pool.Query(ctx, c.sql(statement), append([]any{pgx.QueryExecModeExec}, args...)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := each(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// PutDevice stores a device; Device.Save calls it. It returns when the device is durable. Of a stored device only what
// a Save may change is written; a device with other keys is [ErrDeviceConflict].
func (c *Container) PutDevice(ctx context.Context, d *store.Device) error {
	if err := checkDevice(d); err != nil {
		return err
	}
	return c.putDevice(ctx, d, idOf(d))
}

func (c *Container) putDevice(ctx context.Context, d *store.Device, id string) error {
	if err := checkDevice(d); err != nil {
		return err
	}
	if err := checkInstanceID(id); err != nil {
		return err
	}
	// Whatever happens below, the client goes on to use the stores.
	defer c.wire(d, id)
	in, err := c.instanceOf(ctx, d, id)
	if errors.Is(err, pgx.ErrNoRows) {
		if err = c.insertDevice(ctx, d, id); err != nil {
			return err
		}
		if in, err = c.instance(ctx, id); err == nil {
			c.wire(d, id)
			c.keepTo(d, in)
		}
		return err
	} else if err != nil {
		return err
	}
	next := deviceToJSON(d)
	var lidChanged bool
	err = in.read(ctx, func(v *view) error {
		stored, found := v.Get(deviceKey)
		if !found {
			return fmt.Errorf("%w: creds are missing", ErrCorrupt)
		}
		old := stored.(*credsValue).Device
		lidChanged = old.LID != next.LID
		if !old.sameKeys(next) {
			return fmt.Errorf("%w: instance holds a device with another JID or other keys", ErrDeviceConflict)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if lidChanged {
		// Before the credentials: the client saves a LID again only if it changed, so the pair must not come later.
		if err = c.putOwnLID(ctx, d, id); err != nil {
			return err
		}
	}
	return in.write(ctx, patienceDurable, func(v *view) error {
		if stored, found := v.Get(deviceKey); found {
			v.Put(deviceKey, &credsValue{Device: stored.(*credsValue).Device.update(next)})
		}
		return nil
	})
}

// instanceOf is the instance that a device's stores have taken, also when they have lost it: a Save must not take it back
// from its new owner. For a device that has not taken one yet it is the instance called id.
func (c *Container) instanceOf(ctx context.Context, d *store.Device, id string) (*instance, error) {
	if s, ok := d.Sessions.(*deviceStore); ok && s.c == c {
		if in := s.in.Load(); in != nil {
			return in, in.failure()
		}
	}
	return c.instance(ctx, id)
}

// putOwnLID stores a device's new LID where instances are listed and in the LID map.
func (c *Container) putOwnLID(ctx context.Context, d *store.Device, id string) error {
	err := c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, c.sql(`UPDATE {schema}.instances SET lid = $2 WHERE id = $1`), pgx.QueryExecModeExec, id, keyID(d.LID.String())); err != nil {
				return err
			}
			return c.LIDMap.putOwn(ctx, tx, d)
		})
	})
	if err != nil {
		return fmt.Errorf("pgstore: storing the device's LID: %w", err)
	}
	c.LIDMap.learnOwn(d)
	return nil
}

// insertDevice stores a new device, with its own LID pair, in one transaction.
func (c *Container) insertDevice(ctx context.Context, d *store.Device, id string) error {
	data, err := encode(&credsValue{Device: deviceToJSON(d)})
	if err != nil {
		return err
	}
	withKey, keyArgs := "", []any(nil)
	if c.cfg.Encryption != nil && c.cfg.EncryptionMode != Decrypting {
		var ring keyring
		var key WrappedKey
		if ring.current, key, err = c.makeDataKey(ctx, id); err != nil {
			return err
		}
		withKey, keyArgs = `, key AS (
			INSERT INTO {schema}.data_keys (instance_id, id, wrapping_key, wrapped, complete) SELECT id, $7, $8, $9, true FROM i)`, []any{key.ID, key.WrappingKey, key.Wrapped}
		if data, err = ring.seal(id, deviceKey, 1, data); err != nil {
			return err
		}
	}
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		err := pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, c.sql(`WITH i AS (
					INSERT INTO {schema}.instances (id, jid, lid, epoch, clean_at_epoch, seq, owner, process, timeline, system)
					SELECT $1, $2, $3, new.epoch, new.epoch, 1, $4, $6, db.timeline, db.system FROM `+database+`, (SELECT `+newEpoch+` AS epoch) AS new
					RETURNING id, seq, `+byLibrary+`)`+withKey+`
				INSERT INTO {schema}.auth_keys (instance_id, key_type, key_id, data, seq) SELECT id, 'creds', 'device', $5::jsonb, seq FROM i`),
				append([]any{pgx.QueryExecModeExec, id, keyID(d.ID.String()), keyID(d.LID.String()), c.cfg.Owner, data, c.process}, keyArgs...)...)
			if err != nil {
				return err
			}
			return c.LIDMap.putOwn(ctx, tx, d)
		})
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == "23505" {
			return fmt.Errorf("%w: instance %s or device %s is stored already", ErrDeviceConflict, id, d.ID)
		}
		return err
	})
	if errors.Is(err, ErrDeviceConflict) {
		if stored, readErr := c.storedDevice(ctx, id); readErr != nil {
			return readErr
		} else if stored != nil && stored.isOf(d) {
			c.LIDMap.learnOwn(d)
			return nil // an earlier attempt was committed, and its answer was lost
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("pgstore: storing device: %w", err)
	}
	c.LIDMap.learnOwn(d)
	return nil
}

// storedDevice reads the credentials of an instance without taking it; nil if there are none.
func (c *Container) storedDevice(ctx context.Context, id string) (stored *deviceJSON, err error) {
	found, err := c.storedCreds(ctx, `i.id = $1`, id)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0].device, found[0].err
}

// DeleteDevice removes a device with all its keys; Device.Delete calls it. It returns when that is durable. Stores that
// were taken from the device fail with [ErrDeviceDeleted] from then on, and nothing that they write comes back.
func (c *Container) DeleteDevice(ctx context.Context, d *store.Device) error {
	if err := checkStored(d); err != nil {
		return err
	}
	return c.deleteDevice(ctx, d, idOf(d))
}

// checkStored refuses a device that cannot have been stored.
func checkStored(d *store.Device) error {
	switch {
	case d == nil:
		return invalid("device is nil")
	case d.ID == nil:
		return ErrDeviceIDMustBeSet
	}
	return nil
}

func (c *Container) deleteDevice(ctx context.Context, d *store.Device, id string) error {
	if err := checkStored(d); err != nil {
		return err
	}
	if c.closed() {
		return ErrClosed
	}
	in, err := c.instanceOf(ctx, d, id)
	if errors.Is(err, pgx.ErrNoRows) || errors.Is(err, ErrDeviceDeleted) {
		return nil
	} else if err != nil {
		return err
	}
	stored, found, err := in.get(ctx, deviceKey)
	if err != nil {
		return err
	}
	if !found || !stored.(*credsValue).Device.isOf(d) {
		return nil // another device lives under this id: this one was never stored
	}
	err = c.retry(ctx, attemptTimeout, func(ctx context.Context) error {
		var deleted bool
		err := c.pool.QueryRow(ctx, c.sql(`WITH gone AS (DELETE FROM {schema}.instances WHERE id = $1 AND epoch = $2 RETURNING id, `+byLibrary+`)
			SELECT EXISTS (SELECT FROM gone) FROM {schema}.instances WHERE id = $1`), pgx.QueryExecModeExec, id, in.epoch()).Scan(&deleted)
		switch {
		case errors.Is(err, pgx.ErrNoRows): // an earlier attempt was committed, and its answer was lost
			return nil
		case err == nil && !deleted: // somebody else's, or of a database that went back
			return in.moved()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("pgstore: deleting device: %w", err)
	}
	in.stop(ErrDeviceDeleted)
	c.forget(in)
	return nil
}
