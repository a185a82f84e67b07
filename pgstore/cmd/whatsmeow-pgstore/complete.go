package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

const (
	completionTimeout = 2 * time.Second // somebody has pressed Tab
	completionsAtMost = 200
)

// completeInstance offers the names of instances, where the database is named. It says nothing of what goes wrong.
func (a *app) completeInstance(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "prune" && cmd.Name() != "drill" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	db, err := a.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer db.Close()
	type row struct{ ID, Owner string }
	found, err := collect[row](ctx, db, `SELECT id, owner FROM {schema}.instances WHERE starts_with(id, $1) ORDER BY id LIMIT $2`, begun, completionsAtMost)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range found {
		if shown(r.ID) == r.ID {
			names = append(names, cobra.CompletionWithDesc(r.ID, shown(r.Owner)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
