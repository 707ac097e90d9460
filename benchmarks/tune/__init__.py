"""`dlproxy tune` beside an exhaustive search, on models of several kinds: `python -m benchmarks.tune`."""
