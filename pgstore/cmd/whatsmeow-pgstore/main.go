package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// execute runs a command line and returns its exit code.
func execute(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	a := &app{out: out, errs: errs, in: in}
	root := a.root() //nolint:contextcheck // its commands get the context when they run
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	command, err := root.ExecuteContextC(ctx)
	code := codeOf(err)
	if text := a.describe(err); text != "" {
		_, _ = fmt.Fprintf(errs, "whatsmeow-pgstore: %s\n", text)
	}
	if code == exitUsage {
		_, _ = fmt.Fprintf(errs, "Try '%s --help'.\n", command.CommandPath())
	}
	return code
}

const exitCodes = `Exit codes:
  0  fine
  1  it failed
  2  it was called wrongly
  3  something was found (doctor, audit verify, drill)
  4  refused, as for an instance that a living process has
  5  the database is away`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "whatsmeow-pgstore",
		Short: "Looks after the databases of whatsmeow-pgstore",
		Long: `Looks after the databases of whatsmeow-pgstore: migrates them, shows what is in them and who has it, checks them, and does by hand what an
operator now and then has to. Commands that look take no instance and change nothing; no output has key material in it.

The database is named by --dsn or, better, by PGSTORE_DSN: other users of the machine can read command lines.`,
		Example: `  export PGSTORE_DSN=postgres://bot@db.example/bots
  whatsmeow-pgstore doctor
  whatsmeow-pgstore instances list
  whatsmeow-pgstore top`,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetHelpTemplate(root.HelpTemplate() + "\n" + exitCodes + "\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.dsn, "dsn", "", "connection string of the database (default $PGSTORE_DSN)")
	flags.StringVar(&a.schema, "schema", "whatsmeow", "PostgreSQL schema that holds the tables")
	flags.StringVar(&a.realm, "realm", "", "refuse a database of another realm than this one")
	flags.DurationVar(&a.wait, "wait", defaultWait, "how long to wait for the database, and for an instance")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "tell on standard error what the library logs")
	root.AddCommand(a.migrateCommand(), a.instancesCommand(), a.statsCommand(), a.topCommand(), a.auditCommand(),
		a.healCommand(), a.releaseCommand(), a.pruneCommand(), a.doctorCommand(), a.drillCommand(), a.importCommand(), a.exportCommand())
	return root
}

// group is a command that only has others. Without one of them it shows its help; with another word it was called wrongly.
func group(use, short, long, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(commands...)
	return c
}
