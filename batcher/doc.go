// Package batcher saves writes behind the back of those who make them.
//
// It knows nothing of SQL or of WhatsApp: what a flush does is injected. Writes
// come in groups that stand or fall together, each for a lane (one owner of keys).
//
// # The algorithm
//
// A lane's backlog is a queue of segments. A group goes whole into the last
// segment if that is open and has room, else into a new one; a group larger
// than a segment is a segment of its own. Inside a segment writes are coalesced by
// key: the last one wins.
//
// Flusher goroutines repeat:
//
//  1. Pick the lanes that are due and not being flushed, in the order in which they became due, until the batch is full;
//     of each lane the segment at its head. Seal these segments.
//  2. Flush them, with no lock held.
//  3. Those that are durable leave the queue and their waiters go on. Those to be repeated, all if the flush failed,
//     stay at the head and are tried again after a jittered, growing delay, which the success of another lane ends.
//
// A lane is due when somebody waits for one of its segments, when a segment is full, or when
// its oldest write is older than Interval and the batcher has rested: after a
// flush that nobody waited for, it rests three times what that flush took, at least Interval and
// at most MaxRest, so that flushing does not eat the CPU it is meant to free, and hot keys coalesce.
//
// # The backlog
//
// Writers reserve room, in operations and in bytes, before they add a group. At either limit they block until half of both is free, so that they are not
// woken one by one. Who learns only from the group itself how large it is reserves less: it is added if there is room for the rest, else its
// writer reserves what it needs and comes again. A group larger than a limit is let in as if it were small once half is free, so the backlog never
// holds more than the limit, or half of it and one group.
//
// # Invariants
//
//  1. The segments of a lane become durable whole, in order, never two at once. So
//     what is durable is always a prefix of the lane's groups. Only a flush that finds that what was durable is no more puts
//     groups before those that are pending ([Lane.Push]).
//  2. A sealed segment never changes. A flush whose result is unknown is repeated with the same
//     content, and newer writes, which are in later segments, win.
//  3. No segment is dropped in silence: it leaves the queue when it is durable, with [Lane.Stop], which hands it out, or
//     when its lane stops for good, of which [Batcher.Close] tells how much was lost.
//
// A failure for good (Config.Permanent) in a flush of several lanes does not say which lane is guilty: each of them
// is then flushed alone, and one that fails alone is stopped, loudly, while the others pass.
package batcher
