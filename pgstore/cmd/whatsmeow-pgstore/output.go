package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/fatih/color"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
)

// Colours of what is well, what to look at and what is wrong. The library leaves them out where standard output is no terminal, and with NO_COLOR.
var (
	green  = color.New(color.FgGreen).SprintFunc()
	yellow = color.New(color.FgYellow).SprintFunc()
	red    = color.New(color.FgRed).SprintFunc()
	bold   = color.New(color.Bold).SprintFunc()
)

func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// printJSON prints one object.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// columns prints a table without lines.
func columns(w io.Writer, header []any, rows [][]any, right ...int) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	configs := make([]table.ColumnConfig, 0, len(right))
	for _, n := range right {
		configs = append(configs, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(configs)
	t.AppendHeader(header)
	for _, row := range rows {
		t.AppendRow(row)
	}
	t.Render()
}

// shown is a text that somebody else has chosen, without what would move the cursor.
func shown(s string) string {
	for _, r := range s {
		if !unicode.IsGraphic(r) {
			return strconv.QuoteToGraphic(s)
		}
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return shown(s)
}

func bytes(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}

// lasting is a duration with a precision that people want.
func lasting(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// percent is a part of a whole; nothing of nothing is not known.
func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

func ratio(part, whole int64) *float64 {
	if whole == 0 {
		return nil
	}
	r := float64(part) / float64(whole)
	return &r
}

// progress is a bar on standard error, if that is a terminal.
func (a *app) progress(total int, what string) *progressbar.ProgressBar {
	f, ok := a.errs.(*os.File)
	if !ok || !isatty.IsTerminal(f.Fd()) {
		return progressbar.DefaultSilent(int64(total))
	}
	return progressbar.NewOptions(total, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30), progressbar.OptionEnableColorCodes(!color.NoColor))
}

// confirm asks for a yes where there is somebody to ask, and refuses otherwise.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	f, ok := a.in.(*os.File)
	if !ok || !isatty.IsTerminal(f.Fd()) {
		return refused("%s Nobody can be asked here: say --yes", question)
	}
	_, _ = fmt.Fprintf(a.errs, "%s [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(f, &answer)
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return refused("not confirmed, nothing was changed")
	}
	return nil
}

// onTerminal says whether a person sits in front of standard input and output.
func (a *app) onTerminal() bool {
	for _, stream := range []any{a.in, a.out} {
		if f, ok := stream.(*os.File); !ok || !isatty.IsTerminal(f.Fd()) {
			return false
		}
	}
	return true
}

func rate(r *float64) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f", *r)
}
