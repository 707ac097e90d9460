"""How dlproxy does under pressure: overload, bad instances, mixed deadlines, unequal models."""
