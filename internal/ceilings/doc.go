// Package ceilings is a model of what keeps message keys from coming back (pgstore/ceilings.go): processes that own an instance one after the other
// or at once, a backlog of segments each, flushes that are delayed or repeated or whose answer is lost, crashes, failovers, restores.
//
// It has no database, no encryption and no time of its own, so that millions of sends can be drawn at random, and each of its rules can be
// left out, to see that the walks find what the rule is there for. A message key is a chain and a counter; the walk fails when one is used twice.
//
// What nothing can cover is not drawn: a database that goes back on its own timeline when the owner that could have noticed is dead and there is
// no witness; a database that loses what it had acknowledged and is trusted not to; two live primaries.
package ceilings
