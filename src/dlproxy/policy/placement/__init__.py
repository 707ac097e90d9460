"""Which nodes of a cluster serve which models: what is wanted as a problem, an answer, and the moves to it, all of it pure."""
