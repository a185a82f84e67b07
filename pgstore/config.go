package pgstore

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	waLog "go.mau.fi/whatsmeow/util/log"
)

// Defaults of [Config].
const (
	DefaultSchema        = "whatsmeow"
	DefaultFlushInterval = 10 * time.Millisecond
	DefaultMaxRest       = 100 * time.Millisecond
	DefaultBatchSize     = 5000
	DefaultMemoryBudget  = 1 << 30
	DefaultPendingLimit  = 200_000
	DefaultPendingBytes  = 512 << 20
	DefaultOutageWait    = 3 * time.Second
	DefaultFlushTimeout  = 30 * time.Second
	DefaultNewChainWait  = 2 * time.Second
	DefaultReserve       = 64
	DefaultLease         = 15 * time.Second
	DefaultHealRate      = 50
)

// maxReserve leaves room for one unclean end within what a receiver bridges.
const maxReserve = widestGap / 2

// SendMode says what a send waits for before its message may leave.
type SendMode int

const (
	// Reserved lets a message leave when its message key cannot come back after a crash: at once on a sending chain that the database knows, whose
	// rows reserve counters ahead ([Config].Reserve), and as [Config].NewChains says on one that it does not know yet. This is the default.
	Reserved SendMode = iota
	// Durable lets a message leave when the ratchet that encrypted it is durable: one group commit per
	// send.
	Durable
	// WriteBehind lets a send wait for nothing. Message keys can only come back if more than Reserve messages left on one chain since its
	// last flush, as in an outage: the peer takes what is encrypted with them for duplicates and drops
	// them, and who holds both ciphertexts learns the XOR of parts of them.
	WriteBehind
)

// Return says what a database is taken for that may have gone back in time: one that is on another WAL timeline than it was, or another one
// altogether.
type Return int

const (
	// Heal takes it for one whose rows are older than what has left on the wire, as after the promotion of an asynchronous standby, a
	// point-in-time restore, or the restore of a dump. All sending chains are abandoned, so that no message key comes back, and made anew
	// when they are next used. This is the default.
	Heal Return = iota
	// Trust takes it for one that has lost nothing: a synchronous standby, a dump of a database that nobody has used since. If it has, message keys
	// may come back. What a living owner sees to be lost is healed nevertheless.
	Trust
)

// Takes says when an instance may be taken from the process that has it. All processes of a database have to agree: it notes what the
// first of them said. To change it, stop all of them and update the row of the settings table.
type Takes int

const (
	// Forced takes an instance at once, so that a restart waits for nobody. This is the default.
	Forced Takes = iota
	// RespectLease takes it when its owner has let go of it, or has not renewed its lease in time. An owner whose lease never lapsed keeps its
	// sending chains over a failover that lost writes, since nobody else can have used them. After a crash the next one waits for up to
	// [Config].Lease.
	RespectLease
)

// AuditLevel says what the audit trail tells.
type AuditLevel int

const (
	// AuditLife tells of the life of each instance: pairing, credentials, deletion, who took it and let it go, databases that went back, and whatever
	// somebody changes who is not the library. This is the default, and the least.
	AuditLife AuditLevel = iota
	// AuditAll tells of each flush, too, and of each key that it changed: its type, id and size, and the SHA-256 of its value.
	AuditAll
)

// Config says how a [Container] works. The zero value of every field except DSN or Pool is
// usable. It is copied: later changes have no effect.
type Config struct {
	// DSN is a PostgreSQL connection string or URL. The container opens a pool of its own on it and
	// closes it in Close. Exactly one of DSN and Pool must be set. Where it names none, a connection has to be made within
	// 10 seconds; TCP keep-alives find a dead one within 30. Each statement has a limit on this side of the connection (30
	// seconds, FlushTimeout, two minutes for loading an instance) and no statement_timeout, which PgBouncer could
	// not pass on.
	DSN string
	// Pool is used instead of a pool of the container's own. Whoever made it closes it, after Close of
	// the container has returned. It needs at least two connections.
	Pool *pgxpool.Pool
	// Schema is the PostgreSQL schema that holds all tables: lower-case letters, digits and
	// underscores, and none of PostgreSQL's own. Defaults to [DefaultSchema].
	Schema string
	// SkipMigrations makes New fail with [ErrSchemaMissing] instead of migrating, for roles that may not create anything.
	SkipMigrations bool
	// Owner names this process in the instances table, for people: UTF-8 without NUL. Defaults to host name and process id.
	Owner string

	// FlushInterval is how long a write that nobody waits for may stay in memory before its
	// flush begins. Defaults to [DefaultFlushInterval].
	FlushInterval time.Duration
	// MaxRest bounds the pause between flushes that nobody waits for, which is otherwise
	// three times what the last one took. Not less than FlushInterval. Defaults to [DefaultMaxRest], or to FlushInterval if that is longer.
	MaxRest time.Duration
	// FlushTimeout bounds one attempt at a flush. Defaults to [DefaultFlushTimeout].
	FlushTimeout time.Duration
	// BatchSize is how many keys one flush writes at the most, over all instances. Defaults to [DefaultBatchSize].
	BatchSize int
	// PendingLimit is how many unflushed keys may wait in memory, over all instances; writers then block until half
	// of them are flushed or their context ends. As many LID pairs may wait besides. Defaults to [DefaultPendingLimit].
	PendingLimit int
	// PendingBytes is how many bytes unflushed keys may occupy, over all instances, older values of a key that are still on their way included;
	// writers then block as with PendingLimit. One call that stores more than that waits until half is free. The newest value of a key counts
	// for MemoryBudget, too. Defaults to [DefaultPendingBytes], which is PendingLimit keys of the usual size.
	PendingBytes int64
	// MemoryBudget bounds the bytes of cached keys over all instances; unflushed ones may exceed it.
	// Of the LID map, one answer is kept per KB of it, which is about a tenth more. Defaults to [DefaultMemoryBudget]; -1 means no bound.
	MemoryBudget int64

	// SynchronousTypes names key types (values of the key_type column) whose writes return only when they are durable.
	SynchronousTypes []string
	// Sends says what a send waits for. Defaults to [Reserved].
	Sends SendMode
	// NewChains says what the first sends on a chain that is not in the database yet wait for with Sends Reserved: until it is there (Durable, the
	// default, also for 0), no longer than NewChainWait; or nothing (WriteBehind). After a crash the peer's answers to a chain that was
	// lost cost a retry receipt each; no message key repeats.
	NewChains SendMode
	// NewChainWait bounds the wait for a new chain; the client holds its send lock meanwhile. Once it was in vain, nobody waits for new
	// chains until a flush has succeeded. Defaults to [DefaultNewChainWait].
	NewChainWait time.Duration
	// Reserve is how many counters ahead of a sending chain every flush reserves. A chain that sends more between two flushes
	// waits; after an unclean end the peer sees a gap of up to as many. From 1 to 1,000; defaults to [DefaultReserve].
	Reserve int
	// DurableAcks makes ClearBufferedEventPlaintext wait until all that came before it is durable. With
	// EnableDecryptedEventBuffer on the client, no message whose handler returned is then lost. It costs one
	// group commit per incoming message, outside of decryption.
	DurableAcks bool
	// SynchronousCommit is PostgreSQL's synchronous_commit for all that is reported as durable: on, local, remote_write or remote_apply. Empty means
	// the server's own setting, but at least on.
	SynchronousCommit string
	// OnTimelineChange says what a database is taken for that is on another WAL timeline: after a failover or a point-in-time
	// restore. Defaults to [Heal].
	OnTimelineChange Return
	// OnNewSystem says what one is taken for that is another than the rows were written in: a restored dump, a copy, one that pg_upgrade has made.
	// Defaults to [Heal].
	OnNewSystem Return
	// Takes says when an instance may be taken from the process that has it. Defaults to [Forced].
	Takes Takes
	// Lease is how long a process counts as living after its last sign of life; one is given three times as often. Until then its instances are not
	// claimed, nor taken with Takes RespectLease. A database that is away stops no owner: he goes on from memory, and while it is away
	// nobody can take over. At least a second; defaults to [DefaultLease].
	Lease time.Duration
	// TakeWait is how long taking an instance waits for a living owner to let go of it, before it is taken by force: for the process that a rolling deploy
	// replaces. Zero means not at all.
	TakeWait time.Duration
	// Address is where this process is reached by others, in whatever form they understand: it is shown in the view owners. UTF-8 without NUL.
	Address string
	// Realm is the name of the installation, which the first process writes into the database. A copy of the database carries it along, so that
	// a staging process pointed at a copy of production, or the reverse, is refused with [ErrRealm]. UTF-8 without NUL; empty is a name, too.
	Realm string
	// MaxInstances bounds how many instances Claim lets this process have. Zero means no bound.
	MaxInstances int
	// OnStop is called, in a goroutine of its own, when an instance has stopped by itself: it was lost to another process, or the database refuses its
	// writes. Disconnect its client then.
	OnStop func(Stop)
	// Witness remembers outside of the database how far it has got, so that one that was put back whole (a snapshot of a volume or of a
	// virtual machine) is noticed when an instance is taken. Nil means none.
	Witness Witness
	// HealRate is how many times per second a container lets clients fetch the bundles of devices whose sending chains were abandoned,
	// so that they do not all ask at once after a failover; sends wait meanwhile. Defaults to [DefaultHealRate]; -1 means no limit.
	HealRate float64
	// Audit says what the audit trail tells; package audit verifies it. Defaults to [AuditLife].
	Audit AuditLevel
	// Encryption encrypts the values of rows before they leave the process; package encryption has one. Every process of a database has to have one with the same wrapping
	// keys. Nil means that rows are plain; an instance that has encrypted ones is [ErrDataKey] then.
	Encryption Encryption
	// EncryptionMode says, with Encryption, what is written, and what is read. Defaults to [Encrypting].
	EncryptionMode EncryptionMode
	// OutageWait is how long a write that an acknowledgement would let go for good (a sender
	// key of somebody else, an app-state sync key, the NCT salt, a LID pair) waits for the database before it goes on from
	// memory. Defaults to [DefaultOutageWait], also for 0.
	OutageWait time.Duration

	// Log gets whatsmeow-style messages and is the logger of the devices. Nil means none.
	Log waLog.Logger
	// Logger gets the container's own structured messages. Nil means that they go to Log.
	Logger *slog.Logger
}

var synchronousCommits = []string{"", "on", "local", "remote_write", "remote_apply"}

var schemaPattern = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func (cfg Config) withDefaults() Config {
	cfg.Schema = cmp.Or(cfg.Schema, DefaultSchema)
	if cfg.Owner == "" {
		host, _ := os.Hostname()
		cfg.Owner = host + "/" + strconv.Itoa(os.Getpid())
	}
	cfg.FlushInterval = cmp.Or(cfg.FlushInterval, DefaultFlushInterval)
	cfg.MaxRest = cmp.Or(cfg.MaxRest, max(DefaultMaxRest, cfg.FlushInterval))
	cfg.FlushTimeout = cmp.Or(cfg.FlushTimeout, DefaultFlushTimeout)
	cfg.BatchSize = cmp.Or(cfg.BatchSize, DefaultBatchSize)
	cfg.PendingLimit = cmp.Or(cfg.PendingLimit, DefaultPendingLimit)
	cfg.PendingBytes = cmp.Or(cfg.PendingBytes, DefaultPendingBytes)
	cfg.MemoryBudget = cmp.Or(cfg.MemoryBudget, DefaultMemoryBudget)
	cfg.OutageWait = cmp.Or(cfg.OutageWait, DefaultOutageWait)
	cfg.NewChains = cmp.Or(cfg.NewChains, Durable)
	cfg.NewChainWait = cmp.Or(cfg.NewChainWait, DefaultNewChainWait)
	cfg.Reserve = cmp.Or(cfg.Reserve, DefaultReserve)
	cfg.Lease = cmp.Or(cfg.Lease, DefaultLease)
	cfg.HealRate = cmp.Or(cfg.HealRate, DefaultHealRate)
	cfg.SynchronousTypes = slices.Clone(cfg.SynchronousTypes)
	if cfg.Log == nil {
		cfg.Log = waLog.Noop
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(waHandler{log: cfg.Log})
	}
	return cfg
}

// validate names every fault in one error.
func (cfg Config) validate() error {
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault((cfg.DSN == "") == (cfg.Pool == nil), "exactly one of DSN and Pool must be set")
	fault(cfg.Pool != nil && cfg.Pool.Config().MaxConns < 2, "Pool needs at least two connections")
	fault(!schemaPattern.MatchString(cfg.Schema), "Schema %q must match %s", cfg.Schema, schemaPattern)
	fault(strings.HasPrefix(cfg.Schema, "pg_") || cfg.Schema == "information_schema", "Schema %s is PostgreSQL's own", cfg.Schema)
	fault(!text(cfg.Owner).Storable(), "Owner must be UTF-8 without NUL")
	fault(cfg.FlushInterval < 0, "FlushInterval is %v, must be positive", cfg.FlushInterval)
	fault(cfg.MaxRest < cfg.FlushInterval, "MaxRest is %v, must not be less than FlushInterval (%v)", cfg.MaxRest, cfg.FlushInterval)
	fault(cfg.FlushTimeout < 0, "FlushTimeout is %v, must be positive", cfg.FlushTimeout)
	fault(cfg.BatchSize < 0, "BatchSize is %d, must be positive", cfg.BatchSize)
	fault(cfg.PendingLimit < 0, "PendingLimit is %d, must be positive", cfg.PendingLimit)
	fault(cfg.PendingBytes < 0, "PendingBytes is %d, must be positive", cfg.PendingBytes)
	fault(cfg.MemoryBudget < -1, "MemoryBudget is %d, must be positive or -1", cfg.MemoryBudget)
	fault(cfg.OutageWait < 0, "OutageWait is %v, must be positive", cfg.OutageWait)
	fault(cfg.Sends < Reserved || cfg.Sends > WriteBehind, "Sends is %d, must be Reserved, Durable or WriteBehind", cfg.Sends)
	fault(cfg.NewChains != Durable && cfg.NewChains != WriteBehind, "NewChains is %d, must be Durable or WriteBehind", cfg.NewChains)
	fault(cfg.NewChainWait < 0, "NewChainWait is %v, must be positive", cfg.NewChainWait)
	fault(cfg.Reserve < 1 || cfg.Reserve > maxReserve, "Reserve is %d, must be from 1 to %d", cfg.Reserve, maxReserve)
	fault(!slices.Contains(synchronousCommits, cfg.SynchronousCommit), "SynchronousCommit is %q, must be one of %q", cfg.SynchronousCommit, synchronousCommits[1:])
	fault(cfg.OnTimelineChange != Heal && cfg.OnTimelineChange != Trust, "OnTimelineChange is %d, must be Heal or Trust", cfg.OnTimelineChange)
	fault(cfg.OnNewSystem != Heal && cfg.OnNewSystem != Trust, "OnNewSystem is %d, must be Heal or Trust", cfg.OnNewSystem)
	fault(cfg.Takes != Forced && cfg.Takes != RespectLease, "Takes is %d, must be Forced or RespectLease", cfg.Takes)
	fault(cfg.Lease < time.Second, "Lease is %v, must be at least a second", cfg.Lease)
	fault(cfg.TakeWait < 0, "TakeWait is %v, must be positive", cfg.TakeWait)
	fault(!text(cfg.Address).Storable(), "Address must be UTF-8 without NUL")
	fault(!text(cfg.Realm).Storable(), "Realm must be UTF-8 without NUL")
	fault(cfg.MaxInstances < 0, "MaxInstances is %d, must be positive", cfg.MaxInstances)
	fault(cfg.Audit != AuditLife && cfg.Audit != AuditAll, "Audit is %d, must be AuditLife or AuditAll", cfg.Audit)
	fault(cfg.EncryptionMode < Encrypting || cfg.EncryptionMode > Decrypting, "EncryptionMode is %d, must be Encrypting, Encrypted or Decrypting", cfg.EncryptionMode)
	fault(cfg.EncryptionMode != Encrypting && cfg.Encryption == nil, "EncryptionMode is set, and Encryption is not")
	fault(cfg.HealRate < 0 && cfg.HealRate != -1, "HealRate is %v, must be positive or -1", cfg.HealRate)
	for _, name := range cfg.SynchronousTypes {
		_, known := typesByName[name]
		fault(!known, "SynchronousTypes: %q is no key type", name)
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: config: %w", ErrInvalidInput, errors.Join(faults...))
	}
	return nil
}
