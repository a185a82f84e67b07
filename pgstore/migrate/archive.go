package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"filippo.io/age"
	"go.mau.fi/whatsmeow/types"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/portable"
)

// An archive is a file that age has encrypted (https://age-encryption.org/v1). Inside are lines of JSON: what it is, one line per entry, and how many there were. The age
// command decrypts it, and so it can be read without this library:
//
//	{"format":"whatsmeow-pgstore archive","version":1,"instance":"shop-42","moved":true,"written_at":"…"}
//	{"kind":"creds","entry":{…}}
//	…
//	{"end":1234}
//
// A file without its last line is none: that line is written when the instance is fenced.

const (
	archiveFormat  = "whatsmeow-pgstore archive"
	archiveVersion = 1
)

// Errors of archives, to be tested with [errors.Is].
var (
	// ErrArchive says that a file is no archive that can be read: it was cut off or changed, is of a later version, or encrypted for somebody else.
	ErrArchive = errors.New("migrate: archive cannot be read")
	// ErrArchiveIsCopy says that Exact was claimed of an archive that was written without Move: its instance went on afterwards.
	ErrArchiveIsCopy = errors.New("migrate: archive is a copy of an instance that went on, its counters cannot be exact")
)

// ArchiveHeader is what an archive says of itself.
type ArchiveHeader struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	Instance  string    `json:"instance"`
	Moved     bool      `json:"moved"`
	WrittenAt time.Time `json:"written_at"`
}

// archiveLine is any other line.
type archiveLine struct {
	Kind  string          `json:"kind,omitempty"`
	Entry json.RawMessage `json:"entry,omitempty"`
	End   *int            `json:"end,omitempty"`
}

// WriteArchiveOptions say how an archive is written.
type WriteArchiveOptions struct {
	// Recipients are those who can read it. At least one is needed; age.NewScryptRecipient makes one of a passphrase.
	Recipients []age.Recipient

	// Move hands the instance over, see [pgstore.Container.Export]: it is fenced here, and the archive may be read with Exact, once. Without it the archive is a copy,
	// for keeping, and the instance goes on.
	Move bool

	// Progress, if set, is called now and then. It must not block.
	Progress func(Progress)
}

// WriteArchive writes an instance as an archive. If it fails, what was written cannot be read: drop it. It does not close the writer; with Move, sync and close it before anything
// else, for the instance is fenced. The last 64 KB are written behind the fence: if that fails, the instance is still here, and heals when it is used.
func WriteArchive(ctx context.Context, c *pgstore.Container, id string, to io.Writer, opts WriteArchiveOptions) (*pgstore.ExportResult, error) {
	sealed, err := age.Encrypt(to, opts.Recipients...)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	lines := json.NewEncoder(sealed)
	header := ArchiveHeader{Format: archiveFormat, Version: archiveVersion, Instance: id, Moved: opts.Move, WrittenAt: time.Now().UTC().Truncate(time.Second)}
	if err = lines.Encode(header); err != nil {
		return nil, fmt.Errorf("migrate: writing archive: %w", err)
	}
	written := 0
	write := func(entries iter.Seq2[portable.Entry, error]) error {
		for e, err := range entries {
			if err != nil {
				return err
			}
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if err = lines.Encode(archiveLine{Kind: e.Kind(), Entry: data}); err != nil {
				return err
			}
			written++
		}
		return nil
	}
	cfg := pgstore.ExportConfig{Target: "an archive"}
	if opts.Progress != nil {
		cfg.Progress = func(done, total int) { opts.Progress(Progress{Done: done, Total: total}) }
	}
	export := c.Snapshot
	if opts.Move {
		export = c.Export
	}
	result, err := export(ctx, id, cfg, write)
	if err != nil {
		return nil, err
	}
	if err = errors.Join(lines.Encode(archiveLine{End: &written}), sealed.Close()); err != nil {
		return nil, fmt.Errorf("migrate: writing the end of the archive: %w", err)
	}
	return result, nil
}

// ReadArchiveOptions say how an archive is read.
type ReadArchiveOptions struct {
	// Identities are keys that can open it; age.NewScryptIdentity makes one of a passphrase.
	Identities []age.Identity

	// Instance is the name of the instance. Defaults to the one that it had.
	Instance string

	// Exact is your word that the archive was written with Move, and has not been read anywhere else: an archive that is read twice is a device that lives twice.
	// Of an archive that is a copy it is [ErrArchiveIsCopy]. Replace: see [pgstore.ImportConfig].
	Exact, Replace bool

	// Progress, if set, is called now and then. It must not block.
	Progress func(Progress)
}

// ReadArchive imports the instance of an archive, as [pgstore.Container.Import] does: all or nothing. It reads to the end of the archive, and does not close the reader.
func ReadArchive(ctx context.Context, c *pgstore.Container, from io.Reader, opts ReadArchiveOptions) (*pgstore.ImportResult, error) {
	opened, err := age.Decrypt(from, opts.Identities...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	lines := newLineReader(opened)
	header, err := lines.header()
	if err != nil {
		return nil, err
	}
	if opts.Exact && !header.Moved {
		return nil, ErrArchiveIsCopy
	}
	id := opts.Instance
	if id == "" {
		id = header.Instance
	}
	cfg := pgstore.ImportConfig{Source: "an archive", Exact: opts.Exact, Replace: opts.Replace}
	if opts.Progress != nil {
		cfg.Progress = func(done int) { opts.Progress(Progress{Device: lines.device, Done: done}) }
	}
	return c.Import(ctx, id, lines.entries(), cfg)
}

// lineReader reads what is inside of an archive.
type lineReader struct {
	lines  *json.Decoder
	device types.JID
}

func newLineReader(from io.Reader) *lineReader {
	return &lineReader{lines: json.NewDecoder(bufio.NewReader(from))}
}

func (r *lineReader) header() (h ArchiveHeader, err error) {
	if err = r.lines.Decode(&h); err != nil {
		return h, unreadable(err)
	}
	switch {
	case h.Format != archiveFormat:
		return h, fmt.Errorf("%w: it is something else", ErrArchive)
	case h.Version != archiveVersion:
		return h, fmt.Errorf("%w: it is of version %d, this one knows %d", ErrArchive, h.Version, archiveVersion)
	}
	return h, nil
}

// entries reads to the end, which must be there. An error of JSON quotes what it was about, so it is not told.
func (r *lineReader) entries() iter.Seq2[portable.Entry, error] {
	return func(yield func(portable.Entry, error) bool) {
		for n := 0; ; n++ {
			var line archiveLine
			if err := r.lines.Decode(&line); err != nil {
				yield(nil, unreadable(err))
				return
			}
			if line.End != nil {
				if *line.End != n {
					yield(nil, fmt.Errorf("%w: %d entries instead of %d", ErrArchive, n, *line.End))
				} else if _, err := r.lines.Token(); !errors.Is(err, io.EOF) {
					yield(nil, fmt.Errorf("%w: it goes on behind its end", ErrArchive))
				}
				return
			}
			e := portable.New(line.Kind)
			if e == nil {
				yield(nil, fmt.Errorf("%w: it has an entry of a kind that is not known", ErrArchive))
				return
			}
			if json.Unmarshal(line.Entry, e) != nil {
				yield(nil, fmt.Errorf("%w: entry %d", ErrArchive, n+1))
				return
			}
			if creds, ok := e.(*portable.Credentials); ok {
				r.device, _ = types.ParseJID(string(creds.JID)) // the import checks it
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// unreadable keeps what an error quotes out of it.
func unreadable(err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends too early", ErrArchive)
	case errors.As(err, &syntax), errors.As(err, &typ):
		return fmt.Errorf("%w: what is inside is malformed", ErrArchive)
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}
