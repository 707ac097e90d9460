"""Models with real weights and labelled examples of what they are for. Read by two environments. Not aware of: dlproxy."""
