// Package pictures draws the pictures of the README: of what the library is made, the way of a write, and how long the client's paths take beside sqlstore. The test
// compares the files with what is drawn; with -update it writes them.
package pictures

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	svg "github.com/ajstarks/svgo"
)

// Styles work on a light and on a dark page: each picture has a background of its own.
const (
	paper    = "fill:#ffffff;stroke:#d0d7de"
	box      = "fill:#eef4fb;stroke:#2f6fab;stroke-width:1.5"
	strong   = "fill:#2f6fab;stroke:#1d4d7a;stroke-width:1.5"
	database = "fill:#f4efe4;stroke:#8a6d2f;stroke-width:1.5"
	line     = "fill:none;stroke:#57606a;stroke-width:1.5;marker-end:url(#arrow)"
	dashed   = line + ";stroke-dasharray:5 4"
	text     = "font:13px sans-serif;fill:#1f2328"
	small    = "font:11px sans-serif;fill:#57606a"
	middle   = ";text-anchor:middle"
	end      = ";text-anchor:end"
	white    = "font:bold 13px sans-serif;fill:#ffffff" + middle
)

// picture is an SVG with what all of them need.
type picture struct{ *svg.SVG }

func draw(w io.Writer, width, height int, title string, paint func(picture)) {
	p := picture{svg.New(w)}
	p.Start(width, height)
	p.Title(title)
	p.Def()
	p.Marker("arrow", 8, 4, 9, 9, `orient="auto"`)
	p.Path("M0,0 L8,4 L0,8 Z", "fill:#57606a")
	p.MarkerEnd()
	p.DefEnd()
	p.Roundrect(0, 0, width, height, 8, 8, paper)
	paint(p)
	p.End()
}

// box is a rectangle with lines of text, the first of which is its name.
func (p picture) box(x, y, width, height int, style string, lines ...string) {
	p.Roundrect(x, y, width, height, 6, 6, style)
	at := y + height/2 - 8*(len(lines)-1) + 4
	for i, s := range lines {
		look := small + middle
		switch {
		case style == strong:
			look = white
		case i == 0:
			look = text + middle
		}
		p.Text(x+width/2, at+16*i, s, look)
	}
}

// Architecture shows of what processes and the database are made.
func Architecture(w io.Writer) {
	draw(w, 760, 330, "Clients use memory; batches go to one table in PostgreSQL", func(p picture) {
		for i, name := range []string{"a process, with its instances", "another process, with others"} {
			x := 20 + 370*i
			p.Roundrect(x, 20, 350, 168, 8, 8, "fill:none;stroke:#d0d7de;stroke-width:1.5")
			p.Text(x+12, 40, name, small)
			p.box(x+15, 52, 90, 120, box, "whatsmeow", "clients")
			p.box(x+150, 52, 90, 52, strong, "cache")
			p.Text(x+195, 120, "all keys of", small+middle)
			p.Text(x+195, 134, "its instances", small+middle)
			p.box(x+150, 142, 90, 30, box, "lease")
			p.box(x+270, 52, 66, 52, strong, "batcher")
			p.Line(x+106, 70, x+148, 70, line)
			p.Line(x+148, 88, x+107, 88, line)
			p.Line(x+241, 78, x+268, 78, line)
			p.Line(x+303, 105, x+303, 218, line)
			p.Line(x+195, 173, x+195, 218, dashed)
		}
		p.Text(206, 208, "one heartbeat a process", small+end)
		p.Text(331, 208, "a statement for many keys", small)
		p.Roundrect(20, 222, 720, 92, 8, 8, database)
		p.Text(34, 242, "PostgreSQL, with its standbys, backups and point-in-time restores", text)
		for i, table := range [][]string{
			{"auth_keys", "one row a key"}, {"instances", "owner, epoch, seq"}, {"processes", "heartbeats"}, {"lid_map", "shared"}, {"audit", "append-only"},
		} {
			p.box(34+140*i, 256, 130, 46, "fill:#ffffff;stroke:#8a6d2f", table...)
		}
	})
}

// WayOfAWrite shows what a send waits for, and what makes it safe.
func WayOfAWrite(w io.Writer) {
	draw(w, 760, 250, "A send waits for nothing while its counter is below the ceiling in the database", func(p picture) {
		steps := [][]string{
			{"client", "encrypts"},
			{"put", "into memory"},
			{"below the ceiling?", "of the durable row"},
			{"batch", "newest of each key"},
			{"one statement", "checks the owner,", "writes rows, with", "ceiling = counter + 64"},
		}
		for i, s := range steps {
			style := box
			if i == len(steps)-1 {
				style = database
			}
			p.box(16+147*i, 60, 128, 84, style, s...)
			if i > 0 {
				p.Line(16+147*i-19, 102, 16+147*i-2, 102, line)
			}
		}
		p.Path("M374,60 C374,22 80,22 80,57", line)
		p.Text(227, 24, "yes: the message leaves now", small+middle)
		p.Path("M668,145 C668,196 374,196 374,147", line)
		p.Text(520, 200, "no: when its row is durable", small+middle)
		p.Text(20, 224, "After a crash the next owner goes on at the ceiling: no message key is used a second time.", text)
	})
}

// measured is a path of the client: how many times as long as on maps in memory it takes.
type measured struct {
	path           string
	ours, sqlstore float64
}

// read reads what go test -bench BenchmarkPaths printed, the median of its runs.
func read(from io.Reader) (paths []measured, err error) {
	for lines := bufio.NewScanner(from); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		name, ok := strings.CutPrefix(lines.Text(), "BenchmarkPaths/")
		if !ok || len(fields) < 4 {
			continue
		}
		m := measured{path: name[:strings.LastIndex(fields[0], "-")-len("BenchmarkPaths/")]}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", fields[0], err)
			}
			switch fields[i+1] {
			case "Reserved/maps":
				m.ours = value
			case "sqlstore/maps":
				m.sqlstore = value
			}
		}
		paths = append(paths, m)
	}
	return paths, nil
}

// Latency shows how long the client's paths take on this store and on sqlstore, as multiples of maps in memory. The scale is logarithmic.
func Latency(w io.Writer, results io.Reader) error {
	paths, err := read(results)
	if err != nil {
		return err
	}
	const left, pixels = 170, 520.0 // of the bars
	most := 1.0
	for _, m := range paths {
		most = max(most, m.ours, m.sqlstore)
	}
	at := func(times float64) int { return int(pixels * math.Log(max(1, times)) / math.Log(most)) }
	height := 86 + 44*len(paths)
	draw(w, 760, height, "How many times as long as on maps in memory the client's paths take", func(p picture) {
		p.Text(20, 26, "The client's paths, medians: how many times as long as on maps in memory (logarithmic)", text)
		for times := 1.0; times <= most; times *= 2 {
			p.Line(left+at(times), 40, left+at(times), height-40, "stroke:#eaeef2")
			p.Text(left+at(times), height-24, fmt.Sprint("×", times), small+middle)
		}
		for i, m := range paths {
			y := 46 + 44*i
			p.Text(left-10, y+22, m.path, text+end)
			for j, bar := range []struct {
				times float64
				style string
			}{{m.ours, "fill:#2f6fab"}, {m.sqlstore, "fill:#c8a04a"}} {
				p.Rect(left, y+17*j, max(2, at(bar.times)), 14, bar.style)
				p.Text(left+max(2, at(bar.times))+6, y+17*j+11, fmt.Sprintf("%.3g", bar.times), small)
			}
		}
		p.Rect(left, height-16, 10, 10, "fill:#2f6fab")
		p.Text(left+16, height-7, "pgstore", small)
		p.Rect(left+90, height-16, 10, 10, "fill:#c8a04a")
		p.Text(left+106, height-7, "sqlstore on PostgreSQL", small)
	})
	return nil
}
