"""Solvers of the placement problem beside each other: `python -m benchmarks.placement`."""
