"""Placement as optimisation: copies of models on nodes, solved exactly and by search. docs/guides/placement.md."""
