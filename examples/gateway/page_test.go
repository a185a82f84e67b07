package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/wataki/whatsmeow-pgstore/internal/pgtest"
)

var screenshots = flag.String("gateway.screenshots", os.Getenv("PGSTORE_TEST_SCREENSHOTS"), "a directory for screenshots of the page")

// browser is a real one, with a page on it.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu    sync.Mutex
	wrong []string // what the browser complains of
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	found := false
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"} {
		_, err := exec.LookPath(name)
		found = found || err == nil
	}
	if !found {
		pgtest.Missing(t, "a Chromium or Chrome")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.WindowSize(1280, 860), chromedp.WSURLReadTimeout(atMost))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it refuses to be root otherwise
	}
	allocated, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancelPage := chromedp.NewContext(allocated)
	t.Cleanup(cancelPage)
	b := &browser{t: t, ctx: ctx}
	require.NoError(t, chromedp.Do(ctx)) // starts it
	console := chromedp.Console(ctx)
	go func() { // ends with the browser
		for message, err := range console {
			if err != nil {
				return
			}
			if message.Source != "network" { // an answer that is a problem is none of the page's
				b.mu.Lock()
				b.wrong = append(b.wrong, message.String())
				b.mu.Unlock()
			}
		}
	}()
	return b
}

// run runs an action on the page.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, atMost)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.body.innerText`))
		require.NoError(b.t, err, "the page says: %s", text)
	}
	return value
}

func (b *browser) open(address string) {
	b.t.Helper()
	run(b, chromedp.Navigate(address))
}

func (b *browser) focus(selector string) {
	b.t.Helper()
	run(b, chromedp.Focus(chromedp.CSS(selector)))
}

func (b *browser) press(keys string) {
	b.t.Helper()
	run(b, chromedp.KeyEvent(keys))
}

// says waits until an element says something.
func (b *browser) says(selector, pattern string) {
	b.t.Helper()
	b.is(fmt.Sprintf(`new RegExp(%q).test(document.querySelector(%q)?.innerText ?? "")`, pattern, selector))
}

// is waits until an expression is true.
func (b *browser) is(expression string) {
	b.t.Helper()
	run(b, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(atMost)))
}

func (b *browser) value(expression string) string {
	b.t.Helper()
	return run(b, chromedp.Evaluate[string](expression))
}

func (b *browser) screenshot(name string) {
	b.t.Helper()
	if *screenshots == "" {
		return
	}
	var picture []byte
	run(b, chromedp.Func(func(ctx context.Context, on *chromedp.Target) error {
		taken, err := cdp.Call(ctx, on, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatWebp, Quality: new(int64(85))})
		picture = taken.Data
		return err
	}))
	require.NoError(b.t, os.MkdirAll(*screenshots, 0o755))
	require.NoError(b.t, os.WriteFile(filepath.Join(*screenshots, name+".webp"), picture, 0o644))
}

// demonstration is the demo as people start it, but for the processes that come to their end: those the test chooses.
type demonstration struct {
	cmd  *exec.Cmd
	page string
	pids map[string]int
	done chan struct{}

	mu   sync.Mutex
	text strings.Builder
}

// said is what it has said so far.
func (d *demonstration) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

func startDemo(t *testing.T, flags ...string) *demonstration {
	t.Helper()
	d := &demonstration{cmd: exec.Command(program(t), append([]string{"-demo", "-listen", "127.0.0.1:0"}, flags...)...), pids: make(map[string]int), done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), "DATABASE_URL="+pgtest.Open(t), "PGSTORE_TEST_DSN=")
	d.cmd.Stderr = os.Stderr
	out, err := d.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, d.cmd.Start())
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	started := regexp.MustCompile(`^(gateway-\d+) is there, as process (\d+)\.$`)
	page := regexp.MustCompile(`^The page is at (\S+) `)
	lines := bufio.NewScanner(out)
	for d.page == "" && lines.Scan() {
		d.text.WriteString(lines.Text() + "\n")
		if found := started.FindStringSubmatch(lines.Text()); found != nil {
			d.pids[found[1]], _ = strconv.Atoi(found[2])
		}
		if found := page.FindStringSubmatch(lines.Text()); found != nil {
			d.page = found[1]
		}
	}
	require.NotEmpty(t, d.page, d.said())
	go func() {
		defer close(d.done)
		for lines.Scan() {
			d.mu.Lock()
			d.text.WriteString(lines.Text() + "\n")
			d.mu.Unlock()
		}
	}()
	return d
}

// over says whether it has ended by itself.
func (d *demonstration) over() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// end is Ctrl-C. It returns what was said.
func (d *demonstration) end(t *testing.T) string {
	t.Helper()
	require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
	<-d.done
	require.NoError(t, d.cmd.Wait(), d.said())
	return d.said()
}

func TestAPersonUsesThePageWhileAProcessIsKilled(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "-demo-pace", "0")
	b := newBrowser(t)

	// Messages flow.
	b.open(d.page)
	b.says("#totals", `20 instances · 20 QR codes · [1-9]\d* received · [1-9]\d* sent`)
	b.says("#processes", `gateway-1: \d[^]*gateway-2: \d[^]*gateway-3: \d`)

	// With the keyboard alone: an instance is created, and its code is shown; a phone scans it.
	b.focus("#new-id")
	b.press("shop" + kb.Enter)
	b.is(`document.activeElement.id === "name"`)
	b.is(`document.querySelector("#qr img").naturalWidth > 100`)
	b.screenshot("qr")
	b.is(`document.querySelector("#qr").hidden`)
	b.says("#facts", `State\s+connected`)
	b.says("#totals", `21 instances · 21 QR codes`)

	// Its contact is in the demo's log of people; whoever writes to it shows in the live log, and what is sent is answered.
	b.says("#log", `← Contact of shop: message \d+`)
	contact := b.contactOf("shop")
	b.focus("#to")
	b.press(contact + kb.Tab + "is this a page?" + kb.Tab + kb.Enter)
	b.says("#sent", "Sent")
	b.says("#log", `→ \d+@s.whatsapp.net: is this a page\?`)
	b.says("#log", `← Contact of shop: you said: is this a page\?`)
	b.screenshot("log")

	// It is moved to another process, and goes on.
	owner := b.fact("Owner")
	b.is(fmt.Sprintf(`[...document.querySelector("#target").options].some((o) => o.value !== %q)`, owner))
	run(b, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector("#target").value = [...document.querySelector("#target").options].find((o) => o.value !== %q).value`, owner)))
	target := b.value(`document.querySelector("#target").value`)
	require.NotEqual(t, owner, target)
	run(b, chromedp.Click(chromedp.CSS(`[data-action="move"]`)))
	b.says("#facts", `State\s+connected[^]*Owner\s+`+target)
	b.focus("#text")
	b.press("still there?" + kb.Tab + kb.Enter)
	b.says("#log", `you said: still there\?`)

	// The process that has it now is killed: it is seen elsewhere, and nobody has scanned anything.
	victim, err := os.FindProcess(d.pids[target])
	require.NoError(t, err)
	require.NoError(t, victim.Kill())
	b.is(fmt.Sprintf(`/State\s+connected/.test(document.querySelector("#facts").innerText) && !document.querySelector("#facts").innerText.includes(%q)`, target))
	b.says("#processes", `gateway-\d: 1\d[^]*gateway-\d: 1\d`)
	b.says("#totals", `21 instances · 21 QR codes`)
	b.focus("#text")
	b.press("and now?" + kb.Tab + kb.Enter)
	b.says("#log", `you said: and now\?`)

	// Up and down go through the list, and the focus stays in spite of what changes.
	b.focus("#list button")
	b.press(kb.ArrowDown + kb.ArrowDown + kb.ArrowUp + kb.Enter)
	b.says("#name", "number-02")
	b.focus(`#list li[data-id="shop"] button`)
	b.press(kb.Enter)
	b.says("#name", "shop")

	// The status of all instances is a file, in two forms.
	downloads := t.TempDir()
	run(b, chromedp.Func(func(ctx context.Context, on *chromedp.Target) error {
		_, err := cdp.Call(ctx, on, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{
			Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: downloads,
		})
		return err
	}))
	download := func(name, button string) []byte {
		run(b, chromedp.Click(chromedp.CSS(button)))
		path := filepath.Join(downloads, name)
		require.Eventually(t, func() bool { return pathExists(path) }, atMost, 50*time.Millisecond, name)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		return content
	}
	rows, err := csv.NewReader(bytes.NewReader(download("instances.csv", `[data-export="csv"]`))).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 1+21)
	require.Equal(t, "shop", rows[21][0])
	lines := bytes.Split(bytes.TrimSpace(download("instances.jsonl", `[data-export="jsonl"]`)), []byte("\n"))
	require.Len(t, lines, 21)
	var shop instanceInfo
	require.NoError(t, json.Unmarshal(lines[20], &shop))
	require.Equal(t, "shop", shop.ID)
	require.Equal(t, rows[21][1], shop.JID)

	// It is restarted: its client connects anew.
	run(b, chromedp.Click(chromedp.CSS(`[data-action="restart"]`)))
	b.says("#log", `connecting restarted[^]*connected`)
	b.says("#facts", `State\s+connected`)

	// It is logged out, after a question, and linked again with a new code.
	b.focus(`[data-action="logout"]`)
	b.press(kb.Enter)
	b.is(`document.querySelector("#confirm").open && document.activeElement.value === "no"`)
	b.press(kb.Enter)
	b.is(`!document.querySelector("#confirm").open`)
	b.says("#facts", `State\s+connected`) // no is no
	b.focus(`[data-action="logout"]`)
	b.press(kb.Enter)
	b.focus(`#confirm [value="yes"]`)
	b.press(kb.Enter)
	b.says("#facts", `State\s+logged out`)
	b.is(`document.querySelector("#send").hidden && document.querySelector("[data-action=restart]").hidden`)
	run(b, chromedp.Click(chromedp.CSS(`[data-action="pair"]`)))
	b.is(`document.querySelector("#qr img").naturalWidth > 100`)
	b.is(`document.querySelector("#qr").hidden`)
	b.says("#facts", `State\s+connected`)
	b.says("#totals", `21 instances · 22 QR codes`)
	b.says("#log", `← Contact of shop: message \d+`)

	// On a phone, in dark mode: nothing is cut off.
	light := b.value(`getComputedStyle(document.body).backgroundColor`)
	run(b, chromedp.EmulateViewport(390, 844))
	run(b, chromedp.Func(func(ctx context.Context, page *chromedp.Target) error {
		_, err := cdp.Call(ctx, page, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
		})
		return err
	}))
	b.is(fmt.Sprintf(`getComputedStyle(document.body).backgroundColor !== %q`, light))
	b.is(`document.documentElement.scrollWidth <= innerWidth`)
	b.screenshot("phone-dark")

	// It is deleted, after a question that is answered with the keyboard.
	b.focus(`[data-action="delete"]`)
	b.press(kb.Enter)
	b.is(`document.querySelector("#confirm").open && document.activeElement.value === "no"`)
	b.focus(`#confirm [value="yes"]`)
	b.press(kb.Enter)
	b.says("#totals", `^20 instances · 20 QR codes`)
	b.is(`document.querySelector("#instance").hidden && document.querySelector("#trouble").hidden`)

	b.mu.Lock()
	require.Empty(t, b.wrong, "the browser has nothing to complain of")
	b.mu.Unlock()
	said := d.end(t)
	require.Contains(t, said, "Instances that were linked: 22\nQR codes: 22\n")
	require.Contains(t, said, "Messages that nobody could read: 0\nMessage keys used twice: 0\n")
}

func pathExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fact is one of the facts of the chosen instance.
func (b *browser) fact(name string) string {
	b.t.Helper()
	return b.value(fmt.Sprintf(`[...document.querySelectorAll("#facts dt")].find((dt) => dt.textContent === %q).nextElementSibling.textContent`, name))
}

// contactOf is who writes to an instance.
func (b *browser) contactOf(string) string {
	b.t.Helper()
	b.is(`/→ (\d+)@/.test(document.querySelector("#log").innerText)`) // the demo lets it send to that one
	return "+" + b.value(`/→ (\d+)@/.exec(document.querySelector("#log").innerText)[1]`)
}

func TestThePageAsksForTheKeyAndKeepsItToItself(t *testing.T) {
	t.Parallel()
	bench := newBench(t)
	g := bench.gateway("one")
	b := newBrowser(t)
	b.open(g.base)
	b.is(`document.querySelector("#ask-key").open`)
	b.press("not the key" + kb.Enter)
	b.is(`document.querySelector("#ask-key").open && document.querySelector("#key").value === ""`)
	b.press(testKey + kb.Enter)
	b.says("#totals", `^0 instances`)
	require.Empty(t, b.value(`document.cookie + location.search`))
	for _, path := range []string{"/", "/page.js", "/page.css", "/openapi.yaml"} {
		response, err := http.Get(g.base + path)
		require.NoError(t, err)
		text := make([]byte, 100_000)
		n, _ := response.Body.Read(text)
		_ = response.Body.Close()
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.NotContains(t, string(text[:n]), testKey)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.wrong)
}
