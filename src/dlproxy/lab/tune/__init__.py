"""Tuning ahead of time: which copies of which models run on which nodes (placement/)."""
