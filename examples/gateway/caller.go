package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// caller uses the API, as other programs would.
type caller struct {
	base string
	key  string
}

func (c *caller) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err == nil && c.key != "" {
		request.Header.Set("Authorization", "Bearer "+c.key)
	}
	return request, err
}

// call calls and decodes the answer; a problem is the error.
func (c *caller) call(ctx context.Context, method, path string, body, into any) error {
	request, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	return c.do(request, into)
}

func (c *caller) do(request *http.Request, into any) error {
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	if response.StatusCode/100 != 2 {
		p := &problem{Title: response.Status, Status: response.StatusCode}
		_ = json.NewDecoder(response.Body).Decode(p)
		return fmt.Errorf("%s %s: %w %s", request.Method, request.URL.Path, p, p.Detail)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(into)
}

// send sends a text from an instance once, however often it has to be asked for.
func (c *caller) send(ctx context.Context, instance, to, text, key string) error {
	for {
		request, err := c.request(ctx, http.MethodPost, "/v1/instances/"+instance+"/messages", map[string]string{"to": to, "text": text})
		if err != nil {
			return err
		}
		request.Header.Set("Idempotency-Key", key)
		err = c.do(request, nil)
		if p := (*problem)(nil); err == nil || ctx.Err() != nil || errors.As(err, &p) && p.Status < 500 && p.Status != http.StatusTooManyRequests && !errors.Is(p, errUnderWay) {
			return err
		}
	}
}

// stream reads server-sent events until each returns false, or the stream ends.
func (c *caller) stream(ctx context.Context, path string, each func(kind string, data []byte) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request, err := c.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %w", path, &problem{Title: response.Status, Status: response.StatusCode})
	}
	var kind string
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			kind = name
		} else if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && !each(kind, []byte(data)) {
			return nil
		}
	}
	return lines.Err()
}
