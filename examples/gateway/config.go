package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3"
	waLog "go.mau.fi/whatsmeow/util/log"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
)

// config is all that can be set. The flag -api-key is the environment variable GATEWAY_API_KEY, and so on.
type config struct {
	databaseURL string
	listen      string
	probes      string
	advertise   string
	name        string
	apiKey      string
	secret      string
	webhook     string
	webhookKey  string
	verbose     bool

	lease        time.Duration
	maxInstances int
	wait         time.Duration
	patience     time.Duration
	answer       time.Duration // most that a request may take, the reading of its answer included

	maxBody            int64
	maxMedia           int64
	maxUploads         int
	rate               float64
	maxConns           int
	maxConnsPerAddress int

	demo    bool
	pace    time.Duration
	standIn string
}

// minSecret is how long a key has to be that keeps strangers out.
const minSecret = 16

func parse(args []string) (config, error) {
	fs, cfg := flags()
	if err := ff.Parse(fs, args, ff.WithEnvVarPrefix("GATEWAY")); err != nil {
		return *cfg, err
	}
	if cfg.secret == "" && loopback(cfg.listen) { // who has no key there may do everything anyway, and who has it, too
		derived := sha256.Sum256([]byte("gateway secret " + cfg.apiKey))
		cfg.secret = hex.EncodeToString(derived[:])
	}
	host, _ := os.Hostname()
	cfg.advertise = strings.TrimRight(cfg.advertise, "/") // paths are appended
	cfg.answer = cfg.wait + time.Minute
	cfg.name = cmp.Or(cfg.name, fmt.Sprintf("%s %d", host, os.Getpid()))
	return *cfg, cfg.check()
}

func flags() (*flag.FlagSet, *config) {
	cfg := &config{}
	fs := flag.NewFlagSet("gateway", flag.ContinueOnError)
	fs.StringVar(&cfg.databaseURL, "database-url", "", "PostgreSQL, directly or through PgBouncer")
	fs.StringVar(&cfg.listen, "listen", "127.0.0.1:8080", "address to listen on; put TLS in front of any but loopback")
	fs.StringVar(&cfg.probes, "probe-listen", "", "address for /healthz and /readyz alone, where no caller can use up the connections (default: none)")
	fs.StringVar(&cfg.advertise, "advertise", "", "URL at which the other processes reach this one (default: what it listens on)")
	fs.StringVar(&cfg.name, "name", "", "what people call this process (default: host name and process id)")
	fs.StringVar(&cfg.apiKey, "api-key", "", "what callers have to send as Authorization: Bearer …; needed unless it listens on loopback")
	fs.StringVar(&cfg.secret, "secret", "", "what the processes know each other by, the same for all; needed unless it listens on loopback")
	fs.StringVar(&cfg.webhook, "webhook", "", "URL that every incoming message is posted to")
	fs.StringVar(&cfg.webhookKey, "webhook-secret", "", "signs the webhooks: whsec_… (Standard Webhooks)")
	fs.BoolVar(&cfg.verbose, "verbose", false, "log what the clients have to say, too")

	fs.DurationVar(&cfg.lease, "lease", pgstore.DefaultLease, "how long after its last sign of life a process counts as dead")
	fs.IntVar(&cfg.maxInstances, "max-instances", 0, "most instances of this process; 0 is no limit")
	fs.DurationVar(&cfg.wait, "wait", 20*time.Second, "how long a request waits for an instance that is being handed over")
	fs.DurationVar(&cfg.patience, "patience", 20*time.Second, "how long the end waits for requests and webhooks under way, once all is handed over")

	fs.Int64Var(&cfg.maxBody, "max-body", 64<<10, "most bytes of a request")
	fs.Int64Var(&cfg.maxMedia, "max-media", 16<<20, "most bytes of an attachment")
	fs.Float64Var(&cfg.rate, "rate", 100, "most requests a second of all callers together; a burst may be five times as many")
	fs.IntVar(&cfg.maxUploads, "max-uploads", 8, "most attachments at once, each of which is in memory")
	fs.IntVar(&cfg.maxConns, "max-connections", 4096, "most connections at once")
	fs.IntVar(&cfg.maxConnsPerAddress, "max-connections-per-address", 1024, "most connections at once from one address")

	fs.BoolVar(&cfg.demo, "demo", false, "show it all on a stand-in for WhatsApp's servers")
	fs.DurationVar(&cfg.pace, "demo-pace", 8*time.Second, "with -demo: from the end of one process to that of the next; 0 is never")
	fs.StringVar(&cfg.standIn, "demo-endpoint", "", "with -demo: be one of its processes, on this server")
	return fs, cfg
}

// check refuses what would be unsafe or cannot work, all of it at once.
func (cfg *config) check() error {
	var errs []error
	if cfg.databaseURL == "" && !cfg.demo {
		errs = append(errs, errors.New("set -database-url or GATEWAY_DATABASE_URL to a PostgreSQL, or use -demo"))
	}
	if !loopback(cfg.listen) {
		if cfg.apiKey == "" || cfg.secret == "" {
			errs = append(errs, fmt.Errorf("%s is not loopback: set -api-key and -secret", cfg.listen))
		}
		if host, _, err := net.SplitHostPort(cfg.listen); cfg.advertise == "" && (err != nil || host == "" || net.ParseIP(host).IsUnspecified()) {
			errs = append(errs, fmt.Errorf("%s is every address: set -advertise to the one that the other processes reach", cfg.listen))
		}
	}
	if u, err := url.Parse(cfg.advertise); cfg.apiKey == "" && cfg.advertise != "" && err == nil && !loopback(withPort(u.Host)) {
		errs = append(errs, errors.New("-advertise is not loopback: set -api-key")) // without one, only requests for loopback are answered
	}
	for name, secret := range map[string]string{"-api-key": cfg.apiKey, "-secret": cfg.secret} {
		if secret != "" && len(secret) < minSecret {
			errs = append(errs, fmt.Errorf("%s must have at least %d characters", name, minSecret))
		}
	}
	for name, text := range map[string]string{"-advertise": cfg.advertise, "-webhook": cfg.webhook} {
		if u, err := url.Parse(text); text != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			errs = append(errs, fmt.Errorf("%s must be an http or https URL", name))
		}
	}
	if (cfg.webhook == "") != (cfg.webhookKey == "") {
		errs = append(errs, errors.New("-webhook and -webhook-secret belong together"))
	}
	return errors.Join(errs...)
}

// loopback says whether only this machine can reach an address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

func (cfg *config) logger(to io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if cfg.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: level})).With("process", cfg.name)
}

// clientLog lets whatsmeow log to slog: what it tells is for debugging, what it warns of is told.
type clientLog struct{ log *slog.Logger }

func (l clientLog) Debugf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l clientLog) Infof(format string, args ...any)  { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l clientLog) Warnf(format string, args ...any)  { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l clientLog) Errorf(format string, args ...any) { l.log.Warn(fmt.Sprintf(format, args...)) }
func (l clientLog) Sub(module string) waLog.Logger    { return clientLog{l.log.With("module", module)} }
