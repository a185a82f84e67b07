package life

// How the child opens its store, counts its statements, and dies in the middle of a call.

import (
	"context"
	"os"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"go.mau.fi/whatsmeow/store"
	"go.mau.fi/whatsmeow/store/sqlstore"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
	"github.com/wataki/whatsmeow-pgstore/pgstore/filewitness"
)

// container is what is needed of both stores.
type container interface {
	GetFirstDevice(ctx context.Context) (*store.Device, error)
	GetAllDevices(ctx context.Context) ([]*store.Device, error)
	Close() error
}

func (c *child) open() (container, error) {
	var tracer pgx.QueryTracer
	if c.Count {
		tracer = &c.statements
	}
	if !c.Ours {
		return openSqlstore(c.ctx, c.DSN, c.log, tracer)
	}
	cfg := pgstore.Config{DSN: c.DSN, Owner: owner(), DurableAcks: c.Durable, Log: c.log, Lease: c.Lease, TakeWait: c.TakeWait, OnStop: c.stopped, Reserve: c.Reserve}
	if c.Trust {
		cfg.OnTimelineChange = pgstore.Trust
	}
	if c.Leased {
		cfg.Takes, cfg.Lease = pgstore.RespectLease, 2*time.Second
	}
	if c.Witness != "" {
		witness, err := filewitness.Open(c.Witness)
		if err != nil {
			return nil, err
		}
		cfg.Witness = witness
	}
	if c.Keys != "" {
		keys, err := encryption.Parse(c.Keys)
		if err != nil {
			return nil, err
		}
		cfg.Encryption, cfg.EncryptionMode = encryption.New(keys), pgstore.Encrypted
	}
	if c.Lazy {
		cfg.FlushInterval, cfg.MaxRest = time.Hour, time.Hour
	}
	if tracer == nil {
		return c.openPgstore(cfg)
	}
	pool, err := pgxpool.ParseConfig(c.DSN)
	if err != nil {
		return nil, err
	}
	pool.ConnConfig.Tracer = tracer
	if cfg.Pool, err = pgxpool.NewWithConfig(c.ctx, pool); err != nil { // it ends with the process
		return nil, err
	}
	cfg.DSN = ""
	return c.openPgstore(cfg)
}

func (c *child) openPgstore(cfg pgstore.Config) (*pgstore.Container, error) {
	ours, err := pgstore.NewWithConfig(c.ctx, cfg)
	if err == nil && c.Off {
		switchOff(ours)
	}
	return ours, err
}

// switchOff sets what pgstore's own tests set to show that their judge fires. It has no name outside of its package.
func switchOff(c *pgstore.Container) {
	mechanism := reflect.ValueOf(c).Elem().FieldByName("ignoreMarks")
	*(*bool)(mechanism.Addr().UnsafePointer()) = true
}

func openSqlstore(ctx context.Context, dsn string, log waLog.Logger, tracer pgx.QueryTracer) (*sqlstore.Container, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.Tracer = tracer
	c := sqlstore.NewWithDB(stdlib.OpenDB(*cfg), "postgres", log)
	return c, c.Upgrade(ctx)
}

// saved is all that a device saves of itself.
func saved(d *store.Device) store.Device {
	return store.Device{
		NoiseKey: d.NoiseKey, IdentityKey: d.IdentityKey, SignedPreKey: d.SignedPreKey, RegistrationID: d.RegistrationID, AdvSecretKey: d.AdvSecretKey,
		ID: d.ID, LID: d.LID, Account: d.Account, Platform: d.Platform, BusinessName: d.BusinessName, PushName: d.PushName,
		LIDMigrationTimestamp: d.LIDMigrationTimestamp, CompanionMetaNonce: d.CompanionMetaNonce, FacebookUUID: d.FacebookUUID,
	}
}

// statements counts statements.
type statements struct{ atomic.Int64 }

// TraceQueryStart implements [pgx.QueryTracer].
func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.Add(1)
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// dying is an app-state store that ends its process after a call of one of its methods, when what that has written in the
// background has had the time to become durable.
type dying struct {
	store.AppStateStore
	after string
}

func (d *dying) called(method string) {
	if method != d.after {
		return
	}
	time.Sleep(10 * pgstore.DefaultFlushInterval)
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Kill()
	}
	select {}
}

// PutAppStateVersion implements [store.AppStateStore].
func (d *dying) PutAppStateVersion(ctx context.Context, name string, version uint64, hash [128]byte) error {
	err := d.AppStateStore.PutAppStateVersion(ctx, name, version, hash)
	d.called("PutAppStateVersion")
	return err
}

// DeleteAppStateMutationMACs implements [store.AppStateStore].
func (d *dying) DeleteAppStateMutationMACs(ctx context.Context, name string, indexMACs [][]byte) error {
	err := d.AppStateStore.DeleteAppStateMutationMACs(ctx, name, indexMACs)
	d.called("DeleteAppStateMutationMACs")
	return err
}

// PutAppStateMutationMACs implements [store.AppStateStore].
func (d *dying) PutAppStateMutationMACs(ctx context.Context, name string, version uint64, mutations []store.AppStateMutationMAC) error {
	err := d.AppStateStore.PutAppStateMutationMACs(ctx, name, version, mutations)
	d.called("PutAppStateMutationMACs")
	return err
}
