"""Load that is made up to be like a recorded one: models of arrivals, what they are worth, and tuning on what they make."""
