//go:build !unix

package main

// Here nothing can be frozen, and no worker can be asked to end: the demo only kills.

func (w *workerProcess) freeze() error { return nil }

func (w *workerProcess) thaw() error { return nil }
