package pgstore

// IgnoreUncleanEnds switches off what keeps message keys from coming back, to show that the judge fires.
func (c *Container) IgnoreUncleanEnds() { c.ignoreMarks = true }

// IgnoreRaces switches off what tells that sessions and sender keys were changed at once: to show that the judge fires, and what it costs.
func (c *Container) IgnoreRaces() { c.storeAsPut = true }
