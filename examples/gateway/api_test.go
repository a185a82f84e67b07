package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/waserver"
)

func TestTheDocumentHasEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	require.NoError(t, err)
	documented := make(map[string]bool)
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			documented[method+" "+path] = operation.Security != nil && len(*operation.Security) == 0
		}
	}
	served := make(map[string]bool)
	for _, route := range (&gateway{metrics: &metrics{}}).routes() {
		_, path, _ := strings.Cut(route.pattern, " ")
		if !strings.HasPrefix(path, "/internal/") && !strings.HasPrefix(path, "/page.") && path != "/{$}" {
			served[route.pattern] = route.public
		}
	}
	require.Equal(t, documented, served, "with those that are public")
}

func TestAnyProcessAnswersAnyRequest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	c := b.cluster()
	one, two := b.process(c), b.process(c)

	one.ask(t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": "support"}, nil)
	two.problem(t, errExists, http.MethodPost, "/v1/instances", texting{"id": "support"})
	two.problem(t, errInvalid, http.MethodPost, "/v1/instances", texting{"id": "a/b"})
	two.problem(t, errInvalid, http.MethodPost, "/v1/instances", texting{"ID": "x", "other": "y"})
	two.problem(t, errUnknown, http.MethodGet, "/v1/instances/nobody", nil)
	two.problem(t, errNotPaired, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+4915112345678", "text": "hello"})
	require.Equal(t, "new", two.instance(t, "support").State)

	n := b.scan(two, "support") // whose codes the other one shows
	require.Equal(t, one.name, two.instance(t, "support").Owner)
	two.problem(t, errPaired, http.MethodGet, "/v1/instances/support/pair", nil)

	// What is written comes in, at whichever process one looks on; what is sent arrives.
	seen := make(chan string, 100)
	ctx := within(t)
	go func() {
		_ = two.stream(ctx, "/v1/instances/support/events", func(kind string, data []byte) bool {
			var event struct{ Data receivedMessage }
			if kind == "message" && json.Unmarshal(data, &event) == nil {
				seen <- event.Data.Text
			}
			return true
		})
	}()
	_, err := n.contact.SendText(n.account.LID(), "are you there?")
	require.NoError(t, err)
	require.Equal(t, "are you there?", <-seen)
	for _, g := range []*runningGateway{one, two} {
		var sent sentMessage
		g.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+" + n.contact.PN().User, "text": "from " + g.name}, &sent)
		got, err := n.contact.WaitReceived(ctx, waserver.Text("from "+g.name))
		require.NoError(t, err)
		require.Equal(t, sent.ID, got.ID)
		require.Equal(t, "you said: from "+g.name, <-seen)
	}
	r := two.try(t, http.MethodPost, "/v1/instances/support/media?caption=look&to="+n.contact.LID().String(), "image/png", []byte("a picture"))
	require.Equal(t, http.StatusOK, r.status, "%s", r.body)
	got, err := n.contact.WaitReceived(ctx, func(r waserver.Received) bool { return r.Message.GetImageMessage() != nil })
	require.NoError(t, err)
	require.Equal(t, "look", got.Message.GetImageMessage().GetCaption())
	two.problem(t, errInvalid, http.MethodPost, "/v1/instances/support/messages", texting{"to": "somebody", "text": "hello"})
	two.problem(t, errInvalid, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+4915112345678", "text": ""})

	// It is moved, restarted, unlinked, and linked again.
	var moved instanceInfo
	two.problem(t, errNoTarget, http.MethodPost, "/v1/instances/support/move", texting{"to": "three"})
	two.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/move", texting{"to": two.name}, &moved)
	require.Equal(t, two.name, moved.Owner)
	b.connected(one, "support")
	one.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/messages", texting{"to": "+" + n.contact.PN().User, "text": "moved"}, nil)
	_, err = n.contact.WaitReceived(ctx, waserver.Text("moved"))
	require.NoError(t, err)
	logins := n.linked.Logins()
	one.ask(t, http.StatusAccepted, http.MethodPost, "/v1/instances/support/restart", nil, nil)
	require.NoError(t, b.server.Wait(ctx, func() bool { return n.linked.Logins() > logins }))
	b.connected(one, "support")
	one.ask(t, http.StatusOK, http.MethodPost, "/v1/instances/support/logout", nil, nil)
	require.Equal(t, 1, b.server.Stats().Unlinked)
	require.Eventually(t, func() bool { // a directory that was not reached is told later
		out := two.instance(t, "support")
		return out.State == "logged_out" && out.JID == ""
	}, atMost, 20*time.Millisecond)
	one.problem(t, errNotPaired, http.MethodPost, "/v1/instances/support/restart", nil)
	b.scan(one, "support")
	require.EqualValues(t, 2, two.instance(t, "support").Codes)

	// The lists are the same everywhere.
	one.ask(t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": "another"}, nil)
	var list struct{ Instances []instanceInfo }
	two.ask(t, http.StatusOK, http.MethodGet, "/v1/instances", nil, &list)
	require.Len(t, list.Instances, 2)
	var processes struct {
		Processes []process
		By        string `json:"answered_by"`
	}
	two.ask(t, http.StatusOK, http.MethodGet, "/v1/processes", nil, &processes)
	require.Len(t, processes.Processes, 2)
	require.Equal(t, two.name, processes.By)
	exported := one.ask(t, http.StatusOK, http.MethodGet, "/v1/export", nil, nil)
	require.Equal(t, 2, bytes.Count(exported.body, []byte("\n")))
	exported = one.ask(t, http.StatusOK, http.MethodGet, "/v1/export?format=csv", nil, nil)
	rows, err := csv.NewReader(bytes.NewReader(exported.body)).ReadAll()
	require.NoError(t, err)
	require.Equal(t, []string{"id", "another", "support"}, []string{rows[0][0], rows[1][0], rows[2][0]})
	one.problem(t, errInvalid, http.MethodGet, "/v1/export?format=xml", nil)
	require.Contains(t, string(two.ask(t, http.StatusOK, http.MethodGet, "/metrics", nil, nil).body), `pgstore_flush_duration_seconds_count{result="ok"}`)
	two.ask(t, http.StatusOK, http.MethodGet, "/healthz", nil, nil)
	two.ask(t, http.StatusOK, http.MethodGet, "/readyz", nil, nil)
	two.ask(t, http.StatusOK, http.MethodGet, "/openapi.yaml", nil, nil)

	for _, id := range []string{"another", "support"} {
		two.ask(t, http.StatusNoContent, http.MethodDelete, "/v1/instances/"+id, nil, nil)
		one.problem(t, errUnknown, http.MethodDelete, "/v1/instances/"+id, nil)
	}
	require.Equal(t, 2, b.server.Stats().Unlinked)
	require.Empty(t, b.server.Record().Reused())
}

func TestACodeThatIsTypedInLinks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	g := b.gateway("one")
	account := b.server.NewAccount("")
	g.ask(t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": "typed"}, nil)
	var entering sync.WaitGroup
	var last string
	require.NoError(t, g.stream(within(t), "/v1/instances/typed/pair?phone="+account.PN().User, func(kind string, data []byte) bool {
		var event struct{ Data linkCode }
		if kind == "code" && json.Unmarshal(data, &event) == nil {
			entering.Go(func() {
				_, err := account.EnterCode(within(t), event.Data.Code)
				require.NoError(t, err)
			})
		}
		last = kind
		return true
	}))
	entering.Wait()
	require.Equal(t, "paired", last)
	b.connected(g, "typed")
	require.Equal(t, 1, b.server.Stats().CodesEntered)
}

func TestAnotherProcessShowsTheCodesWhenOneLeaves(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := b.gateway("one"), b.gateway("two")
	one.ask(t, http.StatusCreated, http.MethodPost, "/v1/instances", texting{"id": "support"}, nil)
	shown := 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = two.stream(within(t), "/v1/instances/support/pair", func(kind string, _ []byte) bool {
			if kind == "qr" {
				shown++
				go one.stop()
			}
			return true
		})
	}()
	<-ended // the stream ends with the process, which waits for nobody to scan
	require.Equal(t, 1, shown)
	one.stop()
	require.Equal(t, "new", two.instance(t, "support").State)
	b.scan(two, "support")
	require.Equal(t, "two", two.instance(t, "support").Owner)
	require.EqualValues(t, 2, two.instance(t, "support").Codes)
}

func TestASendWithAKeyHappensOnceWhateverProcessIsAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	one, two := b.gateway("one"), b.gateway("two")
	n := b.linked(one, "support")
	path, to := "/v1/instances/support/messages", "+"+n.contact.PN().User
	key := []string{"Idempotency-Key", "order 7"}

	var first, second, third sentMessage
	require.Empty(t, one.ask(t, http.StatusOK, http.MethodPost, path, texting{"to": to, "text": "once"}, &first, key...).header.Get("Idempotent-Replayed"))
	require.Equal(t, "true", two.ask(t, http.StatusOK, http.MethodPost, path, texting{"to": to, "text": "once"}, &second, key...).header.Get("Idempotent-Replayed"))
	require.Equal(t, first.ID, second.ID)
	two.problem(t, errReused, http.MethodPost, path, texting{"to": to, "text": "twice"}, key...)

	one.stop() // the other process has it from now on, and knows
	b.connected(two, "support")
	require.Equal(t, "true", two.ask(t, http.StatusOK, http.MethodPost, path, texting{"to": to, "text": "once"}, &third, key...).header.Get("Idempotent-Replayed"))
	require.Equal(t, first.ID, third.ID)

	// Many at once: one of them sends, the others are told that it is under way, or what came of it.
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() { require.NoError(t, two.send(within(t), "support", to, "at once", "order 8")) })
	}
	asking.Wait()

	// A process that died before it could note the answer: the message goes out again under the same id.
	pool, err := openPool(t.Context(), b.dsn, nil)
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(t.Context(), `UPDATE gateway.sends SET sent_at = NULL WHERE key = 'order 7'`)
	require.NoError(t, err)
	two.ask(t, http.StatusOK, http.MethodPost, path, texting{"to": to, "text": "once"}, &third, key...)
	require.Equal(t, first.ID, third.ID)
	require.NoError(t, b.server.WaitIdle(within(t)))
	ids := make(map[string][]string)
	for _, r := range n.contact.Received() {
		ids[r.Text] = append(ids[r.Text], r.ID)
	}
	for text, all := range ids { // one that was not answered in time goes out again, too
		ids[text] = slices.Compact(all)
	}
	require.Equal(t, map[string][]string{"once": {first.ID}, "at once": ids["at once"]}, ids)
	require.Len(t, ids["at once"], 1)

	// A key is good for a day.
	_, err = pool.Exec(t.Context(), `UPDATE gateway.sends SET created_at = now() - interval '25 hours' WHERE key = 'order 7'`)
	require.NoError(t, err)
	require.NoError(t, (&directory{pool: pool}).sweep(t.Context()))
	two.ask(t, http.StatusOK, http.MethodPost, path, texting{"to": to, "text": "once"}, &third, key...)
	require.NotEqual(t, first.ID, third.ID)
}

func TestEveryMessageIsToldUntilItIsTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.hooks.refuse = 1
	g := b.gateway("one")
	n := b.linked(g, "support")
	_, err := n.contact.SendText(n.account.LID(), "hello")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.hooks.told("support", "hello") == 1 }, atMost, 10*time.Millisecond)
	require.Equal(t, 2, b.hooks.all)
	require.Zero(t, b.hooks.bad, "signatures")
	metrics := string(g.ask(t, http.StatusOK, http.MethodGet, "/metrics", nil, nil).body)
	require.Contains(t, metrics, `gateway_webhooks_total{result="failed"} 1`)
	require.Contains(t, metrics, `gateway_messages_received_total 1`)
}
