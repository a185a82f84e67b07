package main

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.mau.fi/whatsmeow"
	"go.mau.fi/whatsmeow/proto/waE2E"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore/health"
)

//go:embed page
var pageFiles embed.FS

//go:embed openapi.yaml
var openAPI []byte

// handler answers, or returns a problem.
type handler func(w http.ResponseWriter, r *http.Request) error

// local is a handler at the process that has the instance. In is nil if the instance is not linked and no process shows its codes.
type local func(w http.ResponseWriter, r *http.Request, in *instance) error

// route is a line of the API.
type route struct {
	pattern string
	public  bool // needs no key
	handle  handler
}

// routes is the whole API; openapi.yaml says what it means.
func (g *gateway) routes() []route {
	static, _ := fs.Sub(pageFiles, "page")
	page := http.FileServerFS(static)
	return []route{
		{"GET /v1/instances", false, g.list},
		{"POST /v1/instances", false, g.create},
		{"GET /v1/instances/{id}", false, g.show},
		{"DELETE /v1/instances/{id}", false, g.atOwner(g.remove)},
		{"GET /v1/instances/{id}/pair", false, g.atOwner(g.servePairing)},
		{"GET /v1/instances/{id}/events", false, g.atOwner(g.watch)},
		{"POST /v1/instances/{id}/messages", false, g.atOwner(g.sendText)},
		{"POST /v1/instances/{id}/media", false, g.atOwner(g.sendMedia)},
		{"POST /v1/instances/{id}/restart", false, g.atOwner(g.restart)},
		{"POST /v1/instances/{id}/logout", false, g.atOwner(g.logout)},
		{"POST /v1/instances/{id}/move", false, g.atOwner(g.moveAway)},
		{"GET /v1/processes", false, g.listProcesses},
		{"GET /v1/export", false, g.export},
		{"GET /metrics", false, plain(promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{}))},
		{"GET /healthz", true, plain(health.Live(&g.probed))},
		{"GET /readyz", true, plain(health.Ready(&g.probed))},
		{"GET /openapi.yaml", true, func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Type", "application/yaml")
			_, err := w.Write(openAPI)
			return err
		}},
		{"GET /{$}", true, plain(page)},
		{"GET /page.js", true, plain(page)},
		{"GET /page.css", true, plain(page)},
		{"POST " + takePath + "{id}", false, g.takeAsked}, // for the other processes alone
	}
}

func plain(h http.Handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

func answer(w http.ResponseWriter, status int, what any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(what)
}

// read reads a JSON object, and nothing besides; an empty body is an empty object.
func read(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return tooLarge(err, errInvalid.because("the body is not the JSON object that is expected here"))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return tooLarge(err, errInvalid.because("there is something after the JSON object"))
	}
	return nil
}

// tooLarge says so if that is why something could not be read.
func tooLarge(err error, otherwise error) error {
	if limit := (*http.MaxBytesError)(nil); errors.As(err, &limit) {
		return errTooLarge.because("the limit is " + strconv.FormatInt(limit.Limit, 10) + " bytes")
	}
	return otherwise
}

func (g *gateway) list(w http.ResponseWriter, r *http.Request) error {
	all, err := g.dir.list(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"instances": all})
}

func (g *gateway) listProcesses(w http.ResponseWriter, r *http.Request) error {
	all, err := g.dir.processes(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"processes": all, "answered_by": g.cfg.name})
}

// instanceName is what an instance may be called: in paths, in tables and in spreadsheets it means nothing else.
var instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (g *gateway) create(w http.ResponseWriter, r *http.Request) error {
	var wanted struct {
		ID string `json:"id"`
	}
	if err := read(r, &wanted); err != nil {
		return err
	}
	if !instanceName.MatchString(wanted.ID) {
		return errInvalid.because("id must be 1 to 64 letters, digits, dots, dashes and underscores, and begin with a letter or digit")
	}
	if err := g.dir.create(r.Context(), wanted.ID); err != nil {
		return err
	}
	info, err := g.dir.find(r.Context(), wanted.ID)
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/instances/"+wanted.ID)
	return answer(w, http.StatusCreated, info)
}

func (g *gateway) show(w http.ResponseWriter, r *http.Request) error {
	info, err := g.dir.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, info)
}

// export is the status of all instances as a file.
func (g *gateway) export(w http.ResponseWriter, r *http.Request) error {
	all, err := g.dir.list(r.Context())
	if err != nil {
		return err
	}
	switch format := cmp.Or(r.URL.Query().Get("format"), "jsonl"); format {
	case "jsonl":
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.Header().Set("Content-Disposition", `attachment; filename="instances.jsonl"`)
		lines := json.NewEncoder(w)
		for _, i := range all {
			if err = lines.Encode(i); err != nil {
				return err
			}
		}
		return nil
	case "csv":
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		w.Header().Set("Content-Disposition", `attachment; filename="instances.csv"`)
		lines := csv.NewWriter(w)
		_ = lines.Write([]string{"id", "jid", "state", "owner", "codes", "received", "sent", "active_at", "created_at"})
		for _, i := range all {
			_ = lines.Write([]string{
				i.ID, i.JID, i.State, i.Owner, strconv.FormatInt(i.Codes, 10), strconv.FormatInt(i.Received, 10), strconv.FormatInt(i.Sent, 10),
				moment(i.Active), moment(i.Created),
			})
		}
		lines.Flush()
		return lines.Error()
	default:
		return errInvalid.because("format must be jsonl or csv")
	}
}

func moment(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// watch is the live log of an instance: what was kept, and then what happens.
func (g *gateway) watch(w http.ResponseWriter, r *http.Request, in *instance) error {
	if in == nil {
		return errNotPaired
	}
	g.serveStream(w, r, in.log, func(*eventWriter, happening) bool { return false })
	return nil
}

// sentMessage is the answer to a send.
type sentMessage struct {
	ID   types.MessageID `json:"id"`
	Sent time.Time       `json:"sent_at"`
}

func (g *gateway) sendText(w http.ResponseWriter, r *http.Request, in *instance) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var wanted struct {
		To   string `json:"to"`
		Text string `json:"text"`
	}
	if err = read(r, &wanted); err != nil {
		return err
	}
	if wanted.Text == "" {
		return errInvalid.because("text must not be empty")
	}
	return g.sendOnce(w, r, in, wanted.To, body, func(context.Context, *whatsmeow.Client) (*waE2E.Message, error) {
		return &waE2E.Message{Conversation: &wanted.Text}, nil
	})
}

func (g *gateway) sendMedia(w http.ResponseWriter, r *http.Request, in *instance) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return errInvalid.because("the body must be the attachment")
	}
	query := r.URL.Query()
	file := attachment{content: body, mimeType: r.Header.Get("Content-Type"), name: query.Get("filename"), caption: query.Get("caption")}
	return g.sendOnce(w, r, in, query.Get("to"), body, file.upload)
}

// sendOnce sends a message; with an idempotency key, once.
func (g *gateway) sendOnce(w http.ResponseWriter, r *http.Request, in *instance, to string, body []byte, message func(context.Context, *whatsmeow.Client) (*waE2E.Message, error)) error {
	if in == nil {
		return errNotPaired
	}
	jid, err := recipient(to)
	if err != nil {
		return err
	}
	id := in.client.GenerateMessageID()
	var once *idempotent
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		if len(key) > maxKey {
			return errInvalid.because("Idempotency-Key is too long")
		}
		if _, under := g.answers.LoadOrStore(in.id+" "+key, true); under {
			return errUnderWay
		}
		defer g.answers.Delete(in.id + " " + key)
		if once, err = g.dir.begin(r.Context(), in.id, key, id, fingerprint(r, body)); err != nil {
			return err
		}
		if once.sent != nil {
			w.Header().Set("Idempotent-Replayed", "true")
			return answer(w, http.StatusOK, sentMessage{once.id, once.sent.UTC()})
		}
		id = once.id
	}
	var msg *waE2E.Message
	var resp whatsmeow.SendResponse
	err = in.use(r.Context(), func(ctx context.Context) error {
		if msg, err = in.prepare(ctx, message); err == nil {
			resp, err = in.send(ctx, jid, msg, id)
		}
		return err
	})
	if err != nil {
		return notSent(err)
	}
	if once != nil {
		if err = once.done(r.Context(), resp.Timestamp); err != nil {
			g.log.Warn("answer not noted", "instance", in.id, "error", err)
		}
	}
	in.log.publish("sent", map[string]string{"id": id, "to": jid.String(), "text": msg.GetConversation()})
	return answer(w, http.StatusOK, sentMessage{id, resp.Timestamp.UTC()})
}

// notSent says what has become of a message.
func notSent(err error) error {
	var p *problem
	if errors.As(err, &p) {
		return err
	}
	return errNotSent.because(err.Error())
}

// restart connects the client anew.
func (g *gateway) restart(w http.ResponseWriter, _ *http.Request, in *instance) error {
	if in == nil {
		return errNotPaired
	} else if err := in.here(); err != nil {
		return err
	}
	in.reconnect()
	return answer(w, http.StatusAccepted, state{"connecting", ""})
}

// logout unlinks the instance from its phone. Its name stays.
func (g *gateway) logout(w http.ResponseWriter, r *http.Request, in *instance) error {
	if in == nil {
		return errNotPaired
	}
	if err := in.unlink(r.Context()); err != nil {
		return err
	}
	in.set("logged_out", "")
	if err := g.leave(r.Context(), in, nothingLeft); err != nil {
		return err
	}
	return answer(w, http.StatusOK, state{"logged_out", ""})
}

// remove unlinks the instance, if it can be reached, deletes its keys, and forgets its name. What cannot be deleted at the moment is deleted later.
func (g *gateway) remove(w http.ResponseWriter, r *http.Request, in *instance) error {
	id := r.PathValue("id")
	forget := func(ctx context.Context) error { return g.dir.remove(ctx, id) }
	if in != nil {
		err := in.unlink(r.Context())
		if errors.Is(err, errElsewhere) {
			return err
		}
		unlinked := err == nil || !in.linked.Load()
		if !unlinked { // the phone goes on listing it until it is unlinked there
			g.log.Warn("instance is deleted, but not unlinked", "instance", in.id, "error", err)
		}
		err = g.leave(r.Context(), in, func(ctx context.Context) error {
			if !unlinked {
				if err := in.client.Store.Delete(ctx); err != nil {
					return err
				}
			}
			return forget(ctx)
		})
		if err != nil {
			return err
		}
	} else if err := forget(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (g *gateway) moveAway(w http.ResponseWriter, r *http.Request, in *instance) error {
	var wanted struct {
		To string `json:"to"`
	}
	if err := read(r, &wanted); err != nil {
		return err
	}
	if in == nil {
		return errNotPaired
	} else if err := in.here(); err != nil {
		return err
	}
	if err := g.move(r.Context(), in, wanted.To); err != nil {
		return err
	}
	info, err := g.dir.find(r.Context(), in.id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, info)
}
