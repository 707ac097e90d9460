"""Service times learnt from what a request is, beside the cost that lanes fit, and what the difference is worth."""
