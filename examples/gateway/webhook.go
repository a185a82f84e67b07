package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Webhooks are jobs of a queue in the database (River): a message is acknowledged to WhatsApp when its job is there, and any process delivers it, again and
// again with growing pauses, for about three weeks. They are signed as Standard Webhooks says, and every one has an id: a receiver that has seen it
// before drops it. They may come in another order than the messages did.
type webhooks struct {
	queue *river.Client[pgx.Tx] // nil: there is nobody to tell
}

// delivery is a job. One message is one job, also if its handler runs again after a hand-over.
type delivery struct {
	ID   string          `json:"id" river:"unique"`
	Body json.RawMessage `json:"body"`
}

// Kind implements [river.JobArgs].
func (delivery) Kind() string { return "webhook" }

const (
	webhookTimeout   = 15 * time.Second
	webhookRetention = time.Hour          // of jobs that are done: as long a message that comes again is known
	webhookGivenUp   = 7 * 24 * time.Hour // of jobs that nobody has taken in three weeks
	webhooksAtOnce   = 20
	jobTimeout       = 2 * webhookTimeout
	jobRescue        = time.Minute     // after that a job is another process's: who had it was killed
	jobsCancelled    = 5 * time.Second // for those that are still under way at the end, and are broken off
)

// quiet is River's logger: what it has to say is in the metrics and in the jobs.
var quiet = slog.New(slog.DiscardHandler)

func newWebhooks(cfg config, pool *pgxpool.Pool, m *metrics, log *slog.Logger) (*webhooks, error) {
	if cfg.webhook == "" {
		return &webhooks{}, nil
	}
	signer, err := standardwebhooks.NewWebhook(cfg.webhookKey)
	if err != nil {
		return nil, fmt.Errorf("-webhook-secret: %w", err)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &deliverer{url: cfg.webhook, signer: signer, metrics: m, log: log, client: &http.Client{
		Timeout:       webhookTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}})
	queue, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema:                      "gateway",
		Queues:                      map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: webhooksAtOnce}},
		Workers:                     workers,
		PollOnly:                    true, // PgBouncer drops notifications; this process is told of its own jobs at once in any case
		CompletedJobRetentionPeriod: webhookRetention,
		DiscardedJobRetentionPeriod: webhookGivenUp,
		JobTimeout:                  jobTimeout,
		RescueStuckJobsAfter:        jobRescue,
		Logger:                      quiet,
	})
	return &webhooks{queue}, err
}

// start lets this process deliver, until stop.
func (h *webhooks) start(ctx context.Context) error {
	if h.queue == nil {
		return nil
	}
	return h.queue.Start(context.WithoutCancel(ctx))
}

// stop waits for deliveries under way until the context ends; the rest is broken off, and another process delivers it.
func (h *webhooks) stop(ctx context.Context) error {
	if h.queue == nil {
		return nil
	}
	if h.queue.Stop(ctx) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), jobsCancelled)
	defer cancel()
	return h.queue.StopAndCancel(ctx)
}

// enqueue notes that a message is to be told of. It returns when that is durable.
func (h *webhooks) enqueue(ctx context.Context, m receivedMessage) error {
	if h.queue == nil {
		return nil
	}
	body, err := json.Marshal(struct {
		Type string          `json:"type"`
		Time time.Time       `json:"timestamp"`
		Data receivedMessage `json:"data"`
	}{"message.received", m.Sent, m})
	if err != nil {
		return err
	}
	id := sha256.Sum256([]byte(m.Instance + "\x00" + m.From + "\x00" + m.ID))
	_, err = h.queue.Insert(ctx, delivery{"msg_" + hex.EncodeToString(id[:16]), body}, &river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}})
	return err
}

// deliverer delivers.
type deliverer struct {
	river.WorkerDefaults[delivery]
	url     string
	signer  *standardwebhooks.Webhook
	client  *http.Client
	metrics *metrics
	log     *slog.Logger
}

// Work implements [river.Worker]. After an error it is called again, later.
func (d *deliverer) Work(ctx context.Context, job *river.Job[delivery]) error {
	now := time.Now()
	signature, err := d.signer.Sign(job.Args.ID, now, job.Args.Body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader(job.Args.Body))
	if err != nil {
		return withoutURL(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(standardwebhooks.HeaderWebhookID, job.Args.ID)
	request.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	request.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	response, err := d.client.Do(request)
	if err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection can be used again
		_ = response.Body.Close()
		if response.StatusCode/100 != 2 {
			err = fmt.Errorf("the receiver answers %s", response.Status)
		}
	}
	if err = withoutURL(err); err != nil {
		d.metrics.webhooks.WithLabelValues("failed").Inc()
		d.log.Warn("webhook not delivered", "id", job.Args.ID, "attempt", job.Attempt, "error", err)
		return err
	}
	d.metrics.webhooks.WithLabelValues("delivered").Inc()
	return nil
}

// withoutURL takes the webhook's URL out of an error: its query may be a secret, and errors are logged and kept with the job.
func withoutURL(err error) error {
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err
	}
	return err
}
