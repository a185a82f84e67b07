// Package soak is a test that lets many instances live on a database that has bad days, one after the other, in processes that end, are
// forgotten or killed, for as long as a flag says, and compares every answer with a model.
package soak
