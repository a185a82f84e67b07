package pgstore

// IgnoreUncleanEnds switches off what keeps message keys from coming back, to show that the judge fires.
func (c *Container) IgnoreUncleanEnds() { c.ignoreMarks = true }
