// Package soak is a test that lets many instances live on a database that has bad days, one after the other, for as long as a
// flag says, and compares every answer with a model.
package soak
